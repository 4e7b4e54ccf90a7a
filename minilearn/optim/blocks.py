"""The parameters of a CPU's step in blocks: large ones cut, small ones put together.

A rule of several steps over whole large tensors leaves the cache between the steps, and over hundreds of small ones it
spends its time on the calls. In blocks both go away.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from minilearn.optim.lists import copy_, in_order
from minilearn.optim.packs import Layout, Pack, Scratch

Tensors = list[Tensor]
Gather = Literal["nothing", "grads", "all"]
States = Mapping[Tensor, MutableMapping[str, Any]]

BLOCK = 1 << 17
"""Elements that a rule works on at a time: half a megabyte a tensor in float32, so that a few stay in the cache."""

SMALL = 1 << 14
"""Parameters of at most so many elements are put together: what a call costs is felt up to there."""


class Block(NamedTuple):
    """What a rule is called with."""

    params: Tensors
    grads: Tensors
    states: dict[str, Tensors]


class Blocks:
    """Cuts and joins parameters, and keeps the memory for it from step to step."""

    def __init__(self) -> None:
        self._scratch: dict[torch.dtype, Scratch] = {}
        self._cuts: dict[int, _Cut] = {}
        self._bundles: dict[tuple[int, ...], _Bundle] = {}
        self._bundled: dict[int, tuple[int, ...]] = {}

    def over(
        self, params: Tensors, names: list[str], states: States, *, cut: bool = True, gather: Gather = "grads"
    ) -> Iterator[Block]:
        """The parameters block by block; a block's memory is only good until the next one.

        Args:
            params: of one dtype, each with its gradient.
            names: the pieces of state that the rule keeps; they are made where they are missing.
            states: each parameter's pieces of state.
            cut: whether a large parameter may be cut.
            gather: what of parameters that are put together is laid together too, beside their state. Where all is,
                a large parameter's block has no memory for what is computed on the way.
        """
        small: Tensors = []
        large: Tensors = []
        for p in params:
            (small if p.numel() <= SMALL and p.is_contiguous() else large).append(p)
        longest = BLOCK if cut else BLOCK * 8 if gather == "all" else max(p.numel() for p in params)
        scratch = self._scratch_of(params[0].dtype, max(BLOCK, SMALL, longest))
        for p in large:
            yield from self._cut_of(p, scratch, cut).blocks(p, names, states)
        for bundle in self._bundles_of(small, scratch, BLOCK if cut else scratch.elements):
            scratch.used = 0
            grads: Tensors = [p.grad for p in bundle.params]  # type: ignore[misc]
            if gather != "nothing":
                grads = bundle.layout.gather(grads)
            together = bundle.layout.gather(bundle.params) if gather == "all" else bundle.params
            yield Block(together, grads, {name: bundle.state(name, states) for name in names})
            if gather == "all":
                copy_(bundle.params, together)

    def _scratch_of(self, dtype: torch.dtype, elements: int) -> Scratch:
        scratch = self._scratch.get(dtype)
        if scratch is None or scratch.elements < elements:
            scratch = self._scratch[dtype] = Scratch(dtype, elements)
            self._cuts, self._bundles = {}, {}
        return scratch

    def _cut_of(self, p: Tensor, scratch: Scratch, cut: bool) -> "_Cut":
        found = self._cuts.get(id(p))
        if found is None or found.scratch is not scratch or found.cut is not cut or found.shape != p.shape:
            found = self._cuts[id(p)] = _Cut(p, scratch, cut)
        return found

    def _bundles_of(self, small: Tensors, scratch: Scratch, most: int) -> Iterator["_Bundle"]:
        begin = elements = 0
        for end in range(1, len(small) + 1):
            elements += small[end - 1].numel()
            if end == len(small) or elements + small[end].numel() > most:
                params = small[begin:end]
                key = tuple(map(id, params))
                bundle = self._bundles.get(key)
                # A parameter may have become one of another dtype or size since.
                if bundle is None or bundle.layout.scratch is not scratch or bundle.layout.total != elements:
                    bundle = self._bundle(key, params, scratch)
                yield bundle
                begin, elements = end, 0

    def _bundle(self, key: tuple[int, ...], params: Tensors, scratch: Scratch) -> "_Bundle":
        # Where other parameters have gradients in each step, the state of the same ones lies in ever other bundles: the
        # old ones go, or memory would grow.
        for one in key:
            self._bundles.pop(self._bundled.get(one, ()), None)
            self._bundled[one] = key
        bundle = self._bundles[key] = _Bundle(params, scratch)
        return bundle


class _Cut:
    """A large parameter in pieces. Cutting it and its state costs more than some rules, so the pieces are kept."""

    def __init__(self, p: Tensor, scratch: Scratch, cut: bool) -> None:
        self.p, self.scratch, self.cut = p, scratch, cut  # p is held so that no other one gets its id
        self.shape = p.shape
        full, rest = divmod(p.numel(), BLOCK)
        shapes = [(BLOCK,)] * full + [(rest,)] * (rest > 0) if cut else [tuple(p.shape)]
        layouts = {shape: Layout([shape], scratch) for shape in shapes}
        self.layouts = [layouts[shape] for shape in shapes]
        self._kept: dict[str, tuple[int, list[Pack]]] = {}

    def blocks(self, p: Tensor, names: list[str], states: States) -> Iterator[Block]:
        assert p.grad is not None
        row = {name: value for name, (value,) in states_of([p], names, states).items()}
        if not all(part.is_contiguous() for part in (p, p.grad, *row.values())):
            yield Block([p], [p.grad], {name: [part] for name, part in row.items()})
            return
        kept = [self._pieces_of(name, value) for name, value in row.items()]
        for piece, grad, *parts in zip(self._pieces_of("p", p), self._cut_up(p.grad), *kept, strict=True):
            self.scratch.used = 0
            yield Block(piece, grad, dict(zip(names, parts, strict=True)))

    def _pieces_of(self, name: str, value: Tensor) -> list[Pack]:
        at, pieces = self._kept.get(name, (0, []))
        if at != value.data_ptr():
            pieces = self._cut_up(value)
            self._kept[name] = value.data_ptr(), pieces
        return pieces

    def _cut_up(self, value: Tensor) -> list[Pack]:
        value = value.detach()
        if not self.cut:
            return [Pack([value], value.view(-1), self.layouts[0])]
        pieces = torch.split(value.view(-1), BLOCK)
        return [Pack([piece], piece, layout) for piece, layout in zip(pieces, self.layouts, strict=True)]


class _Bundle:
    """Small parameters whose pieces of state lie one after another in memory."""

    def __init__(self, params: Tensors, scratch: Scratch) -> None:
        self.params = params
        self.layout = Layout([p.shape for p in params], scratch)
        self._packs: dict[str, tuple[list[int], Pack]] = {}

    def state(self, name: str, states: States) -> Pack:
        """A piece of state; where it lies elsewhere (it was loaded, or is new), it is moved here."""
        parts = [states[p].get(name) for p in self.params]
        places, pack = self._packs.get(name, ([], None))
        if pack is None or places != [0 if part is None else part.data_ptr() for part in parts]:
            pack = self.layout.split(torch.zeros(self.layout.total, dtype=self.params[0].dtype, device="cpu"))
            for p, old, new in zip(self.params, parts, pack, strict=True):
                states[p][name] = new if old is None else new.copy_(old)
            self._packs[name] = [part.data_ptr() for part in pack], pack
        return pack


def states_of(params: Tensors, names: list[str], states: States) -> dict[str, Tensors]:
    """Pieces of state of parameters of one dtype, in that dtype."""
    found = {name: [state_of(p, name, states) for p in params] for name in names}
    for name, row in found.items():
        if set(map(dtype_of, row)) != {params[0].dtype}:  # the model has been made double, say
            found[name] = [value.to(p.dtype) for p, value in zip(params, row, strict=True)]
            for p, value in zip(params, found[name], strict=True):
                states[p][name] = value
    return found


dtype_of: Callable[[Tensor], torch.dtype] = attrgetter("dtype")


def state_of(p: Tensor, name: str, states: States) -> Tensor:
    """A piece of state, zeros at first, laid out in memory like its parameter: the fused kernels go by memory alone."""
    state = states[p]
    value: Tensor | None = state.get(name)
    if value is None:
        value = state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
    elif value.is_contiguous() and p.is_contiguous():  # nearly always
        return value
    elif in_order(p, p) and not in_order(p, value):  # loaded, or the model has become channels-last since
        value = state[name] = torch.empty_like(p, memory_format=torch.preserve_format).copy_(value)
    return value

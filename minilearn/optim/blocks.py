"""The parameters of a CPU's step in blocks: large ones cut, small ones put together.

A rule of several steps over whole large tensors leaves the cache between the steps, and over hundreds of small ones it
spends its time on the calls. In blocks both go away.
"""

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from minilearn.optim.lists import copy_, in_order
from minilearn.optim.packs import Layout, Pack, Scratch

Tensors = list[Tensor]
Gather = Literal["nothing", "grads", "all"]
States = Mapping[Tensor, MutableMapping[str, Any]]

BLOCK = 1 << 16
"""Elements that a rule works on at a time: 256 KiB a tensor in float32, so that a few stay in the cache."""

SMALL = 1 << 14
"""Parameters of at most so many elements are put together: what a call costs is felt up to there."""


FEW, MANY = 2, 16
"""How many blocks' worth of small parameters are put together: the more, the fewer calls, and the less stays cached.

Few for rules of several steps, which go over the same memory again; many for a program, a call of which takes long.
"""


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
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._planned: dict[int, tuple[int, ...]] = {}

    def over(
        self,
        params: Tensors,
        names: list[str],
        states: States,
        *,
        cut: bool = True,
        gather: Gather = "grads",
        several: int = FEW,
    ) -> Iterator[Block]:
        """The parameters block by block; a block's memory is only good until the next one.

        Args:
            params: of one dtype, each with its gradient.
            names: the pieces of state that the rule keeps; they are made where they are missing.
            states: each parameter's pieces of state.
            cut: whether a large parameter may be cut.
            gather: what of parameters that are put together is laid together too, beside their state.
            several: how many blocks' worth of small parameters are put together.
        """
        dtype = params[0].dtype
        scratch = self._scratch.setdefault(dtype, Scratch(dtype, BLOCK))
        plan = self._plan_of(params, scratch, BLOCK * several)
        # All are cut before the first is worked on: what that looks at would be out of the cache again by the next one.
        blocks = [block for p in plan.large for block in self._cut_of(p, scratch, cut).blocks(p, names, states)]
        for block in blocks:
            scratch.used = 0
            yield block
        for bundle in plan.bundles:
            scratch.used = 0
            grads: Tensors = [p.grad for p in bundle.params]  # type: ignore[misc]
            if gather != "nothing":
                grads = bundle.layout.gather(grads)
            together = bundle.layout.gather(bundle.params) if gather == "all" else bundle.params
            yield Block(together, grads, bundle.states(names, states))
            if gather == "all":
                copy_(bundle.params, together)

    def _cut_of(self, p: Tensor, scratch: Scratch, cut: bool) -> "_Cut":
        found = self._cuts.get(id(p))
        if found is None or found.scratch is not scratch or found.cut is not cut or found.shape != p.shape:
            found = self._cuts[id(p)] = _Cut(p, scratch, cut)
        return found

    def _plan_of(self, params: Tensors, scratch: Scratch, most: int) -> "_Plan":
        """Which parameters are put together, at most so many elements at a time."""
        key = (most, *map(id, params))
        plan = self._plans.get(key)
        if plan is None or plan.scratch is not scratch or not plan.fits(params):
            # Where other parameters have gradients in each step, the state of the same ones lies in ever other bundles:
            # the old ones go, or memory would grow.
            for one in key[1:]:
                self._plans.pop(self._planned.get(one, ()), None)
                self._planned[one] = key
            plan = self._plans[key] = _Plan(params, scratch, most)
        return plan


is_contiguous = Tensor.is_contiguous
data_ptr = Tensor.data_ptr
numel = Tensor.numel


class _Plan:
    """Parameters, the large ones and those that are put together."""

    def __init__(self, params: Tensors, scratch: Scratch, most: int) -> None:
        self.scratch, self.sizes = scratch, list(map(numel, params))
        self.in_order = list(map(is_contiguous, params))
        self.small = [p for p in params if p.numel() <= SMALL and p.is_contiguous()]
        self.large = [p for p in params if not (p.numel() <= SMALL and p.is_contiguous())]
        self.bundles: list[_Bundle] = []
        begin = elements = 0
        for end in range(1, len(self.small) + 1):
            elements += self.small[end - 1].numel()
            if end == len(self.small) or elements + self.small[end].numel() > most:
                self.bundles.append(_Bundle(self.small[begin:end], scratch))
                begin, elements = end, 0

    def fits(self, params: Tensors) -> bool:
        """Whether the parameters are still those that were planned for; one may have become another size since."""
        return self.sizes == list(map(numel, params)) and self.in_order == list(map(is_contiguous, params))


class _Cut:
    """A large parameter in pieces. Cutting it and its state costs more than some rules, so the pieces are kept."""

    def __init__(self, p: Tensor, scratch: Scratch, cut: bool) -> None:
        self.p, self.scratch, self.cut = p, scratch, cut  # p is held so that no other one gets its id
        self.shape = p.shape
        full, rest = divmod(p.numel(), BLOCK)
        shapes = [(BLOCK,)] * full + [(rest,)] * (rest > 0) if cut else [tuple(p.shape)]
        layouts = {shape: Layout([shape], scratch) for shape in shapes}
        self.layouts = [layouts[shape] for shape in shapes]
        self._sizes = [math.prod(shape) for shape in shapes]
        self._names: list[str] = []
        self._places: list[Any] = []
        self._pieces: list[tuple[Pack, dict[str, Tensors]]] = []

    def blocks(self, p: Tensor, names: list[str], states: States) -> list[Block]:
        grad = p.grad
        assert grad is not None
        state = states[p]
        places = [p.data_ptr(), *[state[name].data_ptr() if name in state else 0 for name in names]]
        if places != self._places or names != self._names:
            row = [part for (part,) in states_of([p], names, states).values()]
            if not all([part.is_contiguous() for part in (p, *row)]):  # noqa: C419 -- a list is twice as fast here
                return [Block([p], [grad], {name: [part] for name, part in zip(names, row, strict=True)})]
            columns = [self._cut_up(part) for part in row]
            kept = zip(*columns, strict=True) if columns else [()] * len(self.layouts)
            self._pieces = [
                (piece, dict(zip(names, parts, strict=True)))
                for piece, parts in zip(self._cut_up(p), kept, strict=True)
            ]
            self._places, self._names = [part.data_ptr() for part in (p, *row)], names
        grads = self._cut_up(grad.contiguous())
        return [Block(piece, grad, parts) for (piece, parts), grad in zip(self._pieces, grads, strict=True)]

    def _cut_up(self, value: Tensor) -> list[Pack]:
        if value.requires_grad:
            value = value.detach()
        if not self.cut:
            return [Pack([value], value.view(-1), self.layouts[0])]
        pieces = value.view(-1).split_with_sizes(self._sizes)
        return [Pack([piece], piece, layout) for piece, layout in zip(pieces, self.layouts, strict=True)]


class _Bundle:
    """Small parameters whose pieces of state lie one after another in memory."""

    def __init__(self, params: Tensors, scratch: Scratch) -> None:
        self.params = params
        self.layout = Layout([p.shape for p in params], scratch)
        self._packs: dict[str, tuple[list[int], Pack]] = {}

    def states(self, names: list[str], states: States) -> dict[str, Tensors]:
        """The pieces of state; those that lie elsewhere (loaded, or new) are moved here."""
        of_each = [states[p] for p in self.params]
        found: dict[str, Tensors] = {}
        for name in names:
            parts: list[Any] = [state.get(name) for state in of_each]
            places, pack = self._packs.get(name, ([], None))
            missing = any([part is None for part in parts])  # noqa: C419 -- a list is twice as fast here
            if pack is None or missing or list(map(data_ptr, parts)) != places:
                pack = self.layout.split(torch.zeros(self.layout.total, dtype=self.params[0].dtype, device="cpu"))
                for state, old, new in zip(of_each, parts, pack, strict=True):
                    state[name] = new if old is None else new.copy_(old)
                self._packs[name] = list(map(data_ptr, pack)), pack
            found[name] = pack
        return found


def states_of(params: Tensors, names: Sequence[str], states: States) -> dict[str, Tensors]:
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

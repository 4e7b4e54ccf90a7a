"""What an optimizer knows of its sharded parameters: their pieces here, and their state as pieces."""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from minilearn.optim.blocks import Block
from minilearn.optim.calls import Rule, as_function, run
from minilearn.optim.compiled import is_elementwise
from minilearn.optim.pieces import Pieces, as_sharded, is_sharded, own_piece, piece_of, whole_of

Tensors = list[Tensor]


class Shards:
    """What an optimizer knows of its sharded parameters in the course of a step."""

    states: "_States"
    """The state of each piece, as tensors of its shape; what is put there is sharded like its parameter."""

    def __init__(self) -> None:
        self.looked_at: dict[tuple[Any, ...], bool] = {}
        """Which rules, by what they consist of, are known to work number by number."""

    @contextmanager
    def of_step(self, state: MutableMapping[Tensor, Any]) -> Iterator[None]:
        """A step of an optimizer that keeps this state; afterwards the parameters alone hold gradients and state."""
        self.states = _States(state)
        try:
            yield
        finally:
            for piece in self.states.of:
                piece.grad = None
            self.states = _States({})

    def pieces(self, params: Tensors) -> Tensors:
        """This process's pieces of parameters, each with its piece of the gradient."""
        found: Tensors = []
        of = self.states.of
        for p in params:
            if not is_sharded(p):
                found.append(p)
                continue
            piece, grad = piece_of(p), p.grad
            of[piece] = p
            piece.grad = None if grad is None else _grad_piece(p, grad)
            found.append(piece)
        return found

    def whole(self, pieces: Tensors) -> Pieces:
        """The same pieces, beside the parameters that they are of."""
        return Pieces(pieces, [self.states.of.get(piece, piece) for piece in pieces])

    def works_by_number(self, rules: list[Rule], names: list[str]) -> bool:
        """Whether a rule of the user's own is known to work number by number: that is tried once."""
        key = tuple(call.stepper for call, _ in rules)
        if key not in self.looked_at:
            self.looked_at[key] = is_elementwise(as_function(names, rules), 2 + len(names))
        return self.looked_at[key]


def run_gathered(rules: list[Rule], block: Block) -> None:
    """Runs a rule on the whole parameters, one after another, in every process; each keeps its pieces of the results.

    What is computed is right whatever the rule is. It takes as long as without shards, and a gathering.

    Args:
        rules: any.
        block: its parameters are `Pieces`.
    """
    params: Any = block.params
    for i, like in enumerate(params.of):
        own = {name: row[i] for name, row in block.states.items()}
        param, grad = whole_of(params[i], like), whole_of(block.grads[i], like)
        held = {name: whole_of(part, like) for name, part in own.items()}
        run(rules, Block([param], [grad], {name: [part] for name, part in held.items()}))
        params[i].copy_(own_piece(param, like))
        for name, part in own.items():
            part.copy_(own_piece(held[name], like))


def _grad_piece(p: Any, grad: Any) -> Tensor:
    if (
        grad._spec is not p._spec and grad.placements != p.placements
    ):  # as after tensor-parallel layers: sums that are still to be made, say
        grad = grad.redistribute(placements=p.placements)
    return piece_of(grad)


class _States(Mapping[Tensor, MutableMapping[str, Any]]):
    """An optimizer's state by pieces of its parameters."""

    def __init__(self, state: MutableMapping[Tensor, Any]) -> None:
        self.of: dict[Tensor, Any] = {}
        self._state = state
        self._views: dict[Tensor, _State] = {}

    def __getitem__(self, piece: Tensor) -> MutableMapping[str, Any]:
        p = self.of.get(piece)
        if p is None:
            return self._state[piece]  # type: ignore[no-any-return]
        view = self._views.get(piece)
        if view is None:
            view = self._views[piece] = _State(p, self._state[p])
        return view

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.of)

    def __len__(self) -> int:
        return len(self.of)


class _State(MutableMapping[str, Any]):
    """A sharded parameter's state, as this process's pieces of it."""

    __slots__ = ("_p", "_values")

    def __init__(self, p: Any, values: dict[str, Any]) -> None:
        self._p, self._values = p, values

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        if value.__class__ is self._p.__class__:  # nearly always, but for counts
            return value._local_tensor
        if isinstance(value, Tensor) and value.shape == self._p.shape:  # loaded from a run of a single process
            self[name] = own_piece(value, self._p).clone()
            value = piece_of(self._values[name])
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """A piece of state, or the default; what `Mapping` has for it goes by an exception."""
        return self[name] if name in self._values else default

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __setitem__(self, name: str, value: Any) -> None:
        self._values[name] = as_sharded(value, self._p) if isinstance(value, Tensor) else value

    def __delitem__(self, name: str) -> None:
        del self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

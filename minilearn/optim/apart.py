"""A compiled step in two: the direction, which is compiled, and the move along it, for which torch has a kernel.

Small parameters are put together for a compiled step, and what was computed is put back: two copies that are felt.
Where only directions are computed, the parameters stay where they are.
"""

import functools
import math
from typing import Any, NamedTuple

from minilearn.optim import lists
from minilearn.optim.blocks import Block
from minilearn.optim.calls import columns_of
from minilearn.optim.compiled import Compiler, Prepared, Program, Scalar, Value


class Apart(NamedTuple):
    """A step p ← keep·p + rate·d in two: a program that leaves d in the gradients, and the rest."""

    direction: Prepared
    keep: float
    rate: float

    def move(self, compiler: Compiler, block: Block) -> bool:
        """Moves parameters, whose gradients are written over; whether that could be compiled."""
        if not compiler.run(self.direction, columns_of(block)[1:]):
            return False
        decay = (1 - self.keep) / -self.rate if self.rate else 0.0  # per step of the rate
        if self.keep != 1 and not 0 < abs(decay) < VAST:
            lists.mul_(block.params, self.keep)
            decay = 0.0
        lists.sgd_kernel(lr=-self.rate, l2=decay)(block.params, block.grads)
        return True


VAST = 1e20
"""A decay from which on its product with a parameter might be more than float32 holds."""


def apart(prepared: Prepared) -> Apart | None:
    """A step in two; None where it looks at a parameter for more than to shrink and then to move it."""
    found = None if prepared.whole else _in_two(prepared.program)
    if found is None:
        return None
    keep = math.prod(prepared.scalars[scalar.number] for scalar in found.shrunk)
    rate = found.sign * (1.0 if found.alpha is None else prepared.scalars[found.alpha.number])
    return Apart(Prepared(found.program, prepared.scalars, False, {}), keep, rate)


class _InTwo(NamedTuple):
    """A program without its parameter, and what it does to that: by what it shrinks, and ± alpha (or 1) times what."""

    program: Program
    shrunk: list[Scalar]
    sign: int
    alpha: Scalar | None


@functools.lru_cache(maxsize=64)
def _in_two(program: Program) -> _InTwo | None:
    value, chain, shrunk, move = dict(program.changed).get(0, 0), {0}, [], None
    while value:  # from the parameter's last value back to its first
        op = program.operations[value - program.inputs]
        name, kinds, options = op.name.removeprefix("operator."), [type(arg) for arg in op.args], dict(op.kwargs)
        alpha = options.pop("alpha", None)
        if move is None and name in ("add", "sub") and kinds == [Value, Value] and not options:
            move = op.args[1].number, 1 if name == "add" else -1, alpha
        elif move is not None and name == "mul" and kinds == [Value, Scalar]:
            shrunk.append(op.args[1])
        else:
            return None
        chain.add(value)
        value = op.args[0].number
    rest = [(i, op) for i, op in enumerate(program.operations, program.inputs) if i not in chain]
    used = [arg.number for _, op in rest for arg in (*op.args, *dict(op.kwargs).values()) if isinstance(arg, Value)]
    if move is None or chain & {*used, move[0]}:
        return None
    direction, sign, alpha = move
    # The parameter is no input here, and what was done to it no operation: all others have other numbers.
    place = {number: i for i, number in enumerate([*range(1, program.inputs), *(i for i, _ in rest)])}

    def renamed(arg: Any) -> Any:
        return Value(place[arg.number]) if isinstance(arg, Value) else arg

    operations = tuple(
        op._replace(args=tuple(map(renamed, op.args)), kwargs=tuple((key, renamed(arg)) for key, arg in op.kwargs))
        for _, op in rest
    )
    ends = {**dict(program.changed), 1: direction}
    changed = tuple((place[i], place[number]) for i, number in sorted(ends.items()) if i and i != number)
    return _InTwo(Program(program.inputs - 1, operations, changed), shrunk, sign, alpha)

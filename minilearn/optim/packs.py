"""Small tensors that lie one after another in memory, so that a rule works on them as on one large tensor.

A call costs a microsecond or more whatever it does: on a model of hundreds of small parameters that is most of an
optimizer's time. And a result needs memory: asking the system for it anew in every step costs more than to fill it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = list[Tensor]


class Scratch:
    """Memory for what a rule computes on the way, over one block of parameters; the next block uses it again."""

    def __init__(self, dtype: torch.dtype, least: int) -> None:
        self.dtype, self.least = dtype, least
        self.used = 0
        self._flats: Tensors = []

    def take(self, number: int, elements: int) -> Tensor:
        """The first `elements` of the memory of that number, which grows by doubling, from `least` on."""
        if len(self._flats) <= number:
            self._flats.append(torch.zeros(0, dtype=self.dtype, device="cpu"))
        if self._flats[number].numel() < elements:
            self._flats[number] = torch.zeros(
                max(self.least, 1 << (elements - 1).bit_length()), dtype=self.dtype, device="cpu"
            )
        return self._flats[number][:elements]


class Layout:
    """How tensors lie one after another, and scratch memory for more of the same."""

    def __init__(self, shapes: Sequence[Sequence[int]], scratch: Scratch) -> None:
        self.shapes = [tuple(shape) for shape in shapes]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.total = sum(self.sizes)
        self.alike = bool(self.sizes[0] and self.shapes[0]) and all(shape == self.shapes[0] for shape in self.shapes)
        self.scratch = scratch
        self._spare: list[Pack] = []

    def split(self, flat: Tensor) -> "Pack":
        """The tensors that lie in `flat`, a tensor of one dimension."""
        parts = torch.split(flat, self.sizes)
        return Pack([part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)], flat, self)

    def fresh(self) -> "Pack":
        """Memory for a result; it holds whatever it held."""
        number = self.scratch.used
        self.scratch.used += 1
        while len(self._spare) <= number:
            self._spare.append(self.split(self.scratch.take(len(self._spare), self.total)))
        return self._spare[number]

    def gather(self, a: Tensors) -> "Pack":
        """A copy of a list of such tensors in scratch memory."""
        copy = self.fresh()
        if self.alike:
            torch.cat(a, out=copy.flat.view(-1, *self.shapes[0][1:]))
        else:
            torch.cat([part.reshape(-1) for part in a], out=copy.flat)
        return copy


class Pack(Tensors):
    """Tensors that lie one after another in memory: `flat` is all of them as one."""

    __slots__ = ("flat", "layout")

    def __init__(self, parts: Sequence[Tensor], flat: Tensor, layout: Layout) -> None:
        super().__init__(parts)
        self.flat, self.layout = flat, layout

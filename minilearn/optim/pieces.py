"""Sharded parameters: each process works on its own pieces of them, as on any tensors.

A sharded parameter is one of torch's `DTensor`s: it has the shape of the whole, and each process holds a piece. A rule
that works number by number is run on the pieces, as fast as on plain parameters. What a rule measures, such as a
length, is added up over the processes; what has to be whole is gathered.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = list[Tensor]


def is_sharded(value: object) -> bool:
    """Whether a tensor lies in several processes, as a `DTensor` does; nothing is imported to find out."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def piece_of(value: Tensor) -> Tensor:
    """This process's piece of a sharded tensor, itself and no copy; a plain tensor as it is."""
    return value._local_tensor if is_sharded(value) else value  # type: ignore[attr-defined]


def as_sharded(piece: Tensor, like: Any) -> Tensor:
    """A tensor that is sharded like another, of which `piece` is this process's piece.

    `DTensor.from_local` would move pieces that are kept on the CPU to the GPU (torch 2.13).
    """
    kind: Any = sys.modules["torch.distributed.tensor"].DTensor
    sharded: Tensor = kind(piece, like._spec, requires_grad=False)
    return sharded


def whole_of(piece: Tensor, like: Any) -> Tensor:
    """The whole tensor of which each process holds a piece, sharded like `like`; a plain one as it is."""
    if not is_sharded(like):
        return piece
    on_mesh = piece.to(like.device_mesh.device_type)
    whole: Tensor = as_sharded(on_mesh, like).full_tensor()  # type: ignore[attr-defined]
    return whole.to(piece.device)


def own_piece(whole: Tensor, like: Any) -> Tensor:
    """What this process holds of a whole tensor that is sharded like `like`: a view.

    Raises:
        TypeError: it is neither cut along its axes, one process after the other, nor held in full.
    """
    if not is_sharded(like):
        return whole
    mesh = like.device_mesh
    for dim, placement in enumerate(like.placements):
        if type(placement).__name__ == "Shard":
            length = whole.shape[placement.dim]
            share = -(-length // mesh.size(dim))
            begin = min(length, share * mesh.get_local_rank(dim))
            whole = whole.narrow(placement.dim, begin, min(share, length - begin))
        elif not placement.is_replicate():
            raise TypeError(f"a parameter that is sharded as {placement} cannot be taken apart here")
    return whole


def piece_for(value: Tensor, like: Tensor) -> Tensor:
    """This process's piece of a value that is sharded like another tensor, or whole."""
    return piece_of(value) if is_sharded(value) else own_piece(value, like)


class Pieces(Tensors):
    """This process's pieces of tensors, `of`, some or all of which are sharded."""

    __slots__ = ("of",)

    def __init__(self, pieces: Sequence[Tensor], of: Sequence[Tensor]) -> None:
        super().__init__(pieces)
        self.of: Tensors = list(of)

    def summed(self, numbers: Tensor, *, largest: bool = False) -> Tensor:
        """Numbers, (tensors,), each added up over the processes that hold the other pieces of its tensor.

        Args:
            numbers: what was measured of the pieces here.
            largest: the largest instead of the sum.
        """
        import torch.distributed as dist

        over: dict[tuple[Any, int], list[int]] = {}
        for i, one in enumerate(self.of):
            if is_sharded(one):
                sharded: Any = one
                for dim, placement in enumerate(sharded.placements):
                    if not placement.is_replicate():
                        over.setdefault((sharded.device_mesh, dim), []).append(i)
        op = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
        for (mesh, dim), places in over.items():
            alike = len(places) == len(numbers)  # nearly always; places on a GPU would have to be waited for
            part = (numbers if alike else numbers[places]).to(mesh.device_type, copy=True)
            dist.all_reduce(part, op, group=mesh.get_group(dim))
            part = part.to(numbers.device)
            numbers = part if alike else numbers.index_copy(0, torch.tensor(places, device=numbers.device), part)
        return numbers

    def total_norm(self, order: float) -> Tensor:
        """The norm of all numbers of all tensors together, a scalar, from the pieces of them here.

        Args:
            order: of the norm; ``math.inf`` for the largest number.
        """
        if not self:
            return torch.zeros(())
        own = torch.stack([torch.linalg.vector_norm(one, order) if one.numel() else one.new_zeros(()) for one in self])
        largest = order == math.inf
        of_each = self.summed(own, largest=True) if largest else self.summed(own**order)
        return of_each.amax() if largest else of_each.sum() ** (1 / order)

    def lengths(self, own: Tensor) -> Tensor:
        """The Euclidean length of each whole tensor, (tensors,), from the lengths of its pieces here."""
        exact = own.to(torch.promote_types(own.dtype, torch.float32))  # the square of a length leaves float16
        return self.summed(exact * exact).sqrt().to(own.dtype)

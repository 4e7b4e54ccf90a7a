"""Gradients of a bounded size."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.callbacks.precision import MixedPrecision
from minilearn.errors import describe, in_range, positive
from minilearn.optim.pieces import Pieces, is_sharded, piece_of


class GradientClip(Callback):
    """Clips the gradients before each step: their total norm, each number, or each unit's norm against its weights'.

    They are those of all parameters that the optimizer moves. Nothing waits for the device. With ``compile=True`` the
    model is compiled, the step is carried out as it is. On a CPU a step costs about 340 µs for 20 small parameters by
    norm, 120 µs by value, 1000 µs adaptively, which is torch's own work, and a pass or two over the gradients.

    Args:
        max_norm: the greatest total norm, greater than 0; by default 1 where neither `value` nor `adaptive` is given.
        norm_type: the order of that norm, greater than 0; ``math.inf`` for the greatest number.
        value: instead, the greatest absolute value of each number, greater than 0.
        adaptive: instead, the greatest ratio of a unit's gradient to its weights, both as Euclidean norms, greater than
            0; the paper's is 0.01. A unit is what one output is made of: a row of a linear layer's weights, a filter of
            a convolution's. Vectors, such as biases, are taken as one unit.
        eps: adaptively, the least norm of weights that is reckoned with, greater than 0, so that weights of 0 can move.
        spare: adaptively, modules whose gradients are left alone; the paper's spares the last linear layer.
    Raises:
        ValueError: an argument is out of its range, or more than one of `max_norm`, `value` and `adaptive` is given.
        TypeError: an argument is no number, or `spare` holds something else than modules.
    Source: by norm, `GradientClip` of fastai 2.8; adaptively, Brock et al. 2021, equation 3 (arXiv:2102.06171).
    """

    order = MixedPrecision.order + 1  # once gradients are unscaled

    norm: Tensor | None
    """By norm: the last step's total norm before it was clipped, a scalar on the device; reading its value waits."""

    def __init__(
        self,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        value: float | None = None,
        adaptive: float | None = None,
        eps: float = 1e-3,
        spare: nn.Module | Iterable[nn.Module] = (),
    ) -> None:
        given = {"max_norm": max_norm, "value": value, "adaptive": adaptive}
        chosen = [name for name, number in given.items() if number is not None]
        if len(chosen) > 1:
            raise ValueError(f"GradientClip clips one way: give {chosen[0]} or {chosen[1]}, not both")
        self.max_norm = positive("max_norm", max_norm) if max_norm is not None else None if chosen else 1.0
        self.value = None if value is None else positive("value", value)
        self.adaptive = None if adaptive is None else positive("adaptive", adaptive)
        self.norm_type = math.inf if norm_type == math.inf else in_range("norm_type", norm_type, 0, open_low=True)
        self.eps = positive("eps", eps)
        self.spare = [spare] if isinstance(spare, nn.Module) else list(spare)
        for module in self.spare:
            if not isinstance(module, nn.Module):
                raise TypeError(f"spare must be modules, got {describe(module)}")
        self.norm = None

    def before_step(self) -> None:
        params: list[Any] = [p for group in self.opt.param_groups for p in group["params"] if p.grad is not None]
        if self.adaptive is None and any(map(is_sharded, params)):
            self._clip_pieces([p.grad for p in params])
        elif self.max_norm is not None:
            self.norm = nn.utils.clip_grad_norm_(params, self.max_norm, self.norm_type)
        elif self.value is not None:
            nn.utils.clip_grad_value_(params, self.value)
        else:
            assert self.adaptive is not None
            spared = {p for module in self.spare for p in module.parameters()}
            clip_adaptively_([p for p in params if p not in spared], self.adaptive, self.eps)

    def _clip_pieces(self, grads: list[Tensor]) -> None:
        """Clips sharded gradients by the norm of the whole ones, with one sum over the processes, or by value."""
        pieces: Any = [_Piece(piece_of(grad)) for grad in grads]
        if self.value is not None:
            nn.utils.clip_grad_value_(pieces, self.value)
        else:
            assert self.max_norm is not None
            self.norm = Pieces([piece.grad for piece in pieces], grads).total_norm(self.norm_type)
            nn.utils.clip_grads_with_norm_(pieces, self.max_norm, self.norm)


class _Piece(NamedTuple):
    """Stands in for a parameter, of whose gradient this process has a piece."""

    grad: Tensor


def clip_adaptively_(params: Iterable[Tensor], factor: float, eps: float = 1e-3) -> None:
    """Scales each unit's gradient down to at most `factor` times the norm of its weights.

    Args:
        params: parameters with gradients, (units, …) or a vector.
        factor: the greatest ratio.
        eps: the least norm of weights that is reckoned with.
    Source: Brock et al. 2021, equation 3 (arXiv:2102.06171); vectors as one unit, as in the authors' code.
    """
    with torch.no_grad():
        for p in params:
            assert p.grad is not None
            most = _unit_norms(p).clamp_(min=eps).mul_(factor)
            piece_of(p.grad).mul_((most / _unit_norms(p.grad).clamp_(min=TINY)).clamp_(max=1.0))


TINY = 1e-6
"""The least norm of a gradient that is divided by, as in the authors' code."""


def _unit_norms(value: Tensor) -> Tensor:
    """The Euclidean norm of each unit, shaped to multiply `value`."""
    together = sum(length != 1 for length in value.shape) <= 1
    axes = None if together else tuple(range(1, value.ndim))
    norms: Tensor = torch.linalg.vector_norm(piece_of(value), dim=axes, keepdim=not together)
    if not is_sharded(value):
        return norms
    sharded: Any = value
    if together:
        return Pieces([norms], [value]).lengths(norms.reshape(1)).reshape(())
    if any(placement.is_shard() and placement.dim for placement in sharded.placements):
        raise ValueError(
            f"GradientClip(adaptive=…) measures rows, but a parameter is cut across them: {sharded.placements}"
        )
    return norms

"""Muon: orthogonal steps for the matrices of a network, Adam for everything else, in one optimizer."""

import inspect
import math
from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from minilearn.errors import describe, in_range
from minilearn.optim import kernels, lists
from minilearn.optim.groups import layer_count
from minilearn.optim.optimizer import Optimizer, Options
from minilearn.optim.pieces import Pieces, own_piece, whole_of
from minilearn.optim.steppers import Tensors, adam_step, only_with, weight_decay, whole

A, B, C = 3.4445, -4.7750, 2.0315
"""The iteration's coefficients, chosen for the steepest slope at 0: they take singular values to about 0.7 to 1.2."""
ITERATIONS = 5
SHORTEST = 1e-7
"""A gradient shorter than this is divided by this, so that zeros stay zeros."""


def orthogonal(matrices: Tensor) -> Tensor:
    """Each matrix with its singular values all near 1: U·S·Vᵀ becomes U·S'·Vᵀ, with S' from about 0.7 to 1.2.

    x ← m / ‖m‖, then five times x ← a·x + (b·G + c·G²)·x with G = x·xᵀ (Newton and Schulz, to the fifth power).

    Args:
        matrices: (batch, rows, columns); the work is done in their precision.
    Returns:
        A tensor of the same shape and dtype.
    Source: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/).

    >>> orthogonal(torch.tensor([[[3.0, 0.0], [0.0, 0.03]]])).round(decimals=1)
    tensor([[[0.7000, 0.0000],
             [0.0000, 0.7000]]])
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # x·xᵀ is then the smaller of the two products
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=SHORTEST)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        factor = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        x = torch.baddbmm(x, factor, x, beta=A)
    return x.mT if tall else x


@whole
@only_with("muon")
def muon_step(
    params: Tensors, grads: Tensors, grad_avg: Tensors, *, lr: float, mom: float, nesterov: bool, match_adam: bool
) -> Tensors:
    """A step of about the same length in every direction of a matrix; kernels of more axes are (out, all the rest).

    grad_avg ← mom·grad_avg + (1 - mom)·g
    d = mom·grad_avg + (1 - mom)·g with `nesterov`, else grad_avg
    p ← p - lr·s·orthogonal(d), with s = 0.2·√max(rows, columns) to `match_adam`, else √max(1, rows / columns)

    Matrices of the same shape are worked on together. On a CUDA GPU from compute capability 8.0 on that is done in
    bfloat16, as the iteration forgives the rounding and tensor cores are many times as fast; on a CPU it would be
    slower (4 to 12 times, Xeon, torch 2.13), so there it is the parameters' precision. float64 stays float64.
    Of sharded parameters each process gathers one direction after another, works on all of it, and takes its own rows.

    Source: Jordan et al. 2024; Liu et al. 2025, equation 4 (arXiv:2502.16982); `torch.optim.Muon`.
    """
    lists.lerp_(grad_avg, grads, 1 - mom)
    directions = lists.lerp(grads, grad_avg, mom) if nesterov else grad_avg
    whole = params.of if isinstance(params, Pieces) else params
    alike: dict[tuple[int, int], list[int]] = {}
    for i, p in enumerate(whole):
        alike.setdefault(_matrix_shape(p), []).append(i)
    for (rows, columns), places in alike.items():
        scale = 0.2 * math.sqrt(max(rows, columns)) if match_adam else math.sqrt(max(1.0, rows / columns))
        for some in [[i] for i in places] if isinstance(params, Pieces) else [places]:  # one at a time is whole
            stack = torch.stack([whole_of(directions[i], whole[i]).flatten(1) for i in some])
            steps = orthogonal(stack.to(_precision(stack))).to(stack.dtype).contiguous()
            moves = [own_piece(step.view(whole[i].shape), whole[i]) for i, step in zip(some, steps, strict=True)]
            lists.add_([params[i] for i in some], moves, -lr * scale)
    return grads


def _precision(matrices: Tensor) -> torch.dtype:
    if not matrices.is_cuda or matrices.dtype == torch.float64:
        return matrices.dtype
    return torch.bfloat16 if torch.cuda.get_device_capability(matrices.device) >= (8, 0) else matrices.dtype


def _matrix_shape(p: Tensor) -> tuple[int, int]:
    """Rows and columns of a parameter of at least two axes, seen as a matrix."""
    rows = p.shape[0]
    return rows, p.numel() // rows if rows else 0


@only_with("adam")
def _adam(*args: Any, **kwargs: Any) -> Tensors:
    """`adam_step`, for groups whose ``"adam"`` is true."""
    return adam_step(*args, **kwargs)


@kernels.kernel("grad_avg", "sqr_avg", when=lambda group: bool(group["adam"]))
def _adam_kernel(**hypers: Any) -> kernels.Run:
    """Adam's kernel, for groups whose ``"adam"`` is true."""
    return kernels.adam(**hypers)


# The engine reads what a rule takes off its signature; functools.wraps would change the names they are pickled by.
_adam.__signature__ = inspect.signature(adam_step)  # type: ignore[attr-defined]
_adam_kernel.__signature__ = inspect.signature(kernels.adam)  # type: ignore[attr-defined]


class Muon(Optimizer):
    """Muon for the weights of linear layers and convolutions, Adam for the rest.

    Muon's parameters are those that are matrices with at least two rows and columns, kernels seen as (out, all the
    rest); Adam's are biases, norms, and matrices of a single row or column. Of each group that is given, the two kinds
    become groups of their own, with the same settings; ``group["muon"]`` and ``group["adam"]`` say which it is. Both
    are one layer, for rates by layer and for freezing.

    Embeddings and the last layer are matrices too, though both papers leave them to Adam, as they do positions and
    class tokens. An optimizer sees shapes, not layers, so say so: ``partial(Muon, adam=[model.embed, model.head])``, or
    a group with ``"muon": False``. Without that they are trained by Muon.

    Args:
        params: parameters or groups of them.
        lr: learning rate, in parameter units. With `match_adam` what suits Adam suits both kinds.
        mom: the decay of the gradients' average for Muon, in [0, 1).
        wd: decoupled weight decay, in [0, ∞).
        adam: modules and parameters that Adam trains, whatever their shape.
        match_adam: steps as long as Adam's usual ones (Liu et al.). False is Jordan's scale, with which matrices want a
            rate of their own, about 0.02: for a loop that sets the rate of each group.
        nesterov: look ahead along the momentum.
        adam_mom: the decay of the gradients' average for Adam, in [0, 1).
        sqr_mom: the decay of the squared gradients' average for Adam, in [0, 1).
        eps: added to Adam's root, in gradient units.
        options: `l1`; `compile` changes nothing, as matrices are worked on whole.
    Raises:
        TypeError: `adam` has something else than modules and parameters.
        ValueError: a hyperparameter is out of its range.
    Source: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/), Liu et al. 2025 (arXiv:2502.16982); for
        matrices equal to `torch.optim.Muon(adjust_lr_fn="match_rms_adamw" if match_adam else "original")`.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> opt = Muon(model.parameters(), lr=1e-3, adam=[model[-1]])
    >>> [(group["muon"], [tuple(p.shape) for p in group["params"]]) for group in opt.param_groups]
    [(True, [(8, 4)]), (False, [(8,), (3, 8), (3,)])]
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        mom: float = 0.95,
        wd: float = 0.01,
        adam: Iterable[nn.Module | Tensor] = (),
        *,
        match_adam: bool = True,
        nesterov: bool = True,
        adam_mom: float = 0.9,
        sqr_mom: float = 0.99,
        eps: float = 1e-5,
        **options: Unpack[Options],
    ) -> None:
        self._adam_mom = in_range("Muon: adam_mom", adam_mom, 0, 1)
        self._given_to_adam = _parameters(adam)
        hypers: Any = {"lr": lr, "mom": mom, "wd": wd, "match_adam": match_adam, "nesterov": nesterov}
        rules = [weight_decay, muon_step, _adam]
        super().__init__(params, rules, kernels=[_adam_kernel], **hypers, sqr_mom=sqr_mom, eps=eps, **options)
        self._compiles = False  # a matrix is no line of numbers

    def __getstate__(self) -> dict[str, Any]:
        own = {"_adam_mom": self._adam_mom, "_given_to_adam": self._given_to_adam}
        return {**super().__getstate__(), **own}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as two where it has parameters of both kinds; with ``"muon": False`` all are Adam's.

        Raises:
            ValueError: a hyperparameter is out of its range.
            TypeError: a parameter is complex.
        """
        params = param_group["params"]
        if isinstance(params, set):  # torch says why not
            super().add_param_group(param_group)
        params = [params] if isinstance(params, Tensor) else list(params)
        takes_muon = [param_group.get("muon", True) and self._is_for_muon(p) for p in params]
        layer = param_group.get("layer", layer_count(self))  # both groups are one layer
        norms = set(param_group.get("norms", ()))
        for muon in (True, False):
            places = [i for i, takes in enumerate(takes_muon) if takes == muon]
            if places or not (params or muon):
                own = {"mom": self._adam_mom} if not muon else {}
                kind = {"muon": muon, "adam": not muon, "layer": layer}
                if norms:
                    kind["norms"] = [at for at, i in enumerate(places) if i in norms]
                super().add_param_group({**own, **param_group, "params": [params[i] for i in places], **kind})

    def _is_for_muon(self, named: Any) -> bool:
        p = named[1] if isinstance(named, tuple) else named  # torch takes (name, parameter) too
        if not isinstance(p, Tensor) or any(p is given for given in self._given_to_adam):
            return False
        return p.ndim >= 2 and min(_matrix_shape(p)) >= 2


def _parameters(adam: Iterable[nn.Module | Tensor]) -> list[Tensor]:
    """The parameters of modules, and parameters, in one list."""
    if not isinstance(adam, (list, tuple)):  # partial(Muon, adam=generator) would be empty from the second use on
        raise TypeError(f"Muon: adam must be a list of modules and parameters, got {describe(adam)}")
    found: list[Tensor] = []
    for part in adam:
        if not isinstance(part, (nn.Module, Tensor)):
            raise TypeError(f"Muon: adam must be a list of modules and parameters, but has {describe(part)}")
        found += part.parameters() if isinstance(part, nn.Module) else [part]
    return found

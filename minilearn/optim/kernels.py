"""The rules once more, each in one pass over the memory: what runs where torch has a kernel that can do the work.

Each is called like a stepper and does what the steppers of its recipe do together; a test holds both equal. torch has
kernels for SGD, Adam and Adagrad. Some other rules are one of these in disguise, with numbers put in that nobody would
ask for; those are used on a CPU.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from minilearn.optim import lists
from minilearn.optim.steppers import lamb_ratio, nadam_shares, qhadam_shares, radam_trust

Tensors = list[Tensor]
Kernel = Callable[..., None]


def kernel(
    *, when: Callable[[dict[str, Any]], bool] = lambda group: True, cpu_only: bool = False, in_blocks: bool = False
) -> Callable[[Kernel], Kernel]:
    """Marks a rule in one pass.

    Args:
        when: whether it does the work for a group's hyperparameters.
        cpu_only: whether it is for a CPU alone.
        in_blocks: whether it needs scratch memory, so that a CPU runs it block by block.
    """

    def mark(function: Kernel) -> Kernel:
        function.when, function.cpu_only, function.in_blocks = when, cpu_only, in_blocks  # type: ignore[attr-defined]
        return function

    return mark


def _decay_(params: Tensors, lr: float, wd: float, decouple_wd: bool) -> float:
    """Carries out decoupled decay; returns what is left to the kernel, L2."""
    if decouple_wd and wd:
        lists.mul_(params, 1 - lr * wd)
    return 0.0 if decouple_wd else wd


@kernel(when=lambda group: not group["mom"])
def plain_sgd(params: Tensors, grads: Tensors, *, lr: float, wd: float, decouple_wd: bool = True) -> None:
    """SGD without momentum."""
    lists.sgd_kernel_(params, grads, [], lr=lr, l2=_decay_(params, lr, wd, decouple_wd))


@kernel(when=lambda group: bool(group["mom"]))
def sgd(
    params: Tensors,
    grads: Tensors,
    grad_avg: Tensors,
    *,
    lr: float,
    mom: float,
    wd: float,
    decouple_wd: bool = True,
    nesterov: bool = False,
) -> None:
    """SGD with momentum."""
    left = _decay_(params, lr, wd, decouple_wd)
    lists.sgd_kernel_(params, grads, grad_avg, lr=lr, mom=mom, l2=left, nesterov=nesterov)


@kernel()
def adagrad(
    params: Tensors, grads: Tensors, sqr_sum: Tensors, *, lr: float, eps: float, wd: float, decouple_wd: bool = True
) -> None:
    """Adagrad."""
    lists.adagrad_kernel_(params, grads, sqr_sum, lr=lr, eps=eps, l2=_decay_(params, lr, wd, decouple_wd))


@kernel()
def adam(
    params: Tensors,
    grads: Tensors,
    grad_avg: Tensors,
    sqr_avg: Tensors,
    *,
    lr: float,
    mom: float,
    sqr_mom: float,
    eps: float,
    wd: float,
    step: int,
    decouple_wd: bool = True,
) -> None:
    """Adam and AdamW."""
    hypers: Any = {"lr": lr, "mom": mom, "sqr_mom": sqr_mom, "eps": eps, "step": step}
    decay, l2 = (wd, 0.0) if decouple_wd else (0.0, wd)
    lists.adam_kernel_(params, grads, grad_avg, sqr_avg, decay=decay, l2=l2, **hypers)


@kernel(when=lambda group: not group["mom"], cpu_only=True)
def rms_prop(
    params: Tensors, grads: Tensors, sqr_avg: Tensors, *, lr: float, sqr_mom: float, eps: float, wd: float
) -> None:
    """RMSProp: Adam whose average is the gradient itself, after so many steps that nothing is left to debias.

    The gradient is written over with its own numbers; an infinite one becomes nan, as its parameter does.
    """
    _decay_(params, lr, wd, decouple_wd=True)
    lists.adam_kernel_(params, grads, grads, sqr_avg, lr=lr, mom=0.0, sqr_mom=sqr_mom, eps=eps, step=1 << 53)


@kernel(cpu_only=True)
def radam(
    params: Tensors,
    grads: Tensors,
    grad_avg: Tensors,
    sqr_avg: Tensors,
    *,
    lr: float,
    mom: float,
    sqr_mom: float,
    eps: float,
    wd: float,
    step: int,
    decouple_wd: bool = True,
) -> None:
    """RAdam: Adam at `radam_trust` times its rate, with an eps that is added before the root is debiased.

    While there is no trust yet, eps is made so large that beside it the root is nothing.
    """
    left = _decay_(params, lr, wd, decouple_wd)
    trust = radam_trust(sqr_mom, step)
    if trust is None:
        trust, eps = VAST, VAST
    else:
        eps /= math.sqrt(1 - sqr_mom**step)
    hypers: Any = {"mom": mom, "sqr_mom": sqr_mom, "eps": eps, "step": step}
    lists.adam_kernel_(params, grads, grad_avg, sqr_avg, lr=lr * trust, l2=left, **hypers)


VAST = 1e22
"""Far above any gradient; and its product with one, and with a rate, is far below what float32 holds."""


@kernel(cpu_only=True, in_blocks=True)
def nadam(
    params: Tensors,
    grads: Tensors,
    grad_avg: Tensors,
    sqr_avg: Tensors,
    *,
    lr: float,
    mom: float,
    sqr_mom: float,
    eps: float,
    mom_decay: float,
    wd: float,
    step: int,
) -> None:
    """NAdam with decoupled decay."""
    _decay_(params, lr, wd, decouple_wd=True)
    shares = nadam_shares(mom, mom_decay, step)
    _mixed_adam_(params, grads, grad_avg, sqr_avg, shares, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, step=step)


@kernel(when=lambda group: group["nu_2"] == 1 and group["nu_1"] <= 1, cpu_only=True, in_blocks=True)
def qhadam(
    params: Tensors,
    grads: Tensors,
    grad_avg: Tensors,
    sqr_avg: Tensors,
    *,
    lr: float,
    mom: float,
    sqr_mom: float,
    nu_1: float,
    eps: float,
    wd: float,
    step: int,
) -> None:
    """QHAdam with nu_2 = 1 and decoupled decay."""
    _decay_(params, lr, wd, decouple_wd=True)
    shares = qhadam_shares(mom, nu_1, step)
    _mixed_adam_(params, grads, grad_avg, sqr_avg, shares, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, step=step)


def _mixed_adam_(
    params: Tensors,
    grads: Tensors,
    grad_avg: Tensors,
    sqr_avg: Tensors,
    shares: tuple[float, float],
    *,
    lr: float,
    mom: float,
    sqr_mom: float,
    eps: float,
    step: int,
) -> None:
    """Adam along avg_share·grad_avg + grad_share·g, with the new average, the shares at least 0.

    With mix in place of mom, what the kernel makes of a copy of the average is that sum, over the sum of the shares.
    The new average itself lies between the old one and that.
    """
    avg_share, grad_share = shares
    total = avg_share + grad_share
    mix = avg_share * mom / total
    direction = lists.copy(grad_avg)
    hypers: Any = {"mom": mix, "sqr_mom": sqr_mom, "eps": eps, "step": step}
    lists.adam_kernel_(params, grads, direction, sqr_avg, lr=lr * total * (1 - mix**step), **hypers)
    lists.lerp_(grad_avg, direction, (1 - mom) / (1 - mix))


@kernel(when=lambda group: group["mom"] < group["avg_mom"], cpu_only=True, in_blocks=True)
def lion(
    params: Tensors, grads: Tensors, grad_avg: Tensors, *, lr: float, mom: float, avg_mom: float, wd: float
) -> None:
    """Lion with decoupled decay: with share = mom / avg_mom, its direction is that of g + share/(1-share)·grad_avg.

    grad_avg is the new average there, so that SGD's kernel finds both in one pass; and by its sign another moves p.
    """
    _decay_(params, lr, wd, decouple_wd=True)
    share = mom / avg_mom
    direction = lists.copy(grads, like=grad_avg)
    lists.sgd_kernel_(direction, grads, grad_avg, lr=-share / (1 - share), mom=avg_mom, dampening=avg_mom)
    lists.sign_(direction)
    lists.sgd_kernel_(params, direction, [], lr=lr)


@kernel(cpu_only=True, in_blocks=True)
def lamb(
    params: Tensors,
    grads: Tensors,
    grad_avg: Tensors,
    sqr_avg: Tensors,
    *,
    lr: float,
    mom: float,
    sqr_mom: float,
    eps: float,
    wd: float,
    step: int,
) -> None:
    """Lamb with decoupled decay: a parameter of zeros that Adam moves with a rate of -1 is Adam's step."""
    _decay_(params, lr, wd, decouple_wd=True)
    delta = lists.zeros(grad_avg)
    hypers: Any = {"mom": mom, "sqr_mom": sqr_mom, "eps": eps, "step": step}
    lists.adam_kernel_(delta, grads, grad_avg, sqr_avg, lr=-1.0, **hypers)
    ratio = lamb_ratio(lists.norm(params, like=delta), lists.norm(delta))
    if len(params) > 1:
        lists.scale_each_(delta, ratio)
    lists.sgd_kernel_(params, delta, [], lr=lr if len(params) > 1 else lr * ratio.item())

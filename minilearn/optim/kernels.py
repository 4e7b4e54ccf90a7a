"""The rules once more, each in one pass over the memory: what runs where torch has a kernel that can do the work.

A kernel is made of a step's hyperparameters and then called for each block of parameters, gradients and pieces of
state: it does what the steppers of its recipe do together, and a test holds both equal. torch has kernels for SGD, Adam
and Adagrad. Some other rules are one of these in disguise, with numbers put in that nobody would ask for; those are
used on a CPU.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from minilearn.optim import lists
from minilearn.optim.steppers import lamb_ratio, nadam_shares, qhadam_shares, radam_trust

Tensors = list[Tensor]
Run = Callable[..., None]
"""Called with lists: parameters, gradients and each piece of state."""


Kernel = Callable[..., Run]
"""Makes a rule in one pass of a step's hyperparameters, which it takes by name."""


def kernel(
    *states: str,
    when: Callable[[dict[str, Any]], bool] = lambda group: True,
    cpu_only: bool = False,
    in_blocks: bool = False,
) -> Callable[[Kernel], Kernel]:
    """Marks what makes a rule in one pass.

    Args:
        states: the pieces of state that it keeps.
        when: whether it does the work for a group's hyperparameters.
        cpu_only: whether it is for a CPU alone.
        in_blocks: whether it goes over the memory more than once, so that a CPU runs it block by block.
    """

    def mark(function: Any) -> Kernel:
        function.states, function.when, function.cpu_only, function.in_blocks = states, when, cpu_only, in_blocks
        return function  # type: ignore[no-any-return]

    return mark


def _after_decay(run: Run, keep: float) -> Run:
    """A kernel before which the parameters shrink to the share `keep`."""
    if keep == 1:
        return run

    def decayed(params: Tensors, *columns: Tensors) -> None:
        lists.mul_(params, keep)
        run(params, *columns)

    return decayed


@kernel(when=lambda group: not group["mom"])
def plain_sgd(*, lr: float, wd: float) -> Run:
    """SGD without momentum, where decoupled decay and L2 are one."""
    return lists.sgd_kernel(lr=lr, l2=wd)


@kernel("grad_avg", when=lambda group: bool(group["mom"]))
def sgd(*, lr: float, mom: float, wd: float, decouple_wd: bool = True, nesterov: bool = False) -> Run:
    """SGD with momentum."""
    run = lists.sgd_kernel(lr=lr, mom=mom, l2=0.0 if decouple_wd else wd, nesterov=nesterov)
    return _after_decay(run, 1 - lr * wd) if decouple_wd else run


@kernel("sqr_sum")
def adagrad(*, lr: float, eps: float, wd: float, decouple_wd: bool = True) -> Run:
    """Adagrad."""
    run = lists.adagrad_kernel(lr=lr, eps=eps, l2=0.0 if decouple_wd else wd)
    return _after_decay(run, 1 - lr * wd) if decouple_wd else run


@kernel("grad_avg", "sqr_avg")
def adam(*, lr: float, mom: float, sqr_mom: float, eps: float, wd: float, step: int, decouple_wd: bool = True) -> Run:
    """Adam and AdamW."""
    decay, l2 = (wd, 0.0) if decouple_wd else (0.0, wd)
    return lists.adam_kernel(lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, step=step, decay=decay, l2=l2)


@kernel("sqr_avg", when=lambda group: not group["mom"], cpu_only=True)
def rms_prop(*, lr: float, sqr_mom: float, eps: float, wd: float) -> Run:
    """RMSProp: Adam whose average is the gradient itself, after so many steps that nothing is left to debias.

    The gradient is written over with its own numbers; an infinite one becomes nan, as its parameter does.
    """
    step = lists.adam_kernel(lr=lr, mom=0.0, sqr_mom=sqr_mom, eps=eps, step=1 << 53, decay=wd)

    def run(params: Tensors, grads: Tensors, sqr_avg: Tensors) -> None:
        step(params, grads, grads, sqr_avg)

    return run


@kernel("grad_avg", "sqr_avg", cpu_only=True)
def radam(*, lr: float, mom: float, sqr_mom: float, eps: float, wd: float, step: int, decouple_wd: bool = True) -> Run:
    """RAdam: Adam at `radam_trust` times its rate, with an eps that is added before the root is debiased.

    While there is no trust yet, eps is made so large that beside it the root is nothing.
    """
    trust = radam_trust(sqr_mom, step)
    if trust is None:
        trust, eps = VAST, VAST
    else:
        eps /= math.sqrt(1 - sqr_mom**step)
    decay, l2 = (wd / trust, 0.0) if decouple_wd else (0.0, wd)
    return lists.adam_kernel(lr=lr * trust, mom=mom, sqr_mom=sqr_mom, eps=eps, step=step, decay=decay, l2=l2)


VAST = 1e22
"""Far above any gradient; and its product with one, and with a rate, is far below what float32 holds."""


@kernel("grad_avg", "sqr_avg", when=lambda group: group["mom"] >= FAIR, cpu_only=True, in_blocks=True)
def nadam(*, lr: float, mom: float, sqr_mom: float, eps: float, mom_decay: float, wd: float, step: int) -> Run:
    """NAdam with decoupled decay."""
    shares = nadam_shares(mom, mom_decay, step)
    return _mixed_adam(shares, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd, step=step)


@kernel(
    "grad_avg",
    "sqr_avg",
    when=lambda group: group["nu_2"] == 1 and FAIR <= group["nu_1"] <= 1,
    cpu_only=True,
    in_blocks=True,
)
def qhadam(*, lr: float, mom: float, sqr_mom: float, nu_1: float, eps: float, wd: float, step: int) -> Run:
    """QHAdam with nu_2 = 1 and decoupled decay."""
    shares = qhadam_shares(mom, nu_1, step)
    return _mixed_adam(shares, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd, step=step)


FAIR = 0.25
"""From this momentum, or share of the average, on the average can be got back from its sum with the gradient."""


def _mixed_adam(
    shares: tuple[float, float], *, lr: float, mom: float, sqr_mom: float, eps: float, wd: float, step: int
) -> Run:
    """Adam along avg_share·grad_avg + grad_share·g, grad_avg the new average, the shares at least 0.

    With another momentum in place of mom the kernel's own average is that sum, over the sum of the shares. From it the
    new average is got back along the line from g, on which it lies `total / avg_share` times as far.
    """
    avg_share, grad_share = shares
    total = avg_share + grad_share
    mix = avg_share * mom / total
    longer = total * (1 - mix**step)
    move = lists.adam_kernel(lr=lr * longer, mom=mix, sqr_mom=sqr_mom, eps=eps, step=step, decay=wd / longer)
    get_back = lists.sgd_kernel(lr=total / avg_share - 1, l2=-1.0)

    def run(params: Tensors, grads: Tensors, grad_avg: Tensors, sqr_avg: Tensors) -> None:
        move(params, grads, grad_avg, sqr_avg)
        get_back(grad_avg, grads)

    return run


@kernel("grad_avg", when=lambda group: group["mom"] < group["avg_mom"], cpu_only=True, in_blocks=True)
def lion(*, lr: float, mom: float, avg_mom: float, wd: float) -> Run:
    """Lion with decoupled decay: with share = mom / avg_mom, its direction is that of g + share/(1-share)·grad_avg.

    grad_avg is the new average there, so that SGD's kernel finds both in one pass; and by its sign another moves p.
    """
    share = mom / avg_mom
    average = lists.sgd_kernel(lr=-share / (1 - share), mom=avg_mom, dampening=avg_mom)
    move = lists.sgd_kernel(lr=lr, l2=wd)

    def run(params: Tensors, grads: Tensors, grad_avg: Tensors) -> None:
        direction = lists.copy(grads, like=grad_avg)
        average(lists.as_one(direction), lists.as_one(direction), lists.as_one(grad_avg))
        lists.sign_(direction)
        move(params, direction)

    return run


@kernel("grad_avg", "sqr_avg", cpu_only=True, in_blocks=True)
def lamb(*, lr: float, mom: float, sqr_mom: float, eps: float, wd: float, step: int) -> Run:
    """Lamb with decoupled decay: a parameter of zeros that Adam moves with a rate of -1 is Adam's step."""
    find = lists.adam_kernel(lr=-1.0, mom=mom, sqr_mom=sqr_mom, eps=eps, step=step)

    def run(params: Tensors, grads: Tensors, grad_avg: Tensors, sqr_avg: Tensors) -> None:
        delta = lists.zeros(grad_avg)
        find(delta, grads, grad_avg, sqr_avg)
        ratio = lamb_ratio(lists.norm(params, like=delta), lists.norm(delta))
        if len(params) > 1:
            lists.scale_each_(delta, ratio)
        lists.sgd_kernel(lr=lr if len(params) > 1 else lr * ratio.item())(params, delta)

    return _after_decay(run, 1 - lr * wd)

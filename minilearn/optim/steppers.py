"""The rules: one function a change to the update, each the formula in its docstring, over lists of tensors.

A stepper is called as ``stepper(params, grads, *states, **hypers)``:

- `params` and `grads` are lists of tensors of one device and dtype; what it returns are the gradients that the next
  stepper sees. The last stepper of a recipe moves the parameters.
- every further positional argument is a piece of state by its name: a list of tensors, one a parameter, zeros at
  first, changed in place. It is found again as ``optimizer.state[p][name]``.
- every keyword-only argument is a hyperparameter of the group, by its name. `step` is the number of steps that
  these parameters have made, this one counted.

In the formulas, p is a parameter, g its gradient, t the step, ← an assignment in place.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minilearn.optim import lists

Tensors = list[Tensor]
Stepper = Callable[..., Tensors]


def whole(stepper: Stepper) -> Stepper:
    """Marks a stepper that must see each parameter whole, as it measures its length: the engine then cuts none."""
    stepper.whole = True  # type: ignore[attr-defined]
    return stepper


def only_with(hyper: str) -> Callable[[Stepper], Stepper]:
    """Marks a stepper that changes nothing while the hyperparameter `hyper` is 0: the engine then leaves it out."""

    def mark(stepper: Stepper) -> Stepper:
        stepper.only_with = hyper  # type: ignore[attr-defined]
        return stepper

    return mark


@only_with("wd")
def weight_decay(params: Tensors, grads: Tensors, *, lr: float, wd: float) -> Tensors:
    """Decoupled: p ← p · (1 - lr·wd). Source: Loshchilov and Hutter 2019, algorithm 2 (arXiv:1711.05101)."""
    lists.mul_(params, 1 - lr * wd)
    return grads


@only_with("wd")
def l2_reg(params: Tensors, grads: Tensors, *, wd: float) -> Tensors:
    """L2 regularisation: g' = g + wd·p, the gradient of wd/2·p² added to the loss's."""
    return lists.add(grads, params, wd)


@only_with("mom")
def momentum(params: Tensors, grads: Tensors, grad_avg: Tensors, *, mom: float) -> Tensors:
    """Heavy ball: grad_avg ← mom·grad_avg + g, and g' = grad_avg. Source: Polyak 1964; `torch.optim.SGD`'s form."""
    lists.mul_(grad_avg, mom)
    lists.add_(grad_avg, grads)
    return grad_avg


@only_with("l1")
def l1_reg(params: Tensors, grads: Tensors, *, l1: float) -> Tensors:
    """L1 regularisation: g' = g + l1·sign(p), the gradient of l1·|p| added to the loss's."""
    return lists.add(grads, lists.sign(params), l1)


@only_with("mom")
def nesterov_momentum(params: Tensors, grads: Tensors, grad_avg: Tensors, *, mom: float) -> Tensors:
    """A look ahead: grad_avg ← mom·grad_avg + g, and g' = g + mom·grad_avg. Source: Sutskever et al. 2013."""
    lists.mul_(grad_avg, mom)
    lists.add_(grad_avg, grads)
    return lists.add(grads, grad_avg, mom)


@only_with("mom")
def dampened_momentum(
    params: Tensors, grads: Tensors, grad_avg: Tensors, *, mom: float, dampening: float, step: int
) -> Tensors:
    """grad_avg ← mom·grad_avg + (1 - dampening)·g, in the first step g itself; g' = grad_avg. `torch.optim.SGD`'s."""
    lists.mul_(grad_avg, mom)
    lists.add_(grad_avg, grads, 1.0 if step == 1 else 1 - dampening)
    return grad_avg


def sgd_step(params: Tensors, grads: Tensors, *, lr: float) -> Tensors:
    """p ← p - lr·g."""
    lists.add_(params, grads, -lr)
    return grads


def _average(grad_avg: Tensors, sqr_avg: Tensors, grads: Tensors, mom: float, sqr_mom: float) -> None:
    """Adam's two averages: grad_avg ← mom·grad_avg + (1 - mom)·g, sqr_avg ← sqr_mom·sqr_avg + (1 - sqr_mom)·g²."""
    lists.lerp_(grad_avg, grads, 1 - mom)
    _average_square(sqr_avg, grads, sqr_mom)


def _average_square(sqr_avg: Tensors, grads: Tensors, sqr_mom: float) -> None:
    lists.mul_(sqr_avg, sqr_mom)
    lists.addcmul_(sqr_avg, grads, grads, 1 - sqr_mom)


def adam_step(
    params: Tensors,
    grads: Tensors,
    grad_avg: Tensors,
    sqr_avg: Tensors,
    *,
    lr: float,
    mom: float,
    sqr_mom: float,
    eps: float,
    step: int,
) -> Tensors:
    """The averages of g and g², each over 1 - decay^t as they began at zero, and a step in units of the second's root.

    grad_avg ← mom·grad_avg + (1 - mom)·g
    sqr_avg ← sqr_mom·sqr_avg + (1 - sqr_mom)·g²
    p ← p - lr · (grad_avg / (1 - mom^t)) / (√(sqr_avg / (1 - sqr_mom^t)) + eps)

    Source: Kingma and Ba 2015, algorithm 1 (arXiv:1412.6980).
    """
    _average(grad_avg, sqr_avg, grads, mom, sqr_mom)
    scale = lists.sqrt(sqr_avg)
    lists.div_(scale, math.sqrt(1 - sqr_mom**step))
    lists.add_number_(scale, eps)
    lists.addcdiv_(params, grad_avg, scale, -lr / (1 - mom**step))
    return grads


def rms_scale(params: Tensors, grads: Tensors, sqr_avg: Tensors, *, sqr_mom: float, eps: float) -> Tensors:
    """Each gradient in units of its own recent size.

    sqr_avg ← sqr_mom·sqr_avg + (1 - sqr_mom)·g²
    g' = g / (√sqr_avg + eps)

    Source: Hinton, lecture 6e of "Neural Networks for Machine Learning", 2012; eps as in `torch.optim.RMSprop`.
    """
    _average_square(sqr_avg, grads, sqr_mom)
    scale = lists.sqrt(sqr_avg)
    lists.add_number_(scale, eps)
    return lists.div(grads, scale)


def centred_rms_scale(
    params: Tensors, grads: Tensors, sqr_avg: Tensors, mean_avg: Tensors, *, sqr_mom: float, eps: float
) -> Tensors:
    """Like `rms_scale`, in units of the recent spread around the mean: g' = g / (√(sqr_avg - mean_avg²) + eps).

    Source: Graves 2013, equations 38 to 45 (arXiv:1308.0850); `torch.optim.RMSprop(centered=True)`.
    """
    _average_square(sqr_avg, grads, sqr_mom)
    lists.lerp_(mean_avg, grads, 1 - sqr_mom)
    scale = lists.mul(mean_avg, mean_avg)
    lists.mul_(scale, -1.0)
    lists.add_(scale, sqr_avg)
    lists.sqrt_(scale)
    lists.add_number_(scale, eps)
    return lists.div(grads, scale)


def adagrad_step(params: Tensors, grads: Tensors, sqr_sum: Tensors, *, lr: float, eps: float) -> Tensors:
    """sqr_sum ← sqr_sum + g², p ← p - lr·g / (√sqr_sum + eps). Source: Duchi et al. 2011, equation 1."""
    lists.addcmul_(sqr_sum, grads, grads, 1.0)
    scale = lists.sqrt(sqr_sum)
    lists.add_number_(scale, eps)
    lists.addcdiv_(params, grads, scale, -lr)
    return grads


def adadelta_step(
    params: Tensors, grads: Tensors, sqr_avg: Tensors, delta_avg: Tensors, *, lr: float, sqr_mom: float, eps: float
) -> Tensors:
    """Steps in the parameters' own units: as large as recent steps, as far as the gradient is larger than recent ones.

    sqr_avg ← sqr_mom·sqr_avg + (1 - sqr_mom)·g²
    d = g · √((delta_avg + eps) / (sqr_avg + eps))
    delta_avg ← sqr_mom·delta_avg + (1 - sqr_mom)·d²
    p ← p - lr·d

    Source: Zeiler 2012, algorithm 1 (arXiv:1212.5701).
    """
    _average_square(sqr_avg, grads, sqr_mom)
    scale = lists.add_number(sqr_avg, eps)
    delta = lists.add_number(delta_avg, eps)
    lists.div_each_(delta, scale)
    lists.sqrt_(delta)
    lists.mul_each_(delta, grads)
    lists.mul_(delta_avg, sqr_mom)
    lists.addcmul_(delta_avg, delta, delta, 1 - sqr_mom)
    lists.add_(params, delta, -lr)
    return grads


def radam_step(
    params: Tensors,
    grads: Tensors,
    grad_avg: Tensors,
    sqr_avg: Tensors,
    *,
    lr: float,
    mom: float,
    sqr_mom: float,
    eps: float,
    step: int,
) -> Tensors:
    """Adam whose step is scaled by how far the average of g² can be trusted yet, and without it before that.

    With r∞ = 2 / (1 - sqr_mom) - 1 and r = r∞ - 2·t·sqr_mom^t / (1 - sqr_mom^t):
    r > 5: p ← p - lr · v · m̂ · √(1 - sqr_mom^t) / (√sqr_avg + eps), v² = (r-4)(r-2)r∞ / ((r∞-4)(r∞-2)r)
    else: p ← p - lr · m̂, where m̂ = grad_avg / (1 - mom^t)

    Source: Liu et al. 2020, algorithm 2 (arXiv:1908.03265); eps as in `torch.optim.RAdam`.
    """
    _average(grad_avg, sqr_avg, grads, mom, sqr_mom)
    debias, trust = 1 - mom**step, radam_trust(sqr_mom, step)
    if trust is None:
        lists.add_(params, grad_avg, -lr / debias)
        return grads
    scale = lists.sqrt(sqr_avg)
    lists.add_number_(scale, eps)
    lists.addcdiv_(params, grad_avg, scale, -lr * trust * math.sqrt(1 - sqr_mom**step) / debias)
    return grads


def radam_trust(sqr_mom: float, step: int) -> float | None:
    """How far the average of g² can be trusted, v in `radam_step`; None where not at all."""
    limit = 2 / (1 - sqr_mom) - 1
    r = limit - 2 * step * sqr_mom**step / (1 - sqr_mom**step)
    return math.sqrt((r - 4) * (r - 2) * limit / ((limit - 4) * (limit - 2) * r)) if r > 5 else None


def nadam_step(
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
    step: int,
) -> Tensors:
    """Adam with Nesterov's look ahead, and a momentum that warms up: u_t = mom·(1 - 0.96^(t·mom_decay) / 2).

    p ← p - lr · ((1 - u_t)·g / (1 - ∏u) + u_{t+1}·grad_avg / (1 - ∏u·u_{t+1})) / (√(sqr_avg / (1 - sqr_mom^t)) + eps)

    Source: Dozat 2016, algorithm 2; `torch.optim.NAdam`.
    """
    _average(grad_avg, sqr_avg, grads, mom, sqr_mom)
    avg_share, grad_share = nadam_shares(mom, mom_decay, step)
    scale = lists.sqrt(sqr_avg)
    lists.div_(scale, math.sqrt(1 - sqr_mom**step))
    lists.add_number_(scale, eps)
    lists.addcdiv_(params, grads, scale, -lr * grad_share)
    lists.addcdiv_(params, grad_avg, scale, -lr * avg_share)
    return grads


def nadam_shares(mom: float, mom_decay: float, step: int) -> tuple[float, float]:
    """What the average and the gradient count in NAdam's direction."""
    now, ahead = (mom * (1 - 0.5 * 0.96 ** (t * mom_decay)) for t in (step, step + 1))
    product = _momentum_product(mom, mom_decay, step)
    return ahead / (1 - product * ahead), (1 - now) / (1 - product)


_products: dict[tuple[float, float, int], float] = {}
"""NAdam's products of momenta, by the two hyperparameters and the step: each step is one factor on from the last."""


def _momentum_product(mom: float, mom_decay: float, step: int) -> float:
    known = _products.get((mom, mom_decay, step))
    if known is not None:
        return known
    before = _products.get((mom, mom_decay, step - 1))
    first, product = (1, 1.0) if before is None else (step, before)
    for t in range(first, step + 1):
        if product < 1e-20:  # beside 1 that is nothing; and after a million steps the loop would be felt
            break
        product *= mom * (1 - 0.5 * 0.96 ** (t * mom_decay))
    if len(_products) >= 10_000:
        _products.clear()
    _products[mom, mom_decay, step] = product
    return product


def qhadam_step(
    params: Tensors,
    grads: Tensors,
    grad_avg: Tensors,
    sqr_avg: Tensors,
    *,
    lr: float,
    mom: float,
    sqr_mom: float,
    nu_1: float,
    nu_2: float,
    eps: float,
    step: int,
) -> Tensors:
    """Adam between its averages and the gradient of the moment: nu_1 and nu_2 are the averages' shares.

    With m̂ = grad_avg / (1 - mom^t) and v̂ = sqr_avg / (1 - sqr_mom^t):
    p ← p - lr · ((1 - nu_1)·g + nu_1·m̂) / (√((1 - nu_2)·g² + nu_2·v̂) + eps)

    Source: Ma and Yarats 2019, equation 9 (arXiv:1810.06801).
    """
    _average(grad_avg, sqr_avg, grads, mom, sqr_mom)
    if nu_2 == 1:
        scale = lists.sqrt(sqr_avg)
        lists.div_(scale, math.sqrt(1 - sqr_mom**step))
    else:
        scale = lists.mul(grads, grads)
        lists.mul_(scale, 1 - nu_2)
        lists.add_(scale, sqr_avg, nu_2 / (1 - sqr_mom**step))
        lists.sqrt_(scale)
    lists.add_number_(scale, eps)
    avg_share, grad_share = qhadam_shares(mom, nu_1, step)
    lists.addcdiv_(params, grads, scale, -lr * grad_share)
    lists.addcdiv_(params, grad_avg, scale, -lr * avg_share)
    return grads


def qhadam_shares(mom: float, nu_1: float, step: int) -> tuple[float, float]:
    """What the average and the gradient count in QHAdam's direction."""
    return nu_1 / (1 - mom**step), 1 - nu_1


def lion_step(params: Tensors, grads: Tensors, grad_avg: Tensors, *, lr: float, mom: float, avg_mom: float) -> Tensors:
    """p ← p - lr · sign(mom·grad_avg + (1 - mom)·g), then grad_avg ← avg_mom·grad_avg + (1 - avg_mom)·g.

    Source: Chen et al. 2023, algorithm 2 (arXiv:2302.06675).
    """
    direction = lists.lerp(grad_avg, grads, 1 - mom)
    lists.lerp_(grad_avg, grads, 1 - avg_mom)  # before the step: what it reads is in the cache now
    lists.sign_(direction)
    lists.add_(params, direction, -lr)
    return grads


@whole
def lamb_step(
    params: Tensors,
    grads: Tensors,
    grad_avg: Tensors,
    sqr_avg: Tensors,
    *,
    lr: float,
    mom: float,
    sqr_mom: float,
    eps: float,
    step: int,
) -> Tensors:
    """Adam whose step d is as long for each tensor as the tensor itself, though at most ten times d.

    d = (grad_avg / (1 - mom^t)) / (√(sqr_avg / (1 - sqr_mom^t)) + eps)
    p ← p - lr · q·d, q = min(‖p‖ / ‖d‖, 10), or 1 where either is zero

    Source: You et al. 2020, algorithm 2 (arXiv:1904.00962); the bound of 10 as in fastai 2.8.
    """
    _average(grad_avg, sqr_avg, grads, mom, sqr_mom)
    scale = lists.sqrt(sqr_avg)
    lists.div_(scale, math.sqrt(1 - sqr_mom**step))
    lists.add_number_(scale, eps)
    delta = lists.div(grad_avg, scale)
    lists.div_(delta, 1 - mom**step)
    lists.scale_each_(delta, lamb_ratio(lists.norm(params, params), lists.norm(delta, params)))
    lists.add_(params, delta, -lr)
    return grads


def lamb_ratio(param_norm: Tensor, delta_norm: Tensor) -> Tensor:
    """What each tensor's step is multiplied by, q in `lamb_step`: (tensors,)."""
    ratio = (param_norm / delta_norm).clamp(max=10.0)
    return torch.where((param_norm == 0) | (delta_norm == 0), 1.0, ratio)


@whole
def larc_scale(params: Tensors, grads: Tensors, *, trust: float, clip: bool, eps: float, wd: float) -> Tensors:
    """A rate for each tensor from its length: g' = g·r, r = trust·‖p‖ / (‖g‖ + wd·‖p‖ + eps), at most 1 with `clip`.

    Source: You et al. 2017, equation 6 (arXiv:1708.03888); `clip` makes LARC of LARS.
    """
    param_norm, grad_norm = lists.norm(params, params), lists.norm(grads, params)
    rate = trust * param_norm / (grad_norm + wd * param_norm + eps)
    rate = torch.where((param_norm == 0) | (grad_norm == 0), 1.0, rate.clamp(max=1.0) if clip else rate)
    scaled = lists.copy(grads)
    lists.scale_each_(scaled, rate)
    return scaled

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

from torch import Tensor

from minilearn.optim import lists

Tensors = list[Tensor]
Stepper = Callable[..., Tensors]


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


def sgd_step(params: Tensors, grads: Tensors, *, lr: float) -> Tensors:
    """p ← p - lr·g."""
    lists.add_(params, grads, -lr)
    return grads


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
    lists.lerp_(grad_avg, grads, 1 - mom)
    lists.mul_(sqr_avg, sqr_mom)
    lists.addcmul_(sqr_avg, grads, grads, 1 - sqr_mom)
    scale = lists.sqrt(sqr_avg)
    lists.div_(scale, math.sqrt(1 - sqr_mom**step))
    lists.add_number_(scale, eps)
    lists.addcdiv_(params, grad_avg, scale, -lr / (1 - mom**step))
    return grads

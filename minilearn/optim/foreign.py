"""What optimizers from elsewhere ask of a training loop: a single group, a closure, a mode of their own."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minilearn.errors import describe, warn
from minilearn.optim.hypers import place as place_of


def make_optimizer(
    opt_func: Callable[..., Optimizer], groups: list[dict[str, Any]], lr: float, model: nn.Module
) -> Optimizer:
    """An optimizer over `groups`; over one group of all their parameters where it refuses several, as LBFGS does.

    A single group is in the model's order, as ``opt_func(model.parameters(), lr=lr)`` would have it. An optimizer that
    has weight decay can then spare no parameter: a warning says so.

    Args:
        opt_func: called with the groups and ``lr=``.
        groups: the parameter groups as they should be.
        lr: the learning rate.
        model: whose parameters they are.
    Raises:
        TypeError: `opt_func` gives no optimizer.
        Exception: what `opt_func` raises, given the groups.
    """
    try:
        opt = opt_func([dict(group) for group in groups], lr=lr)
    except Exception:
        place = {p: i for i, p in enumerate(model.parameters())}
        params = sorted((p for group in groups for p in group["params"]), key=lambda p: place.get(p, len(place)))
        single = None if len(groups) == 1 else _made_or_none(opt_func, params, lr)
        if single is None:
            raise
        opt = single
        if place_of(opt.param_groups[0], "wd") and any(group.get("no_wd") for group in groups):
            name = type(opt).__name__
            warn(f"{name} takes one group of parameters: weight decay is for biases and normalisation layers too")
    if not all(hasattr(opt, name) for name in ("param_groups", "step", "zero_grad")):
        raise TypeError(f"opt_func must give a torch.optim.Optimizer, got {describe(opt)}")
    return opt


def _made_or_none(opt_func: Callable[..., Optimizer], params: list[Tensor], lr: float) -> Optimizer | None:
    try:
        return opt_func(params, lr=lr)
    except Exception:  # the first error, on the groups, is the one to show
        return None


def needs_closure(opt: Any) -> bool:
    """Whether an optimizer's `step` cannot do without a closure: its argument of that name has no default.

    Within a wrapper that calls it `opt`, the inner optimizer decides. One whose closure is optional by its signature
    alone (most versions of SAM) says it with an attribute of its own: ``opt.needs_closure = True``.

    >>> weight = [torch.ones(1, requires_grad=True)]
    >>> needs_closure(torch.optim.LBFGS(weight)), needs_closure(torch.optim.SGD(weight, 0.1))
    (True, False)
    """
    said = getattr(opt, "needs_closure", None)
    if isinstance(said, bool):
        return said
    inner = getattr(opt, "opt", None)
    if isinstance(inner, Optimizer):
        return needs_closure(inner)
    argument = inspect.signature(getattr(type(opt), "step", opt.step)).parameters.get("closure")
    return argument is not None and argument.default is argument.empty


def closure(opt: Optimizer, loss: Tensor, evaluate: Callable[[], Tensor]) -> Callable[[], Any]:
    """What an optimizer that evaluates the loss itself is given in one step.

    Called first it gives `loss`, whose gradients are there; not so where the optimizer has moved a parameter or cleared
    a gradient before it asks (schedule-free ones, SAM). From then on `evaluate` is called: the loop's has no events, so
    what a callback did to the prediction, the loss or the gradients is in the first evaluation alone.

    Args:
        opt: the optimizer that is about to step.
        loss: the loss that the gradients now there belong to.
        evaluate: computes loss and gradients anew.
    """
    before, asked = _versions(opt), False

    def evaluation() -> Tensor:
        nonlocal asked
        fresh, asked = not asked and _versions(opt) == before, True
        if fresh:
            return loss
        with torch.enable_grad():
            return evaluate()

    return evaluation


def _versions(opt: Optimizer) -> list[tuple[int, int, int]]:
    """How often each parameter and each gradient was written to, without a look at the numbers."""
    return [
        (p._version, id(p.grad), -1 if p.grad is None else p.grad._version)
        for group in opt.param_groups
        for p in group["params"]
    ]


def set_mode(opt: Any, training: bool) -> None:
    """Calls `opt.train()` or `opt.eval()`, where the optimizer has both: schedule-free ones keep two sets of weights.

    Source: Defazio et al. 2024 (arXiv:2405.15682); the methods of facebookresearch/schedule_free.
    """
    train, evaluate = getattr(opt, "train", None), getattr(opt, "eval", None)
    if callable(train) and callable(evaluate) and not isinstance(opt, nn.Module):
        (train if training else evaluate)()

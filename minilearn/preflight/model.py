"""What a model and its optimizer show: modes, gradients, parameters nobody moves, steps that explode."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from minilearn.preflight.batch import shown
from minilearn.preflight.finding import Finding

BY_MODE = (nn.modules.dropout._DropoutNd, nn.AlphaDropout, _BatchNorm)
"""Layers that do other things in training than in evaluation."""
EXPLODED = 5.0
"""How many times the loss before them, or that of chance, the loss after a few steps must be."""
SURELY = 1000.0
"""How many times that again is no learning rate that may be meant."""
UNKNOWN_EXPLODED = 100.0
"""The same where a loss is not known, of its size and 1."""


def in_eval(model: nn.Module) -> Iterator[Finding]:
    """Warns of a model in evaluation mode in training, where that makes a difference."""
    differ = [name for name, module in model.named_modules() if isinstance(module, BY_MODE) and not module.training]
    if not model.training and differ:
        yield Finding(
            "mode",
            f"the model is in evaluation mode in training: dropout and batch norm, {shown(differ)}, do nothing new.",
            "The TrainEval callback, one of the default ones, calls model.train(); without it, do so in before_train.",
            False,
        )


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def without_gradient(model: nn.Module) -> list[str]:
    """The parameters that require a gradient and have none, where others have one: the loss is not made of them."""
    params = trained(model)
    names = [name for name, p in params.items() if p.grad is None and not is_lazy(p)]
    return names if len(names) < len(params) else []  # else the backward pass was left out


def no_gradient(names: Sequence[str], model: nn.Module, batches: int) -> Iterator[Finding]:
    """Warns of parameters that got no gradient in any of some batches."""
    if names:
        yield Finding(
            "gradients",
            f"{len(names)} of the model's {len(trained(model))} trained parameters got no gradient in"
            f" {batches} batch{'es' if batches > 1 else ''}: {shown(list(names))}.",
            "Look for a layer that forward leaves out, and for .detach(), .data or torch.no_grad() after one; where it"
            " is meant, freeze them: requires_grad_(False).",
            False,
        )


def zero_gradient(model: nn.Module) -> Iterator[Finding]:
    """Warns where every gradient is exactly 0, so that nothing is learned."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    if (
        grads
        and not any(bool(g.count_nonzero()) for g in grads if not g.is_sparse)
        and not any(g.is_sparse for g in grads)
    ):
        yield Finding(
            "gradients",
            f"every gradient of the first batch is 0, in all {len(grads)} parameters that have one.",
            "Look for rounding, argmax-like steps, a ReLU at the very end, or a loss that is the same whatever comes.",
            False,
        )


def not_in_optimizer(model: nn.Module, opt: Any) -> Iterator[Finding]:
    """Warns of parameters that require a gradient and that no optimizer moves."""
    held = {id(p) for group in opt.param_groups for p in group["params"]}
    missing = [name for name, p in trained(model).items() if id(p) not in held]
    if missing:
        yield Finding(
            "optimizer",
            f"{len(missing)} of the model's {len(trained(model))} trained parameters are not in the optimizer, which"
            f" leaves them as they are: {shown(missing)}.",
            "Have splitter give them too, or make the optimizer anew, learn.create_opt(); where it is meant, freeze"
            " them: requires_grad_(False).",
            False,
        )


def exploded(losses: Sequence[float], lr: float, chance: float | None) -> Iterator[Finding]:
    """Names a learning rate at which the first steps make the loss far larger.

    Args:
        losses: that before the first step, then after one step, and so on.
        lr: the learning rate of the steps.
        chance: what the loss is for predictions that prefer nothing, in its own units; None where it is not known.
    """
    first, worst = losses[0], max(losses[1:], key=lambda one: one if math.isfinite(one) else math.inf, default=0.0)
    if not math.isfinite(first) or len(losses) < 2:
        return
    most = EXPLODED * max(abs(first), chance) if chance is not None else UNKNOWN_EXPLODED * (abs(first) + 1)
    if not math.isfinite(worst) or worst > most:
        yield Finding(
            "learning rate",
            f"the first steps at lr={lr:g} explode: the loss goes {', '.join(f'{one:.4g}' for one in losses)}.",
            f"Take a smaller one: {lr / 10:g} or {lr / 100:g}, or what learn.lr_find() suggests.",
            not math.isfinite(worst) or worst > SURELY * most,
        )


def single_row(layer: nn.Module, x: Tensor, rows: int) -> bool:
    """Whether batch normalisation sees one number a channel where the batch has a single row.

    Args:
        layer: any module.
        x: its input, (batch, channels, …).
        rows: the rows that the last batch would have, for each that `x` has: its length.
    """
    if not isinstance(layer, _BatchNorm) or not layer.training or x.ndim < 2:
        return False
    per_row = x.numel() // x.shape[1] // max(rows, 1)
    return per_row == 1


def batch_of_one(name: str, bs: int | None, n: int | None) -> Finding:
    """The finding about a last batch of one row, for which batch normalisation has no deviation."""
    of = f"{n:,} rows in batches of {bs} leave a last one of one row" if bs != 1 else "batches are of one row (bs=1)"
    return Finding(
        "batch norm",
        f"batch normalisation cannot train on one row: {of}, and the layer {name} would see one number a channel.",
        "Leave the last, smaller batch out, drop_last=True, or take batches of another size.",
        True,
    )


def devices(model: nn.Module, xb: Iterable[Any]) -> tuple[list[str], list[str]]:
    """Where the model's parameters are, and where the inputs."""
    of_model = sorted({str(p.device) for p in model.parameters()})
    return of_model, sorted({str(x.device) for x in xb if isinstance(x, torch.Tensor)})

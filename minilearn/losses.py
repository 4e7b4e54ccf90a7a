"""Losses: the lessons' own, the one that follows from a batch, and what can be known to be wrong before training."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilearn.errors import same_shape
from minilearn.tensors import shape_text

Loss = Callable[..., Tensor]

ELEMENTWISE = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
)
"""torch's losses that compare element by element and would broadcast."""
OVER_CLASSES = (F.cross_entropy, F.nll_loss, nn.CrossEntropyLoss, nn.NLLLoss)
"""torch's losses that take class indices as targets."""


def mnist_loss(pred: Tensor, target: Tensor) -> Tensor:
    """The mean distance between the sigmoid of the predictions and the right answers.

    Args:
        pred: one logit for each answer, float, of any shape.
        target: the right answers, 0 or 1, of the same shape.
    Returns:
        A scalar in [0, 1], on `pred`'s device.
    Raises:
        ValueError: the shapes differ.
    Source: Howard and Gugger, "Deep Learning for Coders", chapter 4.

    >>> mnist_loss(torch.tensor([[0.0], [100.0]]), torch.tensor([[1], [1]]))
    tensor(0.2500)
    """
    same_shape("mnist_loss", pred, target)
    share = pred.sigmoid()
    return torch.where(target == 1, 1 - share, share).mean()


def flat_binary_cross_entropy(pred: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits, for targets of any number type, with or without a last axis of length 1.

    Args:
        pred: logits, float (batch, 1) or (batch,).
        target: 0 or 1, (batch,) or (batch, 1).
    Returns:
        A scalar in nats, on `pred`'s device.
    Raises:
        ValueError: there is not one target a logit.
    """
    return F.binary_cross_entropy_with_logits(pred, _as_column(pred, target).to(pred.dtype))


def flat_mse(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, for targets with or without a last axis of length 1.

    Args:
        pred: float, (batch, …).
        target: float, the shape of `pred` but for a last axis of length 1.
    Returns:
        A scalar in the target's units squared, on `pred`'s device.
    Raises:
        ValueError: the shapes differ in more than that.
    """
    return F.mse_loss(pred, _as_column(pred, target))


def _as_column(pred: Tensor, target: Tensor) -> Tensor:
    if not _same_but_last_one(pred, target):
        same_shape("loss", pred, target)
    return target.reshape(pred.shape)


def _same_but_last_one(pred: Tensor, target: Tensor) -> bool:
    shorter, longer = sorted((tuple(pred.shape), tuple(target.shape)), key=len)
    return longer in (shorter, (*shorter, 1))


def infer_loss(pred: Any, yb: tuple[Any, ...]) -> tuple[Loss, str]:
    """The loss that a batch asks for, and the line that tells the user so.

    Args:
        pred: the model's output for the batch.
        yb: the batch's targets.
    Returns:
        The loss, and a sentence with what was taken, why, and how to choose another.
    Raises:
        ValueError: what was seen fits none of the three.
    """
    seen = f"predictions are {shape_text(pred)} and targets are {shape_text(yb[0] if len(yb) == 1 else yb)}"
    choose = "choose another with Learner(..., loss_func=...)"
    if isinstance(pred, Tensor) and pred.is_floating_point() and len(yb) == 1 and isinstance(yb[0], Tensor):
        target = yb[0]
        one_each = _same_but_last_one(pred, target)
        one_logit = pred.ndim == 1 or (pred.ndim == 2 and pred.shape[1] == 1)
        if one_each and one_logit and bool(((target == 0) | (target == 1)).all()):
            return (
                flat_binary_cross_entropy,
                f"loss_func: binary cross-entropy with logits, since {seen} of 0 and 1; {choose}",
            )
        indices = not target.is_floating_point() and target.dtype != torch.bool
        if indices and pred.ndim >= 2 and pred.shape[1] > 1 and target.shape == pred.shape[:1] + pred.shape[2:]:
            return F.cross_entropy, f"loss_func: cross-entropy, since {seen}: class indices; {choose}"
        if one_each and target.is_floating_point():
            return flat_mse, f"loss_func: mean squared error, since {seen}; {choose}"
    raise ValueError(
        f"no loss follows from this batch: {seen}. It would from one logit against 0 or 1 (binary cross-entropy),"
        " (batch, classes) against int64 (batch,) (cross-entropy), or floats against floats of the same shape"
        " (mean squared error). Give Learner(..., loss_func=...)."
    )


def check_loss(loss_func: Loss, pred: Any, yb: tuple[Any, ...]) -> None:
    """Refuses what one of torch's own losses would take in silence, or would only fail on inside the device.

    Raises:
        ValueError: shapes that would broadcast, or a class index outside the classes.
    """
    if not (isinstance(pred, Tensor) and len(yb) == 1 and isinstance(yb[0], Tensor)):
        return
    if _is_one_of(loss_func, ELEMENTWISE):
        same_shape(_name(loss_func), pred, yb[0])
    if _is_one_of(loss_func, OVER_CLASSES):
        problem = _class_problem(loss_func, pred, yb[0])
        if problem:
            raise ValueError(f"{_name(loss_func)}: {problem}")


def explain_failure(error: Exception, loss_func: Loss, pred: Any, yb: tuple[Any, ...]) -> None:
    """Adds a note to a loss's own error where the cause can be seen: a class index outside the classes."""
    if isinstance(pred, Tensor) and len(yb) == 1 and isinstance(yb[0], Tensor) and pred.device.type == "cpu":
        problem = _class_problem(loss_func, pred, yb[0])
        if problem and isinstance(error, IndexError):
            error.add_note(problem)


def _class_problem(loss_func: Loss, pred: Tensor, target: Tensor) -> str:
    """What is wrong with the class indices in `target`; empty where nothing is."""
    if target.is_floating_point() or target.dtype == torch.bool or pred.ndim < 2 or not target.numel():
        return ""
    if target.shape == (pred.shape[0], 1) and pred.ndim == 2:
        return (
            f"predictions are {tuple(pred.shape)} but targets are {tuple(target.shape)}:"
            " class indices have no last axis. Use targets.squeeze(1)."
        )
    counted = target[target != _ignored(loss_func)]
    if not counted.numel():
        return ""
    low, high, classes = int(counted.min()), int(counted.max()), pred.shape[1]
    if low >= 0 and high < classes:
        return ""
    return (
        f"class indices must be in [0, {classes}), as the model gives {classes} classes, but targets run from {low} to"
        f" {high}. Give the model's last layer {high + 1} outputs, or number the classes from 0."
    )


def _ignored(loss_func: Loss) -> int:
    if isinstance(loss_func, partial):
        return int(loss_func.keywords.get("ignore_index", -100))
    return int(getattr(loss_func, "ignore_index", -100))


def _is_one_of(loss_func: Loss, losses: tuple[Any, ...]) -> bool:
    plain = loss_func.func if isinstance(loss_func, partial) else loss_func
    return any(plain is loss or type(plain) is loss for loss in losses)


def _name(loss_func: Loss) -> str:
    plain = loss_func.func if isinstance(loss_func, partial) else loss_func
    return str(getattr(plain, "__name__", type(plain).__name__))

"""Losses: the lessons' own, fastai's, the one that follows from a batch, and how a loss's predictions are read."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilearn.class_losses import DiceLoss, FocalLoss, LabelSmoothingCrossEntropy
from minilearn.errors import same_shape
from minilearn.flat_losses import (
    BaseLoss,
    BCELossFlat,
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    FocalLossFlat,
    L1LossFlat,
    LabelSmoothingCrossEntropyFlat,
    MSELossFlat,
)
from minilearn.tensors import shape_text

__all__ = [
    "BCELossFlat",
    "BCEWithLogitsLossFlat",
    "BaseLoss",
    "CrossEntropyLossFlat",
    "DiceLoss",
    "FocalLoss",
    "FocalLossFlat",
    "L1LossFlat",
    "LabelSmoothingCrossEntropy",
    "LabelSmoothingCrossEntropyFlat",
    "MSELossFlat",
    "activation_of",
    "decodes_of",
    "flat_binary_cross_entropy",
    "flat_mse",
    "infer_loss",
    "mnist_loss",
    "not_reduced",
    "row_losses",
    "weights_met",
]

Loss = Callable[..., Tensor]
OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
"""torch's losses whose mean is over the weights of the targets that are not ignored."""


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
        indices = target.dtype in (torch.int64, torch.uint8)  # what torch's cross-entropy takes
        if indices and pred.ndim >= 2 and pred.shape[1] > 1 and target.shape == pred.shape[:1] + pred.shape[2:]:
            return F.cross_entropy, f"loss_func: cross-entropy, since {seen}: class indices; {choose}"
        if one_each and target.is_floating_point():
            labels = bool(((target == 0) | (target == 1)).all())
            fix = ". They are all 0 or 1: for labels, give loss_func=BCEWithLogitsLossFlat()" if labels else ""
            return flat_mse, f"loss_func: mean squared error, since {seen}; {choose}{fix}"
    raise ValueError(
        f"no loss follows from this batch: {seen}. It would from one logit against 0 or 1 (binary cross-entropy),"
        " (batch, classes) against int64 (batch,) (cross-entropy), or floats against floats of the same shape"
        " (mean squared error). Give Learner(..., loss_func=...)."
    )


def activation_of(loss_func: Callable[..., Any] | None) -> Callable[[Tensor], Tensor]:
    """What makes a model's output readable under a loss: probabilities where it takes logits.

    Args:
        loss_func: a loss, or a partial of one; None where there is none yet.
    Returns:
        The loss's own `activation`; for torch's cross-entropy a softmax over axis 1; for binary cross-entropy with
        logits and `mnist_loss` a sigmoid; else a function that changes nothing.
    """
    loss = _unwrapped(loss_func)
    if callable(own := getattr(loss, "activation", None)):
        return own  # type: ignore[no-any-return]
    if _is_cross_entropy(loss):
        return _softmax
    return torch.sigmoid if _is_binary(loss) else unchanged


def decodes_of(loss_func: Callable[..., Any] | None) -> Callable[[Tensor], Tensor]:
    """What makes answers of what `activation_of` gave, in the form of targets: the class, or whether it is above 0.5.

    Args:
        loss_func: a loss, or a partial of one; None where there is none yet.
    Returns:
        The loss's own `decodes`, or what goes with the activation.
    """
    loss = _unwrapped(loss_func)
    if callable(own := getattr(loss, "decodes", None)):
        return own  # type: ignore[no-any-return]
    if _is_cross_entropy(loss) or loss is F.nll_loss or isinstance(loss, nn.NLLLoss):
        return _largest
    shares = loss is F.binary_cross_entropy or isinstance(loss, nn.BCELoss)
    return _likely if shares or _is_binary(loss) else unchanged


def _unwrapped(loss_func: Any) -> Any:
    while isinstance(loss_func, partial):
        loss_func = loss_func.func
    return loss_func


def _is_cross_entropy(loss: Any) -> bool:
    return loss is F.cross_entropy or isinstance(loss, nn.CrossEntropyLoss)


def _is_binary(loss: Any) -> bool:
    return loss in OF_LOGITS or isinstance(loss, (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss))


OF_LOGITS = (
    mnist_loss,
    flat_binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.multilabel_soft_margin_loss,
)
"""Functions that take the sigmoid of the predictions."""


def _softmax(x: Tensor) -> Tensor:
    return x.softmax(1 if x.ndim > 1 else 0)


def _largest(x: Tensor) -> Tensor:
    return x.argmax(1 if x.ndim > 1 else 0)


def _likely(x: Tensor) -> Tensor:
    return x > 0.5


def unchanged(x: Tensor) -> Tensor:
    """The very same: where nothing is to be done to predictions."""
    return x


@contextmanager
def not_reduced(loss_func: Loss) -> Iterator[Loss]:
    """`loss_func` without the mean over its elements, for the length of a ``with`` block.

    A loss with an attribute `reduction`, as torch's modules have it, has it set to "none" meanwhile; one with an
    argument of that name, as torch's functions have it, gets it. Any other is called for each row alone, as a batch of
    one, which takes time.

    >>> with not_reduced(F.l1_loss) as losses:
    ...     losses(torch.zeros(2), torch.tensor([1.0, 3.0]))
    tensor([1., 3.])
    """
    plain = _unwrapped(loss_func)
    if hasattr(plain, "reduction"):
        before, plain.reduction = plain.reduction, "none"
        try:
            yield loss_func
        finally:
            plain.reduction = before
    else:
        yield partial(loss_func, reduction="none") if _takes_reduction(plain) else partial(_row_by_row, loss_func)


def _takes_reduction(function: Any) -> bool:
    try:
        return "reduction" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # built in, without a signature
        return False


def _row_by_row(loss_func: Loss, pred: Any, *targets: Any) -> Tensor:
    if not all(isinstance(part, Tensor) and part.ndim for part in (pred, *targets)):
        seen = shape_text((pred, *targets))
        raise ValueError(
            f"the loss of each row is asked for, of {seen}, but loss_func has no `reduction`, and only tensors can be"
            " cut into rows: give it an argument reduction='mean', which may be 'none' for a value for each row"
        )
    return torch.stack([loss_func(*(part[i : i + 1] for part in (pred, *targets))) for i in range(len(pred))])


def row_losses(loss_func: Loss, pred: Any, yb: tuple[Any, ...], rows: int) -> Tensor:
    """The loss of each row of a batch: the mean over what `not_reduced` gives for it.

    Args:
        loss_func: any loss; see `not_reduced`.
        pred: the model's output.
        yb: the targets.
        rows: how many rows the batch has.
    Returns:
        Float (rows,), on the loss's device.
    Raises:
        ValueError: the losses are not for the rows: there is no whole number of them for each.
    """
    with not_reduced(loss_func) as losses_of:
        losses = losses_of(pred, *yb)
    if losses.numel() % rows or not losses.numel():
        raise ValueError(
            f"the loss of each row is asked for, but without its mean loss_func gives {shape_text(losses)} for {rows}"
            " rows"
        )
    return losses.reshape(rows) if losses.numel() == rows else losses.reshape(rows, -1).mean(1)


def weights_met(loss_func: Any, target: Any) -> tuple[Tensor, bool] | None:
    """What torch's losses over classes divide a batch's sum by, where that need not be its rows.

    Args:
        loss_func: one of `OF_CLASSES`, with the mean as its reduction, or minilearn's flat form of one; of another
            there is nothing to tell.
        target: the batch's classes, int64 of any shape.
    Returns:
        The sum of the weights of the targets that are not ignored, float (); and whether the loss was told of weights,
        or of a class to ignore.
    """
    func = getattr(loss_func, "func", loss_func)
    whole = isinstance(func, OF_CLASSES) and func.reduction == "mean"
    if not whole or not isinstance(target, Tensor) or target.is_floating_point():
        return None
    counted = target != func.ignore_index
    told = func.weight is not None or func.ignore_index != -100
    if func.weight is None:
        return counted.sum().to(torch.get_default_dtype()), told
    return (func.weight[torch.where(counted, target, 0)] * counted).sum(), told

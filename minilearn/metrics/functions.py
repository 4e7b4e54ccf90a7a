"""Metrics as plain functions of a batch: (predictions, targets) → a scalar, the mean over rows, on their device."""

import math

import torch
from torch import Tensor

from minilearn.errors import same_shape, whole


def batch_accuracy(pred: Tensor, target: Tensor) -> Tensor:
    """The share of right answers, where an answer is 1 if its logit's sigmoid is above 0.5.

    Args:
        pred: one logit for each answer, float, of any shape.
        target: the right answers, 0 or 1, of the same shape.
    Returns:
        A scalar in [0, 1], on `pred`'s device.
    Raises:
        ValueError: the shapes differ.
    Source: Howard and Gugger, "Deep Learning for Coders", chapter 4.

    >>> batch_accuracy(torch.tensor([[2.0], [-2.0]]), torch.tensor([[1], [1]]))
    tensor(0.5000)
    """
    same_shape("batch_accuracy", pred, target)
    return ((pred.sigmoid() > 0.5) == (target == 1)).float().mean()


def check_classes(who: str, pred: Tensor, target: Tensor, axis: int) -> None:
    """Refuses class indices that do not fit the scores.

    Args:
        who: the metric that asks; it opens the message.
        pred: scores, float (batch, …, classes), or with the classes on another `axis`.
        target: class indices, the shape of `pred` without the classes.
        axis: the classes' axis.
    Raises:
        ValueError: the shapes do not fit, or there is only one class.
    """
    if pred.ndim < 2 or pred.shape[axis] == 1:
        raise ValueError(
            f"{who}: predictions are {tuple(pred.shape)}: one score a row has no largest among the classes."
            " Use batch_accuracy for one logit."
        )
    wanted = list(pred.shape)
    del wanted[axis]
    if list(target.shape) == [*wanted, 1]:
        raise ValueError(
            f"{who}: predictions are {tuple(pred.shape)} but targets are {tuple(target.shape)}:"
            f" class indices have no last axis. Use targets.squeeze({len(wanted)})."
        )
    if list(target.shape) != wanted:
        raise ValueError(
            f"{who}: predictions are {tuple(pred.shape)}, with classes on axis {axis}, so targets must be"
            f" {tuple(wanted)}, got {tuple(target.shape)}."
        )


def accuracy(pred: Tensor, target: Tensor, axis: int = -1) -> Tensor:
    """The share of rows whose largest prediction is the right class.

    Args:
        pred: scores, float (batch, …, classes), or with the classes on another `axis`.
        target: class indices, int64, the shape of `pred` without the classes.
        axis: the classes' axis.
    Returns:
        A scalar in [0, 1], on `pred`'s device.
    Raises:
        ValueError: the shapes do not fit, or there is only one class.

    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    tensor(0.5000)
    """
    check_classes("accuracy", pred, target, axis)
    return (pred.argmax(axis) == target).float().mean()


def error_rate(pred: Tensor, target: Tensor, axis: int = -1) -> Tensor:
    """The share of rows whose largest prediction is a wrong class: ``1 - accuracy``, with its arguments and errors.

    >>> error_rate(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    tensor(0.5000)
    """
    return 1 - accuracy(pred, target, axis)


def top_k_accuracy(pred: Tensor, target: Tensor, k: int = 5, axis: int = -1) -> Tensor:
    """The share of rows whose right class is among the `k` largest predictions.

    Args:
        pred: scores, float (batch, …, classes), or with the classes on another `axis`.
        target: class indices, int64, the shape of `pred` without the classes.
        k: how many of the largest count, from 1 to the number of classes.
        axis: the classes' axis.
    Returns:
        A scalar in [0, 1], on `pred`'s device.
    Raises:
        ValueError: the shapes do not fit, or there are fewer than `k` classes.

    >>> top_k_accuracy(torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]]), torch.tensor([2, 2]), k=2)
    tensor(0.5000)
    """
    check_classes("top_k_accuracy", pred, target, axis)
    if whole("k", k, 1) > pred.shape[axis]:
        raise ValueError(f"top_k_accuracy: k must be at most the number of classes, {pred.shape[axis]}, got {k}")
    found = pred.topk(k, axis).indices == target.unsqueeze(axis)
    return found.any(axis).float().mean()


def accuracy_multi(pred: Tensor, target: Tensor, thresh: float = 0.5, sigmoid: bool = True) -> Tensor:
    """The share of right answers to yes-or-no questions of which each row has several (multi-label).

    Args:
        pred: one logit for each answer, or its probability, float (batch, labels).
        target: the right answers, 0 or 1, of the same shape.
        thresh: the probability above which an answer is 1.
        sigmoid: whether `pred` are logits.
    Returns:
        A scalar in [0, 1], on `pred`'s device.
    Raises:
        ValueError: the shapes differ.

    >>> accuracy_multi(torch.tensor([[2.0, -2.0]]), torch.tensor([[1, 1]]))
    tensor(0.5000)
    """
    same_shape("accuracy_multi", pred, target)
    probability = pred.sigmoid() if sigmoid else pred
    return ((probability > thresh) == target.bool()).float().mean()


def mse(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error.

    Args:
        pred: float, of any shape.
        target: float, of the same shape.
    Returns:
        A scalar in the target's units squared, on `pred`'s device.
    Raises:
        ValueError: the shapes differ.

    >>> mse(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor(2.)
    """
    same_shape("mse", pred, target)
    return (pred - target).square().mean()


def rmse(pred: Tensor, target: Tensor) -> Tensor:
    """Root mean squared error. As a column it is the root of the mean over all rows, not the mean of batches' roots.

    Args:
        pred: float, of any shape.
        target: float, of the same shape.
    Returns:
        A scalar in the target's units, on `pred`'s device.
    Raises:
        ValueError: the shapes differ.

    >>> rmse(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor(1.4142)
    """
    same_shape("rmse", pred, target)
    return mse(pred, target).sqrt()


rmse.mean_of = mse  # type: ignore[attr-defined]
rmse.then = math.sqrt  # type: ignore[attr-defined]


def mae(pred: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error.

    Args:
        pred: float, of any shape.
        target: float, of the same shape.
    Returns:
        A scalar in the target's units, on `pred`'s device.
    Raises:
        ValueError: the shapes differ.

    >>> mae(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor(1.)
    """
    same_shape("mae", pred, target)
    return (pred - target).abs().mean()


def msle(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared logarithmic error, ``mse(log(1 + pred), log(1 + target))``.

    Args:
        pred: float, of any shape, above -1 (else the result is nan).
        target: float, of the same shape, above -1.
    Returns:
        A scalar, on `pred`'s device.
    Raises:
        ValueError: the shapes differ.

    >>> msle(torch.tensor([0.0, 0.0]), torch.tensor([0.0, math.e - 1]))
    tensor(0.5000)
    """
    same_shape("msle", pred, target)
    return mse(pred.log1p(), target.log1p())


def exp_rmspe(pred: Tensor, target: Tensor) -> Tensor:
    """Root mean squared percentage error of the exponentials, for models of a logarithm. As a column it is exact.

    Args:
        pred: float, of any shape.
        target: float, of the same shape.
    Returns:
        A scalar, a share (0.1 is ten percent), on `pred`'s device.
    Raises:
        ValueError: the shapes differ.

    >>> exp_rmspe(torch.tensor([0.0]), torch.tensor([math.log(2)]))
    tensor(0.5000)
    """
    return _exp_mspe(pred, target).sqrt()


def _exp_mspe(pred: Tensor, target: Tensor) -> Tensor:
    same_shape("exp_rmspe", pred, target)
    return torch.expm1(pred - target).square().mean()


exp_rmspe.mean_of = _exp_mspe  # type: ignore[attr-defined]
exp_rmspe.then = math.sqrt  # type: ignore[attr-defined]

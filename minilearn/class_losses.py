"""Losses of logits of classes that torch has not: focal, label smoothing as fastai has it, Dice."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilearn.errors import did_you_mean, in_range, share

REDUCTIONS = ("mean", "sum", "none")


class FocalLoss(nn.Module):
    """Cross-entropy in which rows that are nearly right count little: ``(1 - p)^gamma · (-log p)``.

    Args:
        gamma: how little; 0 is cross-entropy.
        weight: each class's, (classes,). It multiplies a row's loss and is no part of p, the right class's probability.
        reduction: "mean" over rows, "sum" or "none".
    Source: Lin et al. 2017, equation 5 (arXiv:1708.02002). fastai 2.8 takes the weight into p.
    """

    y_int = True
    axis = 1
    weight: Tensor | None

    def __init__(self, gamma: float = 2.0, weight: Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__()
        self.gamma, self.reduction = in_range("gamma", gamma, 0), check_reduction(reduction)
        self.register_buffer("weight", weight)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of logits, float (batch, classes, …), for class indices (batch, …)."""
        log_share = F.log_softmax(pred, 1)
        entropy = F.nll_loss(log_share, target.long(), reduction="none")
        weighted = (
            entropy if self.weight is None else F.nll_loss(log_share, target.long(), self.weight, reduction="none")
        )
        return reduced((1 - (-entropy).exp()) ** self.gamma * weighted, self.reduction)

    def activation(self, x: Tensor) -> Tensor:
        """The classes' probabilities."""
        return x.softmax(1)

    def decodes(self, x: Tensor) -> Tensor:
        """The largest class's index."""
        return x.argmax(1)


class LabelSmoothingCrossEntropy(nn.Module):
    """Cross-entropy against targets that keep a share of their weight for all classes.

    Args:
        eps: the share spread evenly over the classes, in [0, 1].
        weight: each class's, (classes,), for the rest.
        reduction: "mean", "sum" or "none".
    Source: Szegedy et al. 2016, section 7 (arXiv:1512.00567); the weight counts as in fastai 2.8.
    """

    y_int = True
    axis = 1
    weight: Tensor | None

    def __init__(self, eps: float = 0.1, weight: Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__()
        self.eps, self.reduction = share("eps", eps), check_reduction(reduction)
        self.register_buffer("weight", weight)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of logits, float (batch, classes, …), for class indices (batch, …)."""
        log_share = F.log_softmax(pred, 1)
        of_all = reduced(-log_share.mean(1), self.reduction)
        return self.eps * of_all + (1 - self.eps) * F.nll_loss(
            log_share, target.long(), self.weight, reduction=self.reduction
        )

    def activation(self, x: Tensor) -> Tensor:
        """The classes' probabilities."""
        return x.softmax(1)

    def decodes(self, x: Tensor) -> Tensor:
        """The largest class's index."""
        return x.argmax(1)


class DiceLoss(nn.Module):
    """One less the Dice coefficient, ``2·both / (predicted + right)``, of each image and class, for segmentation.

    Args:
        axis: the classes' axis of the predictions.
        smooth: is added above and below the line, so that an empty class does not divide by zero.
        reduction: "sum" or "mean" over images and classes, or "none": (batch, classes).
        square_in_union: squares the predicted shares below the line, which makes the slope steeper.
    Source: Milletari et al. 2016 (arXiv:1606.04797), as in fastai 2.8.
    """

    y_int = True

    def __init__(
        self, axis: int = 1, smooth: float = 1e-6, reduction: str = "sum", square_in_union: bool = False
    ) -> None:
        super().__init__()
        self.axis, self.smooth, self.square_in_union = axis, in_range("smooth", smooth, 0), square_in_union
        self.reduction = check_reduction(reduction)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of logits, float (batch, classes, …), for class indices (batch, …).

        Raises:
            ValueError: the targets' shape is not that of the predictions without the classes.
        """
        part = self.activation(pred).movedim(class_axis(self, pred), 1)  # (batch, classes, …)
        if target.shape != part.shape[:1] + part.shape[2:]:
            raise ValueError(
                f"DiceLoss: predictions are {tuple(pred.shape)}, with classes on axis {self.axis}, so targets must be"
                f" {tuple(part.shape[:1] + part.shape[2:])}, got {tuple(target.shape)}"
            )
        numbers = torch.arange(part.shape[1], device=pred.device).view(-1, *[1] * (part.ndim - 2))
        right = target.unsqueeze(1) == numbers  # (batch, classes, …)
        pixels = list(range(2, part.ndim))
        both = _summed(part * right, pixels)
        either = _summed((part.square() if self.square_in_union else part) + right, pixels)
        return reduced(1 - (2 * both + self.smooth) / (either + self.smooth), self.reduction)

    def activation(self, x: Tensor) -> Tensor:
        """The classes' probabilities."""
        return x.softmax(self.axis)

    def decodes(self, x: Tensor) -> Tensor:
        """The largest class's index."""
        return x.argmax(self.axis)


def _summed(values: Tensor, axes: list[int]) -> Tensor:
    return values.sum(axes) if axes else values  # torch takes no axes for all of them


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """The losses of rows as their mean, their sum, or as they are."""
    if reduction == "mean":
        return losses.mean()
    return losses.sum() if reduction == "sum" else losses


def class_axis(loss: Any, pred: Tensor) -> int:
    """The classes' axis of predictions.

    Raises:
        ValueError: they have none.
    """
    axis: int = loss.axis
    if pred.ndim < 2 or not -pred.ndim <= axis < pred.ndim:
        raise ValueError(
            f"{type(loss).__name__}: predictions are {tuple(pred.shape)}, which have no classes on axis {axis}"
        )
    return axis


def check_reduction(value: str) -> str:
    """`value`, where it is "mean", "sum" or "none".

    Raises:
        ValueError: it is not.
    """
    if value not in REDUCTIONS:
        raise ValueError(
            f"reduction must be 'mean', 'sum' or 'none', got {value!r}{did_you_mean(str(value), REDUCTIONS)}"
        )
    return value

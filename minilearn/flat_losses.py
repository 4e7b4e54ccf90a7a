"""fastai's losses as modules that flatten what they are given, with activation and decoding to go with them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from minilearn.class_losses import FocalLoss, LabelSmoothingCrossEntropy, check_reduction, class_axis
from minilearn.errors import same_shape, share


class BaseLoss(nn.Module):
    """A loss of torch's over predictions and targets whose axes, but for the classes', are made one.

    Nothing is broadcast: there must be as many targets as rows of predictions. An axis of length 1 more or less does
    not matter.

    Args:
        loss_cls: the loss's class, made with `args` and `kwargs`.
        axis: the classes' axis of the predictions, brought to the end.
        flatten: whether axes are made one. Without it, predictions and targets go to the loss as they are.
        floatify: makes the targets floats.
        is_2d: whether predictions keep the classes' axis; else each number has its target.
    Source: names, arguments and figures are those of fastai 2.8, but that nothing is a subclass of Tensor.
    """

    y_int = False
    """Whether targets are class indices, which cannot be mixed as numbers can."""

    func: Callable[..., Tensor]
    """The loss of torch's."""

    def __init__(
        self,
        loss_cls: Callable[..., Any],
        *args: Any,
        axis: int = -1,
        flatten: bool = True,
        floatify: bool = False,
        is_2d: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_reduction(kwargs.get("reduction", "mean"))
        self.func = loss_cls(*args, **kwargs)
        self.axis, self.flatten, self.floatify, self.is_2d = axis, flatten, floatify, is_2d

    @property
    def reduction(self) -> str:
        """What becomes of the losses of the rows: "mean", "sum", or "none": one number for each row, flattened."""
        return str(self.func.reduction)  # type: ignore[attr-defined]

    @reduction.setter
    def reduction(self, value: str) -> None:
        self.func.reduction = check_reduction(value)  # type: ignore[attr-defined]

    def forward(self, pred: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
        """The loss, one number on `pred`'s device, unless the reduction is "none".

        Raises:
            ValueError: there are not as many targets as rows, or `axis` is none of the predictions'.
        """
        if self.floatify:
            target = target.to(torch.promote_types(pred.dtype, torch.float32))
        elif not target.is_floating_point() and target.dtype != torch.int64:
            target = target.long()
        if self.flatten:
            pred, target = self._flat_rows(pred, target) if self.is_2d else self._flat_numbers(pred, target)
        return self.func(pred, target, **kwargs)

    def activation(self, x: Tensor) -> Tensor:
        """What makes the model's output readable; here nothing."""
        return x

    def decodes(self, x: Tensor) -> Tensor:
        """What makes an answer of an output with its activation, in the form of a target; here nothing."""
        return x

    def _flat_rows(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        rows = pred.movedim(class_axis(self, pred), -1)
        if target.is_floating_point() and target.shape == pred.shape:  # a share for each class
            target = target.movedim(self.axis, -1)
            return rows.reshape(-1, rows.shape[-1]), target.reshape(-1, rows.shape[-1])
        if not _as_many(target, rows.shape[:-1]):
            raise ValueError(
                f"{type(self).__name__}: predictions are {tuple(pred.shape)}, with classes on axis {self.axis}, so"
                f" targets must be {tuple(rows.shape[:-1])}, got {tuple(target.shape)}"
            )
        return rows.reshape(-1, rows.shape[-1]), target.reshape(-1)

    def _flat_numbers(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if not _as_many(target, pred.shape):
            same_shape(type(self).__name__, pred, target)
        if target.shape == pred.shape and pred.ndim > 1:
            pred, target = pred.movedim(self.axis, -1), target.movedim(self.axis, -1)
        return pred.reshape(-1), target.reshape(-1)


def _as_many(target: Tensor, wanted: torch.Size) -> bool:
    """Whether a target has the wanted shape, but for axes of length 1, or is it flattened."""
    if target.shape == wanted:
        return True
    if target.ndim == 1:
        return target.numel() == wanted.numel()
    return [n for n in target.shape if n != 1] == [n for n in wanted if n != 1]


class _OfClasses(BaseLoss):
    """A loss over logits of classes."""

    y_int = True

    def activation(self, x: Tensor) -> Tensor:
        """The classes' probabilities: a softmax over `axis`."""
        return x.softmax(self.axis)

    def decodes(self, x: Tensor) -> Tensor:
        """The largest class's index."""
        return x.argmax(self.axis)


class CrossEntropyLossFlat(_OfClasses):
    """`nn.CrossEntropyLoss`, flattened: with classes last (`axis=-1`) or on axis 1 as images have them.

    Args:
        args: for `nn.CrossEntropyLoss`, `weight` first.
        axis: the classes' axis of the predictions, float (batch, …, classes); targets are class indices (batch, …), or
            the classes' shares in the predictions' shape.
        kwargs: `weight` of each class, `ignore_index`, `reduction`, `label_smoothing`; `flatten`, `floatify`, `is_2d`.

    >>> loss = CrossEntropyLossFlat(axis=1)
    >>> loss(torch.zeros(8, 4, 2, 2), torch.zeros(8, 2, 2).long())
    tensor(1.3863)
    """

    def __init__(self, *args: Any, axis: int = -1, **kwargs: Any) -> None:
        super().__init__(nn.CrossEntropyLoss, *args, axis=axis, **kwargs)


class FocalLossFlat(_OfClasses):
    """`FocalLoss`, flattened.

    Args:
        args: for `FocalLoss`.
        gamma: how little rows count that are nearly right.
        axis: the classes' axis.
        kwargs: `weight` of each class, `reduction`; `flatten`, `floatify`, `is_2d`.
    """

    def __init__(self, *args: Any, gamma: float = 2.0, axis: int = -1, **kwargs: Any) -> None:
        super().__init__(FocalLoss, *args, gamma=gamma, axis=axis, **kwargs)


class LabelSmoothingCrossEntropyFlat(_OfClasses):
    """`LabelSmoothingCrossEntropy`, flattened.

    Args:
        args: for `LabelSmoothingCrossEntropy`.
        axis: the classes' axis.
        kwargs: `eps`, `weight` of each class, `reduction`; `flatten`, `floatify`, `is_2d`.
    """

    def __init__(self, *args: Any, axis: int = -1, **kwargs: Any) -> None:
        super().__init__(LabelSmoothingCrossEntropy, *args, axis=axis, **kwargs)


class BCEWithLogitsLossFlat(BaseLoss):
    """`nn.BCEWithLogitsLoss`, flattened: binary cross-entropy of logits, a yes-or-no question each.

    Args:
        args: for `nn.BCEWithLogitsLoss`, `weight` first.
        axis: the labels' axis, for the order of what the reduction "none" gives.
        floatify: makes the targets floats.
        thresh: the probability above which an answer is 1.
        kwargs: `weight`, `reduction`, `pos_weight` of each label; `flatten`. With `weight` or `pos_weight` nothing is
            flattened, as they are of labels.
    Raises:
        ValueError: `flatten` and one of the weights are given.
    """

    def __init__(self, *args: Any, axis: int = -1, floatify: bool = True, thresh: float = 0.5, **kwargs: Any) -> None:
        given = [name for name in ("weight", "pos_weight") if kwargs.get(name) is not None] + ["weight"] * bool(args)
        if given:
            if kwargs.get("flatten"):
                raise ValueError(f"flatten must be False with {given[0]}, which is of labels, got True")
            kwargs["flatten"] = False
        super().__init__(nn.BCEWithLogitsLoss, *args, axis=axis, floatify=floatify, is_2d=False, **kwargs)
        self.thresh = share("thresh", thresh)

    def forward(self, pred: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
        """The loss of logits, for targets 0 or 1 in their shape; errors as of `BaseLoss`."""
        if not self.flatten:
            same_shape(type(self).__name__, pred, target)
        return super().forward(pred, target, **kwargs)

    def activation(self, x: Tensor) -> Tensor:
        """The probabilities."""
        return x.sigmoid()

    def decodes(self, x: Tensor) -> Tensor:
        """Whether a probability is above the threshold."""
        return x > self.thresh


class _OfNumbers(BaseLoss):
    """A loss over numbers, each with its target."""

    loss_cls: type[nn.Module]

    def __init__(self, *args: Any, axis: int = -1, floatify: bool = True, **kwargs: Any) -> None:
        super().__init__(self.loss_cls, *args, axis=axis, floatify=floatify, is_2d=False, **kwargs)

    def forward(self, pred: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
        """The loss of predictions for targets in their shape; errors as of `BaseLoss`."""
        if not self.flatten:
            same_shape(type(self).__name__, pred, target)
        return super().forward(pred, target, **kwargs)


class BCELossFlat(_OfNumbers):
    """`nn.BCELoss`, flattened: binary cross-entropy of probabilities; arguments `reduction` and those of `BaseLoss`."""

    loss_cls = nn.BCELoss


class MSELossFlat(_OfNumbers):
    """`nn.MSELoss`, flattened: mean squared error; arguments `reduction` and those of `BaseLoss`."""

    loss_cls = nn.MSELoss


class L1LossFlat(_OfNumbers):
    """`nn.L1Loss`, flattened: mean absolute error; arguments `reduction` and those of `BaseLoss`."""

    loss_cls = nn.L1Loss

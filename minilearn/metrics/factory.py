"""What the factories of fastai's metrics are made of: torchmetrics objects that wait for the first batch."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from minilearn.errors import did_you_mean, same_shape
from minilearn.metrics.accumulated import AccumMetric, activated
from minilearn.metrics.functions import check_classes
from minilearn.metrics.streaming import Metric
from minilearn.metrics.torch_metric import MadeOnFirstBatch, Prepare, torchmetrics_for

AVERAGES = ("macro", "micro", "weighted")
"""The averages over classes or labels that torchmetrics and scikit-learn have in common and that give one number."""


def refuse(name: str, **given: Any) -> None:
    """Refuses arguments of fastai's that have no counterpart here, where they are given.

    Raises:
        ValueError: one is not None.
    """
    for argument, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name}: {argument}={value!r} cannot be carried over to torchmetrics. Leave it out, or use"
                f" scikit-learn's function, as in skm_to_fastai(sklearn.metrics.{name}, {argument}=...)"
            )


def one_of(argument: str, value: Any, *allowed: str) -> str:
    """`value`, where it is one of those that are allowed.

    Raises:
        ValueError: it is not.
    """
    if value not in allowed:
        hint = did_you_mean(value, allowed) if isinstance(value, str) else ": a column is one number."
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, allowed))}, got {value!r}{hint}")
    return str(value)


def over_classes(
    kind: str,
    name: str,
    axis: int,
    sample_weight: None,
    finish: Callable[[Tensor], Any] = float,
    for_more: str = "",
    **options: Any,
) -> Metric:
    """torchmetrics' `Multiclass…` of a kind, over the largest of the classes on `axis`.

    Args:
        kind: the object's name in torchmetrics, without Multiclass.
        name: the column's heading.
        axis: the classes' axis of the predictions.
        sample_weight: refused.
        finish: makes one number of what the object computes.
        for_more: what is for more classes, where the model must give two.
        options: for the object.
    """
    refuse(name, sample_weight=sample_weight)
    make = getattr(torchmetrics_for(name).classification, f"Multiclass{kind}")
    return MadeOnFirstBatch(name, lambda n: make(num_classes=n, **options), _largest(name, axis, for_more), finish)


def by_class(
    kind: str,
    name: str,
    axis: int,
    average: str,
    pos_label: int,
    labels: None,
    sample_weight: None,
    **options: Any,
) -> Metric:
    """torchmetrics' `Binary…` of a kind where `average` is "binary", else its `Multiclass…`, averaged."""
    refuse(name, labels=labels)
    if one_of("average", average, "binary", *AVERAGES) != "binary":
        refuse(name, pos_label=None if pos_label == 1 else pos_label)
        return over_classes(kind, name, axis, sample_weight, average=average, **options)
    refuse(name, sample_weight=sample_weight)
    make = getattr(torchmetrics_for(name).classification, f"Binary{kind}")
    largest = _largest(name, axis, "average='macro', 'weighted' or 'micro' is")

    def prepare(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor, int]:
        answer, target, classes = largest(pred, target)
        return (answer == pos_label).long(), (target == pos_label).long(), classes

    return MadeOnFirstBatch(name, lambda _: make(**options), prepare)


def _largest(name: str, axis: int, for_more: str) -> Prepare:
    """The class of the largest prediction of each row; of one logit a row, whether it is above 0."""

    def prepare(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor, int]:
        if (pred.ndim < 2 or pred.shape[axis] == 1) and pred.numel() == target.numel():
            return (pred > 0).long().reshape(-1), target.long().reshape(-1), 2
        check_classes(name, pred, target, axis)
        if for_more and pred.shape[axis] != 2:
            raise ValueError(
                f"{name} is of two classes, but predictions are {tuple(pred.shape)}, with classes on axis {axis}:"
                f" {for_more} for more"
            )
        return pred.argmax(axis).reshape(-1), target.long().reshape(-1), pred.shape[axis]

    return prepare


def by_label(
    kind: str,
    name: str,
    thresh: float,
    sigmoid: bool,
    average: str | None,
    pos_label: int,
    labels: None,
    sample_weight: None,
    **options: Any,
) -> Metric:
    """torchmetrics' `Multilabel…` of a kind, over probabilities that are at least `thresh`."""
    refuse(name, pos_label=None if pos_label == 1 else pos_label, labels=labels, sample_weight=sample_weight)
    if average is not None:
        options["average"] = one_of("average", average, *AVERAGES)
    make = getattr(torchmetrics_for(name).classification, f"Multilabel{kind}")

    def prepare(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor, int]:
        check_labels(name, pred, target)
        return activated(pred, "sigmoid" if sigmoid else "no", None, thresh).long(), target.long(), pred.shape[1]

    return MadeOnFirstBatch(name, lambda n: make(num_labels=n, **options), prepare)


def check_labels(name: str, pred: Tensor, target: Tensor) -> None:
    """Refuses predictions that are not one for each label of each row.

    Raises:
        ValueError: the shapes differ, or there is no axis for labels.
    """
    same_shape(name, pred, target)
    if pred.ndim < 2:
        raise ValueError(f"{name}: predictions must be (batch, labels), got {tuple(pred.shape)}")


def functional(metric: str, func: str, **options: Any) -> Callable[[Tensor, Tensor], Any]:
    """A function of torchmetrics over all rows, told how many classes or labels there are where it asks."""
    found = getattr(torchmetrics_for(metric).functional.classification, func)
    counts = {"multiclass": "num_classes", "multilabel": "num_labels"}.get(func.split("_", maxsplit=1)[0])

    def area(pred: Tensor, target: Tensor) -> Any:
        more = {counts: pred.shape[1]} if counts else {}
        return found(pred, target.long(), **more, **options)

    return area


class OfRows(AccumMetric):
    """A function of all rows' probabilities and targets, whose shapes are looked at in each batch.

    Args:
        name: the column's heading.
        func: gives the figure.
        axis: the classes' axis; None for labels, on axis 1.
        activation: gives probabilities.
        max_rows: how many rows are kept at most; None keeps all.
    """

    def __init__(
        self, name: str, func: Callable[..., Any], axis: int | None, activation: str, max_rows: int | None
    ) -> None:
        super().__init__(func, axis, activation, flatten=False, name=name, max_rows=max_rows)

    def _prepare(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        axis = self.dim_argmax
        if axis is None:
            check_labels(self.name, pred, target)
            return super()._prepare(pred, target)
        if self.activation == "softmax":
            check_classes(self.name, pred, target, axis)
            probabilities = activated(pred, self.activation, axis)
            return probabilities.movedim(axis, -1).flatten(0, -2), target.reshape(-1)
        if pred.ndim < 2 or pred.shape[axis] == 1:  # one logit a row
            pred, axis = pred.reshape(-1, 1), -1
        elif pred.shape[axis] != 2:
            raise ValueError(f"{self.name} is of two classes, but predictions are {tuple(pred.shape)}")
        return self._matched(activated(pred, self.activation, axis).reshape(-1), target.reshape(-1))

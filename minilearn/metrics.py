"""Metrics: functions of a batch, and what adds them up over batches without waiting for the device."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from minilearn.errors import did_you_mean, same_shape
from minilearn.tensors import LateScalars, batch_size


class Batch(Protocol):
    """What a metric reads of the loop: a Learner, or anything else that has these."""

    @property
    def pred(self) -> Any:
        """The model's output."""

    @property
    def xb(self) -> Any:
        """The inputs."""

    @property
    def yb(self) -> tuple[Any, ...]:
        """The targets."""

    @property
    def loss(self) -> Tensor:
        """The batch's loss."""


class Metric:
    """A number that is accumulated over batches: `reset`, `accumulate` for each batch, then `value`.

    Subclass it for a metric that is no average of a function over rows; set `name` for its column's heading.
    """

    name: str = ""

    def reset(self) -> None:
        """Forgets what was accumulated."""
        raise NotImplementedError

    def accumulate(self, learn: Batch) -> None:
        """Takes a batch on: `learn.pred`, `learn.yb`, `learn.loss`."""
        raise NotImplementedError

    @property
    def value(self) -> float | None:
        """The metric over all that was accumulated; None where there was nothing."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What was accumulated, for a run that is gone on with: its attributes that are numbers, tensors or lists."""
        return {name: value for name, value in vars(self).items() if isinstance(value, (int, float, Tensor, list))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        vars(self).update(state)


class AvgMetric(Metric):
    """The average of `func(pred, target)` over the rows: each batch counts by its size, so a ragged one counts right.

    Args:
        func: gives a scalar for a batch, the mean over its rows.
        name: the column's heading; by default the function's name.
    """

    def __init__(self, func: Callable[..., Any], name: str | None = None) -> None:
        self.name = name or function_name(func)
        plain = _unwrapped(func)
        self.func: Callable[..., Any] = getattr(plain, "mean_of", func)
        self._finish: Callable[[float], float] = getattr(plain, "then", float)
        self._late = LateScalars(self._add)
        self.reset()

    def reset(self) -> None:
        """Forgets what was accumulated."""
        self._late.clear()
        self._total, self._count = 0.0, 0

    def accumulate(self, learn: Batch) -> None:
        """Takes a batch on; nothing is read from the device."""
        self._append(self._of(learn), batch_size(learn.yb or learn.xb))

    @property
    def value(self) -> float | None:
        """The average over all rows; None where there were none. Waits for the device."""
        self._late.read()
        return self._finish(self._total / self._count) if self._count else None

    def state_dict(self) -> dict[str, Any]:
        """What was accumulated. Waits for the device."""
        self._late.read()
        return super().state_dict()

    def _of(self, learn: Batch) -> Any:
        return self.func(learn.pred, *learn.yb)

    def _append(self, value: Any, size: int) -> None:
        if not isinstance(value, Tensor):
            value = torch.as_tensor(value, dtype=torch.float64)
        elif value.ndim:
            raise ValueError(f"metric '{self.name}' must give one number a batch, got shape {tuple(value.shape)}")
        self._late.append(value, size)

    def _add(self, value: float, size: int) -> None:
        self._total += value * size
        self._count += size


class AvgLoss(AvgMetric):
    """The average of the loss over the rows, each batch counting by its size."""

    def __init__(self) -> None:
        super().__init__(float, name="loss")
        self._finish = float

    def _of(self, learn: Batch) -> Tensor:
        return learn.loss


class AvgSmoothLoss(Metric):
    """The moving average of the training loss: each batch enters with weight ``1 - beta``, debiased.

    ``s ← beta·s + (1 - beta)·loss``, ``value = s / (1 - beta^count)``.

    Args:
        beta: how much of the average stays, in [0, 1).
    """

    name = "loss"

    def __init__(self, beta: float = 0.98) -> None:
        self.beta = beta
        self._late = LateScalars(self.update)
        self.reset()

    def reset(self) -> None:
        """Forgets what was accumulated."""
        self._late.clear()
        self.count, self._average = 0, 0.0

    def accumulate(self, learn: Batch) -> None:
        """Takes a batch's loss on; nothing is read from the device."""
        self._late.append(learn.loss)

    def state_dict(self) -> dict[str, float]:
        """What is needed to go on. Waits for the device."""
        self._late.read()
        return {"count": self.count, "average": self._average}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Goes on from what `state_dict` gave."""
        self._late.clear()
        self.count, self._average = int(state["count"]), state["average"]

    def update(self, loss: float, _: object = None) -> None:
        """Takes on a loss that has been read already."""
        self.count += 1
        self._average = self.beta * self._average + (1 - self.beta) * loss

    @property
    def value(self) -> float | None:
        """The average so far; None before the first batch. Waits for the device."""
        self._late.read()
        return self._average / (1 - self.beta**self.count) if self.count else None


class TorchMetric(Metric):
    """A `torchmetrics` object, or any other with `update`, `compute` and `reset`, as a column."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric
        self._seen = False
        self.name = str(getattr(metric, "name", None) or type(metric).__name__)

    def reset(self) -> None:
        """Forgets what was accumulated."""
        self.metric.reset()
        self._seen = False

    def accumulate(self, learn: Batch) -> None:
        """Updates the object with a batch, on the batch's device."""
        if not self._seen and isinstance(learn.pred, Tensor) and hasattr(self.metric, "to"):
            self.metric.to(learn.pred.device)
        self._seen = True
        self.metric.update(learn.pred, *learn.yb)

    @property
    def value(self) -> float | None:
        """The object's `compute()`; None where it saw no batch. Waits for the device."""
        if not self._seen:
            return None
        value = self.metric.compute()
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"metric '{self.name}' must give one number, got shape {tuple(value.shape)}: average it")
        return float(value)


def function_name(func: Any) -> str:
    """A readable name of a metric: its own, the wrapped function's, or its class's.

    >>> function_name(partial(rmse))
    'rmse'
    """
    plain = _unwrapped(func)
    name = str(getattr(plain, "__name__", None) or type(plain).__name__)
    return "lambda" if name == "<lambda>" else name


def _unwrapped(func: Any) -> Any:
    while isinstance(func, partial):
        func = func.func
    return func


def check_metrics(metrics: Iterable[Metric], batch: Batch) -> None:
    """Tries minilearn's own metric functions on a training batch, as they would fail only after the epoch.

    Only where each row has one number as its target: training may have soft targets, or a model that gives more than
    predictions, where validation has neither.

    Raises:
        ValueError: predictions and targets do not fit a metric, which a note names.
    """
    pred, target = batch.pred, batch.yb[0] if len(batch.yb) == 1 else None
    if not (isinstance(pred, Tensor) and isinstance(target, Tensor) and target.ndim and target.numel() == len(target)):
        return
    for metric in metrics:
        if isinstance(metric, AvgMetric) and getattr(metric.func, "__module__", "") == __name__:
            try:
                metric.func(pred.detach(), target)
            except ValueError as error:
                error.add_note(f"raised by the metric '{metric.name}'")
                raise


def as_metrics(metrics: Any) -> list[Metric]:
    """The `metrics=` of a Learner, one or several, as `Metric`s with names that differ.

    Raises:
        TypeError: one of them is no function, no `Metric` and no torchmetrics object.
    """
    if metrics is None:
        return []
    if hasattr(metrics, "keys"):  # a dict, or torchmetrics' MetricCollection
        raise TypeError(f"metrics must be a metric or a list of them, got an object of {type(metrics).__name__}")
    several = metrics if isinstance(metrics, Iterable) and not isinstance(metrics, str) else [metrics]
    found = [_as_metric(metric) for metric in several]
    for i, metric in enumerate(found):
        same = sum(other.name == metric.name for other in found[:i])
        if same:
            metric.name = f"{metric.name}_{same + 1}"
    return found


def _as_metric(metric: Any) -> Metric:
    if isinstance(metric, type) and issubclass(metric, Metric):
        metric = metric()
    if isinstance(metric, Metric):
        metric.name = metric.name or type(metric).__name__
        return metric
    if isinstance(metric, type):
        raise TypeError(f"a metric must be made before it is given: {metric.__name__}(), got the class")
    if all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset")):
        return TorchMetric(metric)
    if callable(metric):
        return AvgMetric(metric)
    if isinstance(metric, str):
        known = ("accuracy", "batch_accuracy", "error_rate", "mae", "mse", "rmse")
        if metric in known:
            raise TypeError(f"give the metric itself, metrics={metric}, not its name in quotes")
        raise TypeError(f"no metric '{metric}'{did_you_mean(metric, known)} Give the function, not its name.")
    raise TypeError(
        f"a metric must be a function (pred, target) -> scalar, a Metric or a torchmetrics object, got {metric!r}"
    )


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
    if pred.ndim < 2 or pred.shape[axis] == 1:
        raise ValueError(
            f"accuracy: predictions are {tuple(pred.shape)}: one score a row has no largest among the classes."
            " Use batch_accuracy for one logit."
        )
    answer = pred.argmax(axis)
    if target.shape == (*answer.shape, 1):
        raise ValueError(
            f"accuracy: predictions are {tuple(pred.shape)} but targets are {tuple(target.shape)}:"
            f" class indices have no last axis. Use targets.squeeze({answer.ndim})."
        )
    same_shape("accuracy", answer, target)
    return (answer == target).float().mean()


def error_rate(pred: Tensor, target: Tensor, axis: int = -1) -> Tensor:
    """The share of rows whose largest prediction is a wrong class: ``1 - accuracy``, with its arguments and errors.

    >>> error_rate(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    tensor(0.5000)
    """
    return 1 - accuracy(pred, target, axis)


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

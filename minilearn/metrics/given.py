"""What a Learner is given as ``metrics=``, made into `Metric`s; and a look at whether they fit the data."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from minilearn.errors import did_you_mean
from minilearn.metrics import classes, functions, labels, regression
from minilearn.metrics.streaming import AvgMetric, Batch, Metric, unwrapped
from minilearn.metrics.torch_metric import TorchMetric

FACTORIES = (classes.__name__, labels.__name__, regression.__name__)
"""Where the functions are that make a metric."""


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
        if isinstance(metric, AvgMetric) and getattr(unwrapped(metric.func), "__module__", "") == functions.__name__:
            try:
                metric.func(pred.detach(), target)
            except ValueError as error:
                error.add_note(f"raised by the metric '{metric.name}'")
                raise


def as_metrics(metrics: Any) -> list[Metric]:
    """The `metrics=` of a Learner, one or several, as `Metric`s with names that differ.

    A torchmetrics `MetricCollection` gives a column for each of its metrics.

    Raises:
        TypeError: one of them is no function, no `Metric` and no torchmetrics object.
    """
    if metrics is None:
        return []
    if type(metrics) is list and len({m.name for m in metrics if isinstance(m, Metric) and m.name}) == len(metrics):
        return list(metrics)  # as they were made before
    if isinstance(metrics, Iterable) and not isinstance(metrics, (str, Mapping)) and not _is_collection(metrics):
        several = list(metrics)
    else:
        several = [metrics]
    found: list[Metric] = []
    for metric in several:
        found += _columns_of(metric) if _is_collection(metric) else [_as_metric(metric)]
    taken: set[str] = set()
    for metric in found:
        name, count = metric.name, 1
        while metric.name in taken:
            count += 1
            _rename(metric, f"{name}_{count}")
        taken.add(metric.name)
    return found


def _is_collection(metric: Any) -> bool:
    """Whether this is torchmetrics' `MetricCollection`, or any other dict of its objects that can be reset."""
    return all(hasattr(metric, name) for name in ("items", "compute", "reset"))


def _columns_of(collection: Any) -> list[Metric]:
    """A column for each object of a collection, under the collection's name for it.

    Each is updated by itself: the collection's sharing of sums between like ones ends here.
    """
    return [TorchMetric(metric, name) for name, metric in collection.items()]


def _as_metric(metric: Any) -> Metric:
    if isinstance(metric, type) and issubclass(metric, Metric):
        metric = metric()
    if isinstance(metric, Metric):
        if not metric.name:
            _rename(metric, type(metric).__name__)
        return metric
    if isinstance(metric, type):
        raise TypeError(f"a metric must be made before it is given: {metric.__name__}(), got the class")
    if all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset")):
        return TorchMetric(metric)
    if getattr(metric, "__module__", None) in FACTORIES:
        raise TypeError(f"a metric must be made before it is given: {metric.__name__}(), got the function")
    if callable(metric):
        return AvgMetric(metric)
    if isinstance(metric, str):
        known = [name for name, func in vars(functions).items() if inspect.isfunction(func) and func.__doc__]
        if metric in known:
            raise TypeError(f"give the metric itself, metrics={metric}, not its name in quotes")
        raise TypeError(f"no metric '{metric}'{did_you_mean(metric, known)} Give the function, not its name.")
    raise TypeError(
        f"a metric must be a function (pred, target) -> scalar, a Metric or a torchmetrics object, got {metric!r}"
    )


def _rename(metric: Metric, name: str) -> None:
    """Gives a metric another name, also one whose class has a property for it, as those written for fastai do."""
    try:
        metric.name = name
    except AttributeError:
        kind: Any = type(metric)
        metric.__class__ = type(kind.__name__, (kind,), {"name": name, "__doc__": kind.__doc__})

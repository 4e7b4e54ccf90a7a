"""torchmetrics' objects as columns: given as they are, or made on the first batch, which shows how many classes."""

import importlib.util
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from minilearn import distributed
from minilearn.metrics.accumulated import InChunks, one_number
from minilearn.metrics.joining import join_state, never_by_itself, plain_state
from minilearn.metrics.streaming import Batch, Metric, own
from minilearn.operators import ready_for_torchvision

Prepare = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, int]]
"""What is made of a batch's predictions and targets for torchmetrics, and the number of classes."""


def torchmetrics_for(name: str) -> ModuleType:
    """The module `torchmetrics`, imported so that it works beside any build of torch.

    Args:
        name: the metric that needs it, for the message.
    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if importlib.util.find_spec("torchmetrics") is None:
        raise ModuleNotFoundError(f"{name} stands on torchmetrics: pip install 'minilearn[metrics]'")
    if importlib.util.find_spec("torchvision") is not None:
        ready_for_torchvision()  # torchmetrics imports it
    import torchmetrics

    return torchmetrics


class TorchMetric(Metric):
    """A `torchmetrics` object, or any other with `update`, `compute` and `reset`, as a column.

    torchmetrics looks at the numbers of each batch and so waits for the device, unless its object was made with
    ``validate_args=False``. In several processes its states are joined here, by its own rules, not within `compute`; an
    object that holds others is given the rows of all processes in each batch.

    Args:
        metric: the object.
        name: the column's heading; by default the object's `name`, else its class's.
    """

    def __init__(self, metric: Any, name: str | None = None) -> None:
        self.metric = metric
        self._seen = False
        self._joins = plain_state(metric)
        never_by_itself(metric)
        self.name = str(name or getattr(metric, "name", None) or type(metric).__name__)

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
        return one_number(self.name, self.metric.compute()) if self._seen else None

    @property
    def of_all_rows(self) -> bool:
        """Whether its states cannot be joined: those of objects within it, or of a class that is not torchmetrics'."""
        return not self._joins or super().of_all_rows

    def join(self) -> None:
        """Joins the object's states; from here on they are of all rows."""
        self._seen = join_state(self.metric, self._seen)

    def state_dict(self) -> dict[str, Any]:
        """What the object has accumulated."""
        return {"seen": self._seen, **state_of(self.metric)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self._seen = state["seen"]
        set_state(self.metric, state)


def state_of(metric: Any) -> dict[str, Any]:
    """What a torchmetrics object has accumulated; nothing of an object of another kind."""
    state = {name: own(value) for name, value in getattr(metric, "metric_state", {}).items()}
    return {"state": state, "updates": getattr(metric, "update_count", 0)}


def set_state(metric: Any, found: Mapping[str, Any]) -> None:
    """Puts back what `state_of` gave."""
    for name, value in found["state"].items():
        setattr(metric, name, own(value))
    if found["state"]:
        metric._update_count = found["updates"]  # without it `compute` warns that there was no batch


class MadeOnFirstBatch(InChunks):
    """A torchmetrics object that is made when the first batch shows how many classes there are.

    It looks closely at the numbers of its first batch only, which it is given at once; the others wait on the device,
    up to 256 of them, as torchmetrics waits for the device in each update. On a CPU a batch of 64 rows and 10 classes
    takes about 90 µs, and 500 where torchmetrics' object is updated in each.

    Args:
        name: the column's heading.
        make: gives the object for a number of classes.
        prepare: gives what it is updated with, and the number of classes, for predictions and targets.
        finish: makes one number of what it computes.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[int], Any],
        prepare: Prepare,
        finish: Callable[[Any], Any] = float,
    ) -> None:
        self.name, self._make, self._prepared, self._finish = name, make, prepare, finish
        self._metric: Any = None
        self._classes: int | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets what was accumulated."""
        super().reset()
        self._seen = False
        if self._metric is not None:
            self._metric.reset()

    @property
    def value(self) -> float | None:
        """The metric over all rows; None where there were none. Waits for the device."""
        self._pass_on()
        return one_number(self.name, self._finish(self._metric.compute())) if self._seen else None

    def join(self) -> None:
        """Joins the object's states; a process without a row makes its object like the others'."""
        self._pass_on()
        classes = {n for n in distributed.gathered(self._classes if self._seen else None) if n is not None}
        if len(classes) > 1:
            raise ValueError(f"{self.name}: the processes' batches have {sorted(classes)} classes")
        if classes:
            if not self._seen and classes != {self._classes}:
                (self._classes,) = classes
                self._metric = self._made(self._classes)
            self._seen = join_state(self._metric, self._seen)

    def state_dict(self) -> dict[str, Any]:
        """The batches not passed on yet, and what the object has accumulated."""
        made = None if self._metric is None else state_of(self._metric)
        return {**super().state_dict(), "_classes": self._classes, "made": made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        super().load_state_dict({name: value for name, value in state.items() if name != "made"})
        if state["made"] is not None:
            self._metric = self._made(state["_classes"])
            set_state(self._metric, state["made"])

    def accumulate(self, learn: Batch) -> None:
        """Takes a batch on; nothing is read from the device but of the first one, and once a chunk."""
        first = self._metric is None
        super().accumulate(learn)
        if first:
            self._pass_on()
            self._metric.validate_args = False

    def _prepare(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        pred, target, classes = self._prepared(pred, target)
        if self._metric is not None and classes != self._classes:
            if self._seen:
                raise ValueError(f"{self.name}: this batch has {classes} classes, those before had {self._classes}")
            self._metric = None
        if self._metric is None:
            self._metric, self._classes = self._made(classes), classes
        return pred, target

    def _made(self, classes: int) -> Any:
        metric = self._make(classes)
        never_by_itself(metric)
        return metric

    def _take(self, pred: Tensor, target: Tensor) -> None:
        if not self._seen:
            self._metric.to(pred.device)
            if pred.dtype == torch.float64:
                self._metric.set_dtype(torch.float64)
        self._seen = True
        self._metric.update(pred, target)

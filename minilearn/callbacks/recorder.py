"""The history of a fit: losses, rates, and a row of figures an epoch."""

import copy
import math
import time
import warnings
from collections.abc import Mapping
from typing import Any

from minilearn.callback import Callback
from minilearn.errors import in_range
from minilearn.metrics import AvgLoss, AvgSmoothLoss, Metric
from minilearn.tensors import LateScalars

Row = list[float | None]

MAX_POINTS = 1 << 15
"""How many batches' figures are kept one by one; then every second is let go, so that memory stays flat."""

KEPT = ("values", "valid_values", "iters", "epochs", "seconds", "stride", "nan_at", "_losses", "_lrs")
"""What a checkpoint holds of the history, beside the moving average."""


class Recorder(Callback):
    """Keeps what a fit shows: `values`, a row an epoch; `losses` and `lrs`, a figure a batch.

    `train_loss` is the moving average of the training loss, debiased; `valid_loss` and the metrics are averages over
    the validation set in which each row counts the same. Without a validation set the metrics are of the training
    batches. Nothing here waits for the device in a batch: figures are read at the end of an epoch.

    Args:
        beta: how much of the moving average stays from batch to batch, in [0, 1).
    """

    order = 50  # after the callbacks that change the batch or the loss

    metric_names: list[str]
    """The table's headings: epoch, train_loss, valid_loss, the metrics, time."""
    values: list[Row]
    """A row an epoch, without epoch and time. None stands for what was not computed."""
    valid_values: Row
    """The validation loss and the metrics as they were last computed."""
    iters: list[int]
    """The number of training batches done at the end of each epoch."""
    epochs: list[int]
    """The number of each row's epoch."""
    seconds: list[float]
    """How long each row's epoch took."""
    smooth_loss: AvgSmoothLoss
    """The moving average of the training loss."""
    stride: int
    """`losses` and `lrs` hold every `stride`-th batch: 1 up to 32,768 batches, then doubled each time they fill."""
    nan_at: int | None
    """The number of the first training batch whose loss was nan or infinite, as far as losses have been read."""

    def __init__(self, beta: float = 0.98) -> None:
        self.smooth_loss = AvgSmoothLoss(in_range("beta", beta, 0, 1))
        self._valid_loss = AvgLoss()
        self._late = LateScalars(self._take)
        self._validates = False
        self._row: Row | None = None
        self._forget()

    def _forget(self) -> None:
        self.metric_names, self.values, self.iters, self.epochs, self.seconds = [], [], [], [], []
        self.valid_values = []
        self.stride, self.nan_at, self._told = 1, None, False
        self._losses: list[float] = []
        self._lrs: list[float] = []
        self._late.clear()
        self.smooth_loss.reset()

    @property
    def losses(self) -> list[float]:
        """The moving average of the training loss, batch by batch (every `stride`-th). Waits for the device."""
        self._late.read()
        return self._losses

    @property
    def lrs(self) -> list[float]:
        """The last parameter group's learning rate, batch by batch (every `stride`-th). Waits for the device."""
        self._late.read()
        return self._lrs

    def state_dict(self) -> dict[str, Any]:
        """The history so far, as plain values. Waits for the device."""
        self._late.read()
        kept = {name: copy.deepcopy(getattr(self, name)) for name in KEPT}
        return {**kept, "smooth_loss": self.smooth_loss.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a history that `state_dict` gave."""
        self._late.clear()
        for name in KEPT:
            setattr(self, name, copy.deepcopy(state[name]))
        self.smooth_loss.load_state_dict(state["smooth_loss"])

    def before_fit(self) -> None:
        self._forget()
        self._validates = len(self.dls) > 1
        names = [metric.name for metric in self.learn.metrics]
        if self._validates:
            self.metric_names = ["epoch", "train_loss", "valid_loss", *names, "time"]
        else:
            self.metric_names = ["epoch", "train_loss", *(f"train_{name}" for name in names), "time"]

    def before_epoch(self) -> None:
        self._started = time.perf_counter()
        self._row = [None] * (len(self.metric_names) - 2)

    def before_train(self) -> None:
        if not self._validates:
            self._reset(self.learn.metrics)

    def before_validate(self) -> None:
        self._reset([self._valid_loss, *self.learn.metrics])

    def after_loss(self) -> None:
        learn = self.learn
        if not hasattr(learn, "loss"):
            return
        if learn.training:
            self._late.append(learn.loss, learn.opt.param_groups[-1]["lr"])
            if self.nan_at is not None and not self._told:
                self._tell()
            if self._validates:
                return
        else:
            self._valid_loss.accumulate(learn)
        for metric in learn.metrics if learn.yb else ():
            try:
                metric.accumulate(learn)
            except Exception as error:
                error.add_note(f"raised by the metric '{metric.name}'")
                raise

    def after_train(self) -> None:
        self._late.read()
        if self.nan_at is not None and not self._told:
            self._tell()
        if self._row is not None:
            self._row[0] = self.smooth_loss.value
            if not self._validates:
                self._row[1:] = self._read(self.learn.metrics)

    def after_validate(self) -> None:
        self.valid_values = self._read([self._valid_loss, *self.learn.metrics])
        if self._row is not None and self._validates:
            self._row[1:] = self.valid_values

    def after_epoch(self) -> None:
        assert self._row is not None
        self.values.append(self._row)
        self.epochs.append(self.epoch)
        self.seconds.append(time.perf_counter() - self._started)
        self.iters.append(self.smooth_loss.count)
        self._row = None

    def cleanup_fit(self) -> None:
        self._row = None
        self._late.read()

    def _reset(self, metrics: list[Metric]) -> None:
        for metric in metrics:
            metric.reset()

    def _read(self, metrics: list[Metric]) -> Row:
        return [metric.value for metric in metrics]

    def _take(self, loss: float, lr: float) -> None:
        """Takes on a training loss that has arrived from the device."""
        batch = self.smooth_loss.count
        self.smooth_loss.update(loss)
        if self.nan_at is None and not math.isfinite(loss):
            self.nan_at = batch
        if batch % self.stride == 0:
            smooth = self.smooth_loss.value
            assert smooth is not None
            self._losses.append(smooth)
            self._lrs.append(lr)
            if len(self._losses) == MAX_POINTS:
                self.stride *= 2
                del self._losses[1::2], self._lrs[1::2]

    def _tell(self) -> None:
        self._told = True
        warnings.warn(
            f"the training loss is not a finite number since training batch {self.nan_at} of this fit"
            f" (epoch {self.epoch}, learning rate {self.opt.param_groups[-1]['lr']:g}). Training goes on, but weights"
            " that became nan stay nan: use a smaller learning rate, look for nan in the data, or stop by"
            " cbs=TerminateOnNaN().",
            RuntimeWarning,
            stacklevel=2,
        )

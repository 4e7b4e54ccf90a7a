"""The history of a fit: losses, rates, and a row of figures an epoch."""

import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from minilearn.callback import Callback
from minilearn.errors import in_range, warn
from minilearn.metrics import AvgLoss, AvgSmoothLoss, Metric, check_metrics
from minilearn.tensors import LateScalars, shape_text

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
    """A row an epoch, without epoch and time; the last is there from `before_epoch` on. None: (not yet) computed."""
    valid_values: Row
    """The validation loss and the metrics as they were last computed."""
    iters: list[int]
    """The number of training batches done at the end of each epoch."""
    epochs: list[int]
    """The number of each row's epoch."""
    seconds: list[float]
    """How long each row's epoch took."""
    stride: int
    """`losses` and `lrs` hold every `stride`-th batch: 1 up to 32,768 batches, then doubled each time they fill."""
    nan_at: int | None
    """The number of the first training batch whose loss was nan or infinite, as far as losses have been read."""

    def __init__(self, beta: float = 0.98) -> None:
        self._smooth_loss = AvgSmoothLoss(in_range("beta", beta, 0, 1))
        self._valid_loss = AvgLoss()
        self._late = LateScalars(self._take)
        self._validates, self._measured, self._unchecked = False, False, False
        self._row: Row | None = None
        self._forget()

    def _forget(self) -> None:
        self.metric_names, self.values, self.iters, self.epochs, self.seconds = [], [], [], [], []
        self.valid_values = []
        self.stride, self.nan_at, self._told = 1, None, False
        self._losses: list[float] = []
        self._lrs: list[float] = []
        self._late.clear()
        self._smooth_loss.reset()

    @property
    def smooth_loss(self) -> AvgSmoothLoss:
        """The moving average of the training loss: its `value`, the `count` of its batches. Waits for the device."""
        self._late.read()
        return self._smooth_loss

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
        average = self.smooth_loss.state_dict()
        return {**{name: copy.deepcopy(getattr(self, name)) for name in KEPT}, "smooth_loss": average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a history that `state_dict` gave."""
        self._late.clear()
        for name in KEPT:
            setattr(self, name, copy.deepcopy(state[name]))
        self._smooth_loss.load_state_dict(state["smooth_loss"])

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Measures anew within a ``with`` block, and leaves the epoch's figures as they were."""
        kept = self.learn.metrics, self._valid_loss, self._row, self._measured, self.valid_values
        self.learn.metrics, self._valid_loss, self._row = copy.deepcopy(self.learn.metrics), AvgLoss(), None
        try:
            yield
        finally:
            self.learn.metrics, self._valid_loss, self._row, self._measured, self.valid_values = kept

    def before_fit(self) -> None:
        self._forget()
        self._validates, self._unchecked = len(self.dls) > 1, True
        names = [metric.name for metric in self.learn.metrics]
        if self._validates:
            self.metric_names = ["epoch", "train_loss", "valid_loss", *names, "time"]
        else:
            self.metric_names = ["epoch", "train_loss", *(f"train_{name}" for name in names), "time"]

    def before_epoch(self) -> None:
        self._started = time.perf_counter()
        self._measured = False
        self._row = [None] * (len(self.metric_names) - 2)
        self.values.append(self._row)
        self._reset()

    def before_train(self) -> None:
        if not self._validates:
            self._reset()

    def before_validate(self) -> None:
        self._reset()
        self.valid_values = [None] * (1 + len(self.learn.metrics))

    def after_loss(self) -> None:
        learn = self.learn
        if learn.training:
            if not hasattr(learn, "loss"):
                return
            self._late.append(learn.loss, learn.opt.param_groups[-1]["lr"])
            if self.nan_at is not None and not self._told:
                self._tell()
            if self._validates:
                if self._unchecked:
                    self._unchecked = False
                    check_metrics(learn.metrics, learn)
                return
        else:
            if not hasattr(learn, "loss"):
                raise ValueError(
                    f"the validation batch has no target, so there is no loss: its input is {shape_text(learn.xb)}."
                    " Give (input, target) batches."
                )
            self._valid_loss.accumulate(learn)
        with torch.no_grad():
            for metric in learn.metrics if learn.yb else ():
                with _named(metric):
                    metric.accumulate(learn)

    def after_train(self) -> None:
        self._late.read()
        if self.nan_at is not None and not self._told:
            self._tell()
        if self._row is not None:
            self._row[0] = self._smooth_loss.value
            if not self._validates:
                self._row[1:] = self._read(self.learn.metrics)
                self._measured = True

    def after_validate(self) -> None:
        self.valid_values = self._read([self._valid_loss, *self.learn.metrics])
        if self._row is not None and self._validates:
            self._row[1:] = self.valid_values
            self._measured = True

    def after_epoch(self) -> None:
        self._end_row()

    def after_cancel_fit(self) -> None:
        if self._measured:  # a callback ended the fit after an epoch's last figure: the row counts
            self._end_row()

    def cleanup_fit(self) -> None:
        self._late.read()
        if self._row is not None:  # the epoch was cut short
            self.values = [row for row in self.values if row is not self._row]
        self._row, self._measured = None, False

    def _end_row(self) -> None:
        if self._row is None:  # a callback cancelled the epoch before this one heard of it
            self._row = [None] * (len(self.metric_names) - 2)
            self.values.append(self._row)
            self._started = time.perf_counter()
        self.epochs.append(self.epoch)
        self.seconds.append(time.perf_counter() - self._started)
        self.iters.append(self.smooth_loss.count)
        self._row, self._measured = None, False

    def _reset(self) -> None:
        self._valid_loss.reset()
        for metric in self.learn.metrics:
            metric.reset()

    def _read(self, metrics: list[Metric]) -> Row:
        row: Row = []
        for metric in metrics:
            with _named(metric):
                value = metric.value
                row.append(None if value is None else float(value))
        return row

    def _take(self, loss: float, lr: float) -> None:
        """Takes on a training loss that has arrived from the device."""
        batch = self._smooth_loss.count
        self._smooth_loss.update(loss)
        if self.nan_at is None and not math.isfinite(loss):
            self.nan_at = batch
        if batch % self.stride == 0:
            smooth = self._smooth_loss.value
            assert smooth is not None
            self._losses.append(smooth)
            self._lrs.append(lr)
            if len(self._losses) == MAX_POINTS:
                self.stride *= 2
                del self._losses[1::2], self._lrs[1::2]

    def _tell(self) -> None:
        self._told = True
        warn(
            f"the training loss is not a finite number since training batch {self.nan_at} of this fit"
            f" (epoch {self.epoch}, learning rate {self.opt.param_groups[-1]['lr']:g}). Weights that became nan"
            " stay nan: use a smaller learning rate, or look for nan in the data. cbs=TerminateOnNaN() ends such a fit."
        )


@contextmanager
def _named(metric: Metric) -> Iterator[None]:
    """An error says which metric it came from."""
    try:
        yield
    except Exception as error:
        error.add_note(f"raised by the metric '{metric.name}'")
        raise

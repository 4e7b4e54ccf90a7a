"""The history of a fit: losses, rates, and a row of figures an epoch."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from minilearn import distributed
from minilearn.callback import Callback
from minilearn.errors import did_you_mean, in_range
from minilearn.metrics import AvgLoss, AvgSmoothLoss, Metric, check_metrics, go_along, join_all, take_on
from minilearn.optim.hypers import Place, last_layer, named
from minilearn.plots import plot_loss, plot_sched
from minilearn.tensors import LateScalars, on_its_way, shape_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = list[float | None]
MAX_POINTS = 1 << 15
"""How many batches' figures are kept one by one; then every second is let go, so that memory stays flat."""

KEPT = ("values", "valid_values", "iters", "epochs", "seconds", "stride", "nan_at")
"""What a checkpoint holds of the history, beside the moving average and the figures of batches."""


class Recorder(Callback):
    """Keeps what a fit shows: `values`, a row an epoch; `losses`, `hps` and `lrs`, a figure a batch.

    `train_loss` is the moving average of the training loss, debiased; `valid_loss` and the metrics are averages over
    the validation set in which each row counts the same. Several validation sets have columns of their own. Without one
    the metrics are of the training batches. Nothing here waits for the device in a batch: figures are read at the end
    of a part of an epoch.

    Args:
        add_time: whether the table ends with a column of times.
        train_metrics: whether the metrics are computed over the training batches too, as the weights were then, in
            columns `train_…`; those of validation are called `valid_…` then.
        valid_metrics: whether they are computed over the validation sets.
        beta: how much of the moving average stays from batch to batch, in [0, 1).
    """

    order = 50  # after the callbacks that change the batch or the loss
    acts_in_step = False

    metric_names: list[str]
    """The table's headings: epoch, train_loss, valid_loss, the metrics, those of further validation sets, time."""
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
    """`losses`, `hps`, `lrs` hold every `stride`-th batch: 1 up to 32,768 batches, then doubled each time they fill."""
    nan_at: int | None
    """The number of the first training batch whose loss was nan or infinite, as far as losses have been read."""

    def __init__(
        self,
        add_time: bool = True,
        train_metrics: bool = False,
        valid_metrics: bool = True,
        beta: float = 0.98,
    ) -> None:
        self.train_metrics, self.valid_metrics, self.add_time = train_metrics, valid_metrics, add_time
        self._smooth_loss = AvgSmoothLoss(in_range("beta", beta, 0, 1))
        self._valid_loss = AvgLoss()
        self._late = LateScalars(self._take)
        self._in_training, self._in_valid, self._measured, self._unchecked = False, True, False, False
        self._row: Row | None = None
        self._filled = 0
        self._forget()

    def _forget(self) -> None:
        self.metric_names, self.values, self.iters, self.epochs, self.seconds = [], [], [], [], []
        self.valid_values = []
        self.stride, self.nan_at = 1, None
        self._losses: list[float] = []
        self._hps: dict[str, list[float]] = {}
        self._watched: Optimizer | None = None
        self._columns: list[list[float]] = []
        self._unchanged: Sequence[float] = ()  # the last batch's hyperparameters, where they are floats
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
    def arrived(self) -> list[float]:
        """`losses` as far as they have arrived from the device; nothing waits."""
        return self._losses

    @property
    def hps(self) -> dict[str, list[float]]:
        """The last layer's hyperparameters (`lr`, `mom`, …), batch by batch (every `stride`-th).

        They are those of the parameters that are not spared weight decay, where the layer has some. Waits for the
        device. fastai keeps just those that are scheduled.
        """
        self._late.read()
        return self._hps

    @property
    def lrs(self) -> list[float]:
        """The last layer's learning rate, batch by batch (every `stride`-th). Waits for the device."""
        return self.hps.get("lr", [])

    @property
    def column_names(self) -> list[str]:
        """The headings of a row of `values`: the table's but for epoch and time."""
        return self.metric_names[1 : -1 if self.add_time else None]

    def plot_loss(self, skip_start: int = 5, with_valid: bool = True, *, ax: "Axes | None" = None) -> "Axes":
        """Draws the training loss against the batch, and the validation loss at the end of each epoch.

        Args:
            skip_start: how many batches at the start to leave out, where they would squeeze the rest.
            with_valid: whether validation is drawn.
            ax: where to draw.
        Raises:
            ValueError: no training batch has been recorded yet.
        """
        if not self.losses:
            raise ValueError("there is no loss to draw: no training batch has been recorded yet")
        skip = min(-(-skip_start // self.stride), len(self.losses) - 1)
        valid = None
        if with_valid and "valid_loss" in self.column_names:
            place = self.column_names.index("valid_loss")
            valid = [(at, row[place]) for at, row in zip(self.iters, self.values, strict=False)]
        return plot_loss(self.losses, stride=self.stride, skip_start=skip, valid=valid, ax=ax)

    def plot_sched(self, keys: str | Iterable[str] | None = None, *, ax: "Axes | None" = None) -> "Axes":
        """Draws hyperparameters against the batch.

        Args:
            keys: a name, or several, of `hps`; by default those that were changed in the fit, else `lr`.
            ax: where to draw.
        Raises:
            ValueError: no hyperparameter of that name was recorded, or nothing was.
        """
        known = self.hps
        if not self._losses:
            raise ValueError("there is no schedule to draw: no training batch has been recorded yet")
        if keys is None:
            keys = [name for name, figures in known.items() if len(set(figures)) > 1] or ["lr"]
        names = [keys] if isinstance(keys, str) else list(keys)
        for name in names:
            if name not in known:
                raise ValueError(f"no hyperparameter '{name}' was recorded{did_you_mean(name, known)}")
        return plot_sched({name: known[name] for name in names}, stride=self.stride, ax=ax)

    def plot_lr_find(self, skip_end: int = 5, *, ax: "Axes | None" = None) -> "Axes":
        """Draws the curve of the last `Learner.lr_find`: `LRSearch.plot`."""
        return self.learn.lr_search.plot(skip_end=skip_end, ax=ax)

    def state_dict(self) -> dict[str, Any]:
        """The history so far, as plain values. Waits for the device."""
        average = self.smooth_loss.state_dict()
        metrics = [metric.state_dict() for metric in self.learn.metrics] if self._in_training else []
        kept = {name: copy.deepcopy(getattr(self, name)) for name in KEPT}
        # Figures of batches are tensors: 30 times as fast to take and to write as so many numbers one by one.
        figures = {"losses": _as_tensor(self._losses), "hps": {name: _as_tensor(c) for name, c in self._hps.items()}}
        return {**kept, **figures, "smooth_loss": average, "metrics": metrics}

    def state_of_all(self) -> dict[str, Any]:
        """The figures of the epoch so far, which are of each process's own rows until its end."""
        average = self.smooth_loss.state_dict()
        average["average"], *losses = distributed.mean_numbers([average["average"], *self._losses])
        metrics = copy.deepcopy(self.learn.metrics if self._in_training else [])
        join_all(metrics)
        states = [metric.state_dict() for metric in metrics]
        return {"losses": _as_tensor(losses), "smooth_loss": average, "metrics": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a history that `state_dict` gave."""
        self._late.clear()
        for name in KEPT:
            setattr(self, name, copy.deepcopy(state[name]))
        self._losses = state["losses"].tolist()
        self._hps = {name: column.tolist() for name, column in state["hps"].items()}
        self._watched = None
        self._smooth_loss.load_state_dict(state["smooth_loss"])
        for metric, own in zip(self.learn.metrics, state["metrics"], strict=False):
            metric.load_state_dict(own)
        self._row = self.values[-1] if len(self.values) > len(self.epochs) else None  # of an epoch that has begun

    def forgive(self, value: float | None) -> None:
        """Goes on after losses that were no numbers, with an average of `value`; in `losses` they stay."""
        self._late.read()
        if value is None:  # of an epoch that had none before it: the first loss is all that is known
            value = next(filter(math.isfinite, self._losses), 0.0)
        average, self.nan_at = self._smooth_loss, None
        average.load_state_dict({"count": average.count, "average": value * (1 - average.beta**average.count)})

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Measures anew within a ``with`` block, and leaves the epoch's figures as they were."""
        names = ("_valid_loss", "_row", "_filled", "_measured", "_in_valid", "valid_values")
        kept, metrics = {name: getattr(self, name) for name in names}, self.learn.metrics
        self.learn.metrics, self._valid_loss = copy.deepcopy(metrics), AvgLoss()
        self._row, self._in_valid = None, True
        try:
            yield
        finally:
            self.__dict__.update(kept)
            self.learn.metrics = metrics

    def before_fit(self) -> None:
        self._forget()
        self._unchecked = True
        sets = list(self.dls.valid_sets)
        self._in_training = self.train_metrics or not sets
        self._in_valid = self.valid_metrics
        names = [metric.name for metric in self.learn.metrics]
        self.metric_names = ["epoch", "train_loss", *(f"train_{name}" for name in names if self._in_training)]
        for i, part in enumerate(sets):
            prefix = "" if i == 0 and not self._in_training else "valid_" if i == 0 else f"{part}_"
            self.metric_names.append("valid_loss" if i == 0 else f"{part}_loss")
            self.metric_names += [prefix + name for name in names if self._in_valid]
        self.metric_names += ["time"] if self.add_time else []

    def before_epoch(self) -> None:
        self._started = time.perf_counter()
        self._measured, self._filled = False, 1 + self._in_training * len(self.learn.metrics)
        self._row = [None] * len(self.column_names)
        self.values.append(self._row)
        self._reset()

    def before_train(self) -> None:
        self._reset()

    def before_validate(self) -> None:
        self._reset()
        self.valid_values = [None] * (1 + self._in_valid * len(self.learn.metrics))

    def after_loss(self) -> None:
        learn = self.learn
        if learn.training:
            if not hasattr(learn, "loss"):
                return
            self._late.append(learn.loss, self._hypers_now(learn.opt, learn.loss))
            if not self._in_training:
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
            if not self._in_valid:
                return
        if learn.yb:
            self._taken = learn.iter
            if torch.is_grad_enabled():  # in validation they are off already
                with torch.no_grad():
                    take_on(learn.metrics, learn)
            else:
                take_on(learn.metrics, learn)

    def after_cancel_batch(self) -> None:
        if not self.training and self._in_valid and self.iter != self._taken:
            go_along(self.learn.metrics, self.learn)

    def after_train(self) -> None:
        self._late.read()
        if distributed.world_size() > 1:
            average = self._smooth_loss.state_dict()
            average["average"], *self._losses[:] = distributed.mean_numbers([average["average"], *self._losses])
            self._smooth_loss.load_state_dict(average)
        if self._row is not None:
            self._row[0] = self._smooth_loss.value
            if self._in_training:
                self._row[1 : self._filled] = self._read(self.learn.metrics)
            self._measured = self._filled == len(self._row)

    def after_validate(self) -> None:
        self.valid_values = self._read([self._valid_loss, *(self.learn.metrics if self._in_valid else ())])
        if self._row is not None:
            figures, at = self.valid_values, self._filled
            self._filled = at + len(figures)
            self._row[at : self._filled] = figures
            self._measured = self._filled == len(self._row)

    def after_epoch(self) -> None:
        self._end_row()

    def after_cancel_fit(self) -> None:
        if self._measured:  # a callback ended the fit after an epoch's last figure: the row counts
            self._end_row()

    def cleanup_fit(self) -> None:
        self._late.read()
        if self._row is not None:  # the epoch was cut short
            self.values = [row for row in self.values if row is not self._row]
        self._row, self._measured, self._in_valid = None, False, True

    def _end_row(self) -> None:
        if self._row is None:  # a callback cancelled the epoch before this one heard of it
            self._row = [None] * len(self.column_names)
            self.values.append(self._row)
            self._started = time.perf_counter()
        self.epochs.append(self.epoch)
        self.seconds.append(time.perf_counter() - self._started)
        self.iters.append(self.smooth_loss.count)
        self._row, self._measured = None, False

    def _reset(self) -> None:
        self._taken = -1
        self._valid_loss.reset()
        for metric in self.learn.metrics:
            metric.reset()

    def _read(self, metrics: list[Metric]) -> Row:
        row: Row = []
        join_all(metrics)
        for metric in metrics:
            try:
                value = metric.value
                row.append(None if value is None else float(value))
            except Exception as error:
                error.add_note(f"raised by the metric '{metric.name}'")
                raise
        return row

    def _hypers_now(self, opt: Optimizer, loss: Tensor) -> Sequence[Any]:
        """The last layer's hyperparameters, in the order of `_columns`: numbers, or their copies on the way."""
        if opt is not self._watched:
            self._watch(opt)
        found = self._figures_of(opt.param_groups[self._shown])
        if found == self._unchanged:
            return found
        self._unchanged = found if all([value.__class__ is float for value in found]) else ()  # noqa: C419 -- sooner
        return self._unchanged or [on_its_way(value, loss) for value in found]

    def _watch(self, opt: Optimizer) -> None:
        """Looks up, once a fit, where the optimizer has what is recorded."""
        self._late.read()  # figures on their way are of the optimizer before: there are none when a fit begins
        self._watched, self._shown = opt, last_layer(opt.param_groups)
        group = opt.param_groups[self._shown]
        spots = named(group)
        for name in spots:
            self._hps.setdefault(name, [math.nan] * len(self._losses))
        # What a history from elsewhere has beyond that goes on as nan, so that all columns are as long as `losses`.
        places = [spots.get(name, (name, None)) for name in self._hps]
        self._columns = list(self._hps.values())
        self._figures_of: Callable[[dict[str, Any]], Sequence[Any]] = partial(_figures, places)
        if len(places) > 1 and all(key in group and i is None for key, i in places):
            self._figures_of = itemgetter(*(key for key, _ in places))  # the same in a quarter of the time

    def _take(self, losses: list[float], hypers_then: list[Sequence[Any]]) -> None:
        """Takes on training losses that have arrived from the device."""
        batch = self._smooth_loss.count
        for loss, smooth, hypers in zip(losses, self._smooth_loss.update_all(losses), hypers_then, strict=True):
            if self.nan_at is None and not math.isfinite(loss):
                self.nan_at = batch
            if batch % self.stride == 0:
                self._losses.append(smooth)
                for column, value in zip(self._columns, hypers, strict=True):
                    column.append(value if value.__class__ is float else float(value))
                if len(self._losses) == MAX_POINTS:
                    self.stride *= 2
                    for column in (self._losses, *self._columns):
                        del column[1::2]
            batch += 1


def _as_tensor(figures: list[float]) -> Tensor:
    """float64 (batches,), which holds each of them exactly."""
    return torch.tensor(figures, dtype=torch.float64)


def _figures(places: Sequence[Place], group: Mapping[str, Any]) -> list[Any]:
    return [group.get(key, math.nan) if i is None else group[key][i] for key, i in places]

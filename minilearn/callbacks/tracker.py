"""Watching a figure of the table: what is best so far, and when to stop."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from minilearn.callback import Callback, CancelFitException
from minilearn.callbacks.recorder import Recorder
from minilearn.errors import describe, did_you_mean, in_range, whole

Comparison = Callable[[Any, Any], Any] | str | None
"""Says whether its first number is better than its second: ``np.less``, ``torch.gt``, ``operator.lt``, "min", "max"."""

NAMED: dict[str, Callable[[Any, Any], Any]] = {"min": operator.lt, "max": operator.gt}

SMALLER = ("loss", "error", "perplexity", "brier", "distance")
"""A figure with one of these in its name is better where it is smaller; so is one with a word of `SMALLER_WORDS`."""
SMALLER_WORDS = {"mse", "rmse", "mae", "msle", "rmspe"}


class TrackerCallback(Callback):
    """After each epoch, compares a figure of its row with the best one so far: `new_best` and `best` say what it found.

    The base of the callbacks that stop, save or slow down by a figure; they act in `after_epoch`, after its own. An
    epoch without the figure, as its validation was cancelled, is passed over (`new_best` is None); nan is never better.
    `validate` and `get_preds` between and within fits change nothing. It costs nothing in a batch, compiled or not.

    Args:
        monitor: the figure's column in the table, such as "valid_loss" or a metric's name.
        comp: which of two is better, any function of two numbers that says so for the first; "min" or "max". By
            default, by the name: smaller for losses, errors, mse and their like, greater for others.
        min_delta: by how much a figure must be better to count, in the figure's unit, at least 0.
        reset_on_fit: whether a fit begins without a best one; otherwise that of the fit before goes on.
    Raises:
        TypeError: an argument is not what it should be.
        ValueError: one is out of its range, or `comp` prefers neither the smaller nor the greater number; when a fit
            begins: its table has no column `monitor`.
    Source: arguments, order and epochs are those of fastai 2.8.
    """

    order = Recorder.order + 10  # fastai's 60: after the Recorder, whose row it reads
    acts_in_step = False
    run_search = False  # a search has no epochs

    best: float | None
    """The best figure so far; infinite until there is one, None before the first fit."""
    new_best: bool | None
    """Whether the last epoch's was better than all before; None where it had none."""

    def __init__(
        self,
        monitor: str = "valid_loss",
        comp: Comparison = None,
        min_delta: float = 0.0,
        reset_on_fit: bool = True,
    ) -> None:
        if not isinstance(monitor, str):
            raise TypeError(f"monitor must be the name of a column of the table, got {describe(monitor)}")
        self.monitor, self.reset_on_fit = monitor, reset_on_fit
        self.comp = _function(comp, monitor)
        self.smaller = _prefers_smaller(self.comp)
        self.min_delta = in_range("min_delta", min_delta, 0)
        self.best, self.new_best = None, None

    def state_dict(self) -> dict[str, Any]:
        """The best figure so far."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from the best figure of a fit that was interrupted."""
        self.best = state["best"]

    def before_fit(self) -> None:
        names = self.learn.recorder.column_names
        if self.monitor not in names:
            raise ValueError(
                f"no figure '{self.monitor}' to monitor{did_you_mean(self.monitor, names)}"
                f" The table has {', '.join(names)}."
            )
        if self.reset_on_fit or self.best is None:
            self.best = math.inf if self.smaller else -math.inf
        self.new_best = None

    def after_epoch(self) -> None:
        recorder = self.learn.recorder
        figure = recorder.values[-1][recorder.column_names.index(self.monitor)]
        if figure is None:
            self.new_best = None
            return
        nearly = figure + self.min_delta if self.smaller else figure - self.min_delta
        self.new_best = not math.isnan(figure) and _asked(self.comp, nearly, self.best)
        if self.new_best:
            self.best = figure


class EarlyStopping(TrackerCallback):
    """Ends the fit after an epoch when a figure has not improved for `patience` epochs; the epoch's row is kept.

    Args:
        monitor: as in `TrackerCallback`, as are `comp`, `min_delta` and `reset_on_fit`.
        comp: which of two figures is better.
        min_delta: by how much.
        patience: the number of epochs in a row without a better figure, at least 1.
        reset_on_fit: whether a fit begins without a best figure.
    Raises:
        TypeError: as in `TrackerCallback`; `patience` is no whole number.
        ValueError: as in `TrackerCallback`; `patience` is less than 1.
    Source: fastai 2.8.
    """

    order = TrackerCallback.order + 3  # fastai's 63: what saves and what slows down have acted on this epoch before

    def __init__(
        self,
        monitor: str = "valid_loss",
        comp: Comparison = None,
        min_delta: float = 0.0,
        patience: int = 1,
        reset_on_fit: bool = True,
    ) -> None:
        super().__init__(monitor, comp, min_delta, reset_on_fit)
        self.patience = whole("patience", patience, 1)
        self.wait = 0

    def state_dict(self) -> dict[str, Any]:
        """The best figure so far, and the epochs since."""
        return {**super().state_dict(), "wait": self.wait}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on waiting where a fit was interrupted."""
        super().load_state_dict(state)
        self.wait = state["wait"]

    def before_fit(self) -> None:
        super().before_fit()
        self.wait = 0

    def after_epoch(self) -> None:
        super().after_epoch()
        if self.new_best is None:
            return
        self.wait = 0 if self.new_best else self.wait + 1
        if self.wait >= self.patience:
            epochs = "1 epoch" if self.wait == 1 else f"{self.wait} epochs"
            self.learn.logger(f"early stopping after epoch {self.epoch}: no better {self.monitor} for {epochs}")
            raise CancelFitException


def _function(comp: Comparison, monitor: str) -> Callable[[Any, Any], Any]:
    if comp is None:
        return operator.lt if _is_better_smaller(monitor) else operator.gt
    if isinstance(comp, str):
        if comp not in NAMED:
            raise ValueError(f"comp must be 'min', 'max' or a function of two numbers, got {comp!r}")
        return NAMED[comp]
    if not callable(comp):
        raise TypeError(
            f"comp must be 'min', 'max' or a function of two numbers, such as np.less, got {describe(comp)}"
        )
    return comp


def _is_better_smaller(monitor: str) -> bool:
    """Whether a figure of this name is better where it is smaller.

    >>> [name for name in ("valid_loss", "accuracy", "exp_rmspe", "error_rate", "pearson") if _is_better_smaller(name)]
    ['valid_loss', 'exp_rmspe', 'error_rate']
    """
    name = monitor.lower()
    return any(part in name for part in SMALLER) or not SMALLER_WORDS.isdisjoint(name.split("_"))


def _prefers_smaller(comp: Callable[[Any, Any], Any]) -> bool:
    """Whether 0 is better than 1: the function is tried, as it may be anybody's."""
    smaller, greater = _asked(comp, 0.0, 1.0), _asked(comp, 1.0, 0.0)
    if smaller == greater:
        both = "both: 0 than 1, and 1 than 0" if smaller else "neither of 0 and 1"
        raise ValueError(
            f"comp must say of two numbers whether the first is better, such as np.less; it prefers {both}"
        )
    return smaller


def _asked(comp: Callable[[Any, Any], Any], a: Any, b: Any) -> bool:
    try:
        return bool(comp(a, b))
    except TypeError:  # torch's own take tensors alone
        return bool(comp(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)))


EarlyStoppingCallback = EarlyStopping  # fastai's name

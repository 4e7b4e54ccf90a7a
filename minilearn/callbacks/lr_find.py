"""The learning-rate finder: a short training at rising rates, which leaves no trace, and what its curve suggests."""

import copy
import inspect
import math
from collections import namedtuple
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from minilearn import distributed
from minilearn.callback import Callback, CancelFitException, CancelValidException
from minilearn.callbacks.recorder import Recorder
from minilearn.data.loader import ANEW
from minilearn.data.loaders import DataLoaders
from minilearn.data.rounds import Rounds
from minilearn.errors import did_you_mean, positive, warn, whole
from minilearn.lr_suggest import SUGGESTIONS, Suggestion
from minilearn.metrics import AvgSmoothLoss
from minilearn.optim.groups import set_hypers
from minilearn.plots import plot_lr_find
from minilearn.restore import restored
from minilearn.schedule import SchedExp
from minilearn.tensors import LateScalars

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from minilearn.learner import Learner

ON_THE_STEP = (
    "before_batch",
    "after_pred",
    "after_loss",
    "before_backward",
    "after_cancel_backward",
    "after_backward",
    "before_step",
)
"""Who defines one of these events acts on what is trained, and so takes part in a search."""


class LRFinder(Callback):
    """Raises the learning rate from batch to batch, notes the loss, and ends the fit.

    Batch i has the rate start_lr·(end_lr / start_lr)^(i / num_it), in each layer its own. The fit ends after
    `num_it` batches; when the loss's moving average, after the first tenth of them, is more than four times its least;
    at once where the loss is no finite number. On a GPU the end may be seen up to 32 batches late; what came after it
    is not in the curve.

    `Learner.lr_find` puts everything back afterwards; this callback alone, in a `fit`, does not.

    Args:
        start_lr: the first rate, in (0, end_lr): one for all layers that `splitter` gives, or a list of one for each;
            the curve is over the last layer's.
        end_lr: the rate that would come after the last; a number, or a list as long.
        num_it: how many batches, at least 10.
        stop_div: whether to end when the loss has risen fourfold.
    Raises:
        ValueError: an argument is out of its range.
    Source: Smith 2017 (arXiv:1506.01186); the rates, the moving average and the fourfold rise as in fastai 2.8.
    """

    order = Recorder.order - 1  # ends the fit before the Recorder warns of a loss that is no number
    run_valid = False
    remove_on_fetch = True  # it leaves validations out, which predictions are

    lrs: list[float]
    """The rates, batch by batch."""
    losses: list[float]
    """The moving average of the loss, batch by batch, as far as it was finite."""

    ends_with: type[Exception] = CancelFitException

    def __init__(
        self,
        start_lr: float | Sequence[float] = 1e-7,
        end_lr: float | Sequence[float] = 10.0,
        num_it: int = 100,
        stop_div: bool = True,
    ) -> None:
        starts, ends = _layers("start_lr", start_lr), _layers("end_lr", end_lr)
        if len(starts) > 1 and len(ends) > 1 and len(starts) != len(ends):
            raise ValueError(f"start_lr and end_lr must be as many, got {len(starts)} and {len(ends)} rates")
        n = max(len(starts), len(ends))
        self._rates = []
        for start, end in zip(starts * (n // len(starts)), ends * (n // len(ends)), strict=True):
            if start >= end:
                raise ValueError(f"start_lr must be less than end_lr, got {start_lr!r} and {end_lr!r}")
            self._rates.append(SchedExp(start, end))
        self.start_lr, self.end_lr = starts[-1], ends[-1]
        self.num_it, self.stop_div = whole("num_it", num_it, 10), stop_div
        self._late = LateScalars(self._arrived)
        self._late.chunk, self._late.together = 16, 1  # a search is short: an end should be seen before it is over
        self._forget()

    def _forget(self) -> None:
        self._late.clear()
        self._average, self._best, self._over = AvgSmoothLoss(), math.inf, False
        self.count, self.lrs, self.losses = 0, [], []

    def before_fit(self) -> None:
        self._forget()

    def before_batch(self) -> None:
        self._set_rate()

    def after_loss(self) -> None:
        if hasattr(self.learn, "loss"):
            # The mean over the processes, so that all see one curve, and end together.
            loss, world = self.learn.loss, distributed.world_size()
            loss = loss if world == 1 else distributed.sum_all(loss) / world
            self._late.append(loss, self._rates[-1](self.count / self.num_it))
            if self._over:
                raise self.ends_with

    def before_step(self) -> None:
        self._set_rate()  # a schedule may have had the last word in before_batch

    def after_batch(self) -> None:
        self.count += 1
        if self.count >= self.num_it:
            raise self.ends_with

    def before_validate(self) -> None:
        raise CancelValidException

    def cleanup_fit(self) -> None:
        self._late.read()

    def _set_rate(self) -> None:
        rates = [rate(self.count / self.num_it) for rate in self._rates]
        set_hypers(self.opt, lr=rates[0] if len(rates) == 1 else rates)

    def _arrived(self, losses: list[float], rates: list[float]) -> None:
        for loss, rate in zip(losses, rates, strict=True):
            if not self._over:
                self._take(loss, rate)

    def _take(self, loss: float, lr: float) -> None:
        """Takes on a loss that has arrived from the device."""
        if not math.isfinite(loss):
            self._over = True
            return
        smooth = self._average.update(loss)
        self.lrs.append(lr)
        self.losses.append(smooth)
        if len(self.losses) > self.num_it // 10:  # an average of a few batches goes up and down by chance
            self._best = min(self._best, smooth)
            # Four times the least, in a form that does for losses below zero too.
            self._over = self.stop_div and smooth > self._best + 3 * abs(self._best)


@dataclass(frozen=True)
class LRSearch:
    """What a search for a learning rate has found."""

    lrs: list[float] = field(repr=False)
    """The rates, batch by batch."""
    losses: list[float] = field(repr=False)
    """The moving average of the loss at each."""
    suggestions: dict[str, float]
    """The suggested rates by name; nan where a rule found none."""

    def plot(self, *, skip_end: int = 5, ax: "Axes | None" = None) -> "Axes":
        """Draws the curve with the suggestions.

        Args:
            skip_end: how many points at the end to leave out, where the loss has blown up.
            ax: where to draw.
        """
        return plot_lr_find(self.lrs, self.losses, self.suggestions, skip_end=skip_end, ax=ax)


def _layers(name: str, lr: float | Sequence[float]) -> list[float]:
    return [positive(name, rate) for rate in (lr if isinstance(lr, (list, tuple)) and lr else [lr])]


def find_lr(learn: "Learner", finder: LRFinder, suggest_funcs: Any, show_plot: bool) -> Any:
    """What `Learner.lr_find` does: trains with `finder`, puts everything back, and reads the curve.

    The search is the beginning of one epoch that goes through the training loader as often as needed and never
    ends: no validation, no metrics, nothing printed, and of the events only `before_fit`, `before_epoch`,
    `before_train`, those of the batches, and `cleanup_fit`. Of the Learner's callbacks those take part that act on the
    step (`ON_THE_STEP`), unless `Callback.run_search` says otherwise; those that log, save, schedule or stop do not.
    While it runs, `learn.lr_finder` is there; afterwards `learn.lr_search` holds the curve.

    Args:
        learn: the Learner.
        finder: the rates, and when to end.
        suggest_funcs: what reads a rate off the curve: functions of (lrs, losses) or the names valley, steep, minimum
            and slide, one or several; None for none. They see the curve without its ends, as in fastai: without the
            first tenth of `num_it` and the last five points, or the first and last fifth of a short curve.
        show_plot: whether to draw the curve with the suggestions.
    Returns:
        A named tuple of the suggested rates; where a rule finds none, there is a warning and nan.
    Raises:
        ValueError: there is no such suggestion, the training loader can be run through only once, or the loss is not
            finite from the start.
    """
    chosen = _chosen(suggest_funcs)
    learn.dls = DataLoaders.of(learn.dls)
    loader = learn.dls.train
    if hasattr(loader, "__next__"):
        raise ValueError(f"lr_find would use up the training loader, which can be run through only once. {ANEW}")
    found = learn.splitter(learn.model)
    with restored(learn, found):
        own = [Recorder()] if any(isinstance(cb, Recorder) for cb in learn.cbs) else []
        learn.cbs = [cb for cb in learn.cbs if _takes_part(cb)]
        learn.add_cbs([*own, finder])
        learn.dls, learn.metrics = copy.copy(learn.dls), []
        vars(learn)["lr_finder"] = finder  # what callbacks written for fastai ask for
        learn.dls.loaders = [Rounds(loader, finder.num_it), *learn.dls.loaders[1:]]
        finder.ends_with = _SearchEnded
        try:
            with learn.no_logging(), suppress(_SearchEnded):
                learn.fit(1)
        except BaseException as error:
            error.add_note("raised in lr_find's search: the Learner is as it was before")
            raise
    if not finder.lrs:
        raise ValueError(
            f"lr_find: the loss is no finite number from the first batch on, at a learning rate of {finder.start_lr:g}:"
            " look for nan in the data, the weights and the loss"
            if finder.count or finder._over
            else "lr_find saw no loss: a callback ended the search before its first batch was done"
        )
    learn.lr_search = LRSearch(finder.lrs, finder.losses, _suggest(chosen, finder))
    if show_plot:
        learn.lr_search.plot()
    return _as_tuple(learn.lr_search.suggestions)


class _SearchEnded(Exception):  # noqa: N818 -- it is no error
    """Breaks the fit off: only `cleanup_fit` comes after it, not `after_epoch` and `after_fit`."""


def _takes_part(cb: Callback) -> bool:
    if isinstance(cb, (Recorder, LRFinder)):
        return False
    acts = any(hasattr(type(cb), event) for event in ON_THE_STEP)
    return acts if cb.run_search is None else cb.run_search


def _chosen(suggest_funcs: Any) -> dict[str, Suggestion]:
    """The suggestions that were asked for, by name.

    Raises:
        ValueError: there is none of a name, or two have the same.
        TypeError: one is neither a name nor a function.
    """
    several = () if suggest_funcs is None else suggest_funcs
    several = [several] if isinstance(several, str) or not isinstance(several, Iterable) else list(several)
    chosen: dict[str, Suggestion] = {}
    for asked in several:
        if isinstance(asked, str) and asked not in SUGGESTIONS:
            raise ValueError(f"no suggestion '{asked}'{did_you_mean(asked, SUGGESTIONS)}")
        func = SUGGESTIONS[asked] if isinstance(asked, str) else asked
        if not callable(func):
            raise TypeError(f"suggest_funcs must be names or functions of (lrs, losses), got {func!r}")
        _look_at_signature(func)
        plain = func.func if isinstance(func, partial) else func
        name = getattr(plain, "__name__", type(plain).__name__)
        if name in chosen:
            raise ValueError(f"suggest_funcs has two named '{name}'; give one of them as a function of its own")
        chosen[name] = func
    return chosen


def _look_at_signature(func: Suggestion) -> None:
    """Refuses, before the search, a function that could not be called after it: fastai's have a third argument."""
    try:
        signature = inspect.signature(func)
    except ValueError:  # one written in C may not tell
        return
    try:
        signature.bind([], [])
    except TypeError as error:
        raise TypeError(f"suggest_funcs must be functions of (lrs, losses), got one of {signature}: {error}") from None


def _suggest(chosen: dict[str, Suggestion], finder: LRFinder) -> dict[str, float]:
    """Each suggestion, from the curve without its ends."""
    n = len(finder.lrs)
    part = slice(min(finder.num_it // 10, n // 5), n - min(5, n // 5))
    suggestions = {}
    for name, func in chosen.items():
        try:
            suggestions[name] = float(func(finder.lrs[part], finder.losses[part]))
        except ValueError as problem:
            warn(f"lr_find has no suggestion '{name}': {problem}")
            suggestions[name] = math.nan
    return suggestions


def _as_tuple(suggestions: dict[str, float]) -> Any:
    kind = namedtuple("SuggestedLRs", suggestions, rename=True)  # type: ignore[misc]

    class SuggestedLRs(kind):
        __slots__ = ()

        def __repr__(self) -> str:
            return f"SuggestedLRs({', '.join(f'{name}={lr:.2e}' for name, lr in self._asdict().items())})"

    return SuggestedLRs(*suggestions.values())

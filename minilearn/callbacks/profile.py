"""Where a batch's time goes: a short training with a clock beside it, which leaves no trace."""

import copy
import gc
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from minilearn.callback import Callback
from minilearn.callbacks.device import DevicePlacement
from minilearn.data.loader import ANEW
from minilearn.data.loaders import DataLoaders
from minilearn.data.rounds import Rounds
from minilearn.errors import whole
from minilearn.restore import restored

if TYPE_CHECKING:
    from minilearn.learner import Learner

BETWEEN = {
    ("after_batch", "before_batch"): "loading",
    ("before_batch", "after_pred"): "forward",
    ("after_pred", "after_loss"): "loss",
    ("before_backward", "after_backward"): "backward",
    ("before_step", "after_step"): "step",
    ("after_step", "after_batch"): "zero_grad",
}
"""What the loop does between the end of one event and the beginning of the next."""

CUT_SHORT = ("after_cancel_train", "after_train", "after_cancel_epoch", "after_cancel_fit")
"""What comes only where a callback has ended the training: no epoch is to end, as then something may be saved."""

MOVING, REST = "moving to the device", "the loop itself"
PARTS = ("loading", MOVING, "forward", "loss", "backward", "step", "zero_grad")


@dataclass(frozen=True)
class Share:
    """What one part of a batch costs."""

    name: str
    seconds: float
    """A batch, on average."""
    share: float
    """Of the whole, in [0, 1]."""


@dataclass(frozen=True)
class Profile:
    """Where the time of a training batch goes; printed, a table."""

    n_batches: int
    """How many batches were measured."""
    batch_s: float
    """What one of them takes, in seconds, on average."""
    rows: list[Share] = field(repr=False)
    """The parts in the order of a batch, then each callback by name, then what is left for the loop itself."""

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'part':{width}}  µs a batch  share"]
        for row in (*self.rows, Share("all", self.batch_s, 1.0)):
            lines.append(f"{row.name:{width}}  {1e6 * row.seconds:10,.1f}  {100 * row.share:4.1f}%")
        return "\n".join(lines)


def profile_fit(learn: "Learner", n_batches: int) -> Profile:
    """What `Learner.profile` does: trains with a clock, puts everything back, prints a table and gives it.

    A tenth as many batches again, at least three, come first and are not counted: the first ones make the
    optimizer's state, start workers and choose kernels. Then Python's garbage is collected, or what is left of the
    imports would be charged to whichever part its turn came in. All the Learner's callbacks take part, but for those
    with ``run_search = False``, and see `before_fit`, `before_epoch`, `before_train`, the events of the batches and
    `cleanup_fit`; nothing is printed meanwhile. The training loader is gone through as often as needed.

    On a GPU each part is waited for, so that it is charged with its own work: the sum is then more than a batch takes
    where the GPU works while Python goes ahead. The clock itself costs about a microsecond a row.

    Args:
        learn: the Learner.
        n_batches: how many batches to measure, at least 1.
    Returns:
        The parts. An optimizer that evaluates the model anew within its step has all of that under "step".
    Raises:
        ValueError: `n_batches` is out of its range, or the training loader can be run through only once.
    """
    n_batches = whole("n_batches", n_batches, 1)
    learn.dls = DataLoaders.of(learn.dls)
    loader = learn.dls.train
    if hasattr(loader, "__next__"):
        raise ValueError(f"profile would use up the training loader, which can be run through only once. {ANEW}")
    clock = _Clock(n_batches)
    with restored(learn, learn.splitter(learn.model)):
        learn.cbs = [cb for cb in learn.cbs if cb.run_search is not False]
        learn.dls = copy.copy(learn.dls)
        learn.dls.loaders = [Rounds(loader, clock.warm_up + n_batches), *learn.dls.loaders[1:]]
        clock.watch(learn)
        try:
            with learn.no_logging(), suppress(_Measured):
                learn.fit(1)
        except BaseException as error:
            error.add_note("raised in learn.profile: the Learner is as it was before")
            raise
    if not clock.done:
        raise ValueError("profile saw too few batches: a callback ended the training before they were done")
    found = clock.result()
    learn.logger(str(found))
    return found


class _Measured(Exception):  # noqa: N818 -- it is no error
    """Breaks the fit off when there are batches enough."""


class _Clock:
    """Charges the time from each event of a fit to the next, and within an event each callback's."""

    def __init__(self, n_batches: int) -> None:
        self.n_batches, self.warm_up = n_batches, max(3, n_batches // 10)
        self.done = False
        self._seconds: dict[str, float] = {}
        self._seen, self._event, self._since = 0, "", 0.0
        self._wait: Callable[[], object] = torch.accelerator.synchronize if torch.accelerator.is_available() else bool

    def watch(self, learn: "Learner") -> None:
        """Puts the clock beside a Learner's events and callbacks, as attributes that hide its methods."""
        event, build_handlers = learn.event, learn.build_handlers

        def timed_event(name: str) -> None:
            self._charge(BETWEEN.get((self._event, name), REST))
            if name in CUT_SHORT:
                raise _Measured
            try:
                event(name)
            finally:
                self._event = name
                self._charge(REST)
            if name == "after_batch":
                self._count()

        def timed_handlers() -> None:
            build_handlers()
            for table in map(learn._handlers_of.__getitem__, (True, False)):
                for name, handlers in table.items():
                    table[name] = [_TimedHandler(handler, self) for handler in handlers]

        vars(learn).update(event=timed_event, build_handlers=timed_handlers)
        learn.build_handlers()

    def result(self) -> Profile:
        """The parts that were there, in the order of a batch."""
        names = [*PARTS, *(name for name in self._seconds if name not in (*PARTS, REST)), REST]
        whole_s = sum(self._seconds.values())
        rows = [
            Share(name, self._seconds[name] / self.n_batches, self._seconds[name] / whole_s)
            for name in names
            if name in self._seconds
        ]
        return Profile(self.n_batches, whole_s / self.n_batches, rows)

    def _charge(self, part: str) -> None:
        """Charges a part with the time since the last charge; what comes once all is measured, with nothing."""
        if self.done:
            return
        self._wait()
        now = time.perf_counter()
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._since
        self._since = now

    def _count(self) -> None:
        self._seen += 1
        if self._seen == self.warm_up:
            gc.collect()
            self._seconds.clear()
            self._since = time.perf_counter()
        elif self._seen == self.warm_up + self.n_batches:
            self.done = True
            raise _Measured


class _TimedHandler:
    """A callback's method that charges its callback; the loop asks it whose it is, as it asks the method."""

    def __init__(self, handler: Callable[[], None], clock: _Clock) -> None:
        self.handler, self.clock = handler, clock
        self.__name__ = handler.__name__
        self.__self__: Callback = handler.__self__  # type: ignore[attr-defined]
        self.part = MOVING if isinstance(self.__self__, DevicePlacement) else type(self.__self__).__name__

    def __call__(self) -> None:
        self.clock._charge(REST)
        try:
            self.handler()
        finally:
            self.clock._charge(self.part)

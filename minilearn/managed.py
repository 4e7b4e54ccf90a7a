"""The callbacks that a Learner has, and what it says: added, taken away and made silent, for good or for a while."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from minilearn.callback import EVENTS, Callback, Callbacks
from minilearn.errors import describe, did_you_mean
from minilearn.handlers import events_of
from minilearn.loop import Loop


class ManagedLoop(Loop):
    """A loop whose callbacks can be added and removed, and its output turned off."""

    show_bar: bool

    def add_cb(self, cb: Callback | type[Callback]) -> Self:
        """Adds a callback, or one of a class.

        Raises:
            TypeError: it is no callback.
            ValueError: it belongs to a Learner already.
        """
        (cb,) = callbacks_of(cb)
        if "learn" in cb.__dict__:
            owner = "this Learner" if cb.learn is self else "another Learner; remove it there first"
            raise ValueError(f"the callback {type(cb).__name__} belongs to {owner}")
        cb.learn = self  # type: ignore[assignment]  # every such loop is a Learner
        self.cbs.append(cb)
        self.build_handlers()
        return self

    def add_cbs(self, cbs: Callbacks) -> Self:
        """Adds callbacks, one or several."""
        for cb in callbacks_of(cbs):
            self.add_cb(cb)
        return self

    def remove_cb(self, cb: Callback | type[Callback]) -> Self:
        """Removes a callback, or all of a class.

        Raises:
            ValueError: there is none.
        """
        found = [c for c in self.cbs if c is cb or (isinstance(cb, type) and type(c) is cb)]
        if not found:
            name = cb.__name__ if isinstance(cb, type) else type(cb).__name__
            raise ValueError(
                f"this Learner has no callback {name}; it has {', '.join(type(c).__name__ for c in self.cbs)}"
            )
        self.cbs = [c for c in self.cbs if not any(c is gone for gone in found)]
        self.build_handlers()
        for c in found:
            if self._running and hasattr(type(c), "cleanup_fit"):
                c.cleanup_fit()  # type: ignore[attr-defined]
            del c.learn
        return self

    def rest_cb(self, cb: Callback, *events: str) -> None:
        """Calls a callback no more in this part of the epoch, training or validation: it has nothing to do there.

        Args:
            cb: the callback, which is called again from the next part on, and where callbacks are added or removed.
            events: at which events; by default at all but `cleanup_fit`.
        """
        table = dict(self._handlers)  # the old one may be gone through just now
        for event in events or events_of(type(cb)):
            if event in table and (events or event != "cleanup_fit"):
                table[event] = [h for h in table[event] if getattr(h, "__self__", None) is not cb]
        self._handlers = table

    def remove_cbs(self, cbs: Callbacks) -> Self:
        """Removes callbacks, one or several."""
        for cb in [cbs] if isinstance(cbs, (Callback, type)) else list(cbs or ()):
            self.remove_cb(cb)
        return self

    def _clean_up(self, error: BaseException | None, fitting: bool) -> None:
        """Cleans up; callbacks that were at rest hear of the next fit."""
        try:
            super()._clean_up(error, fitting)
        finally:
            if [cb for cb in self.cbs if cb.__dict__.pop("_rests", False)]:
                self.build_handlers()

    @contextmanager
    def added_cbs(self, cbs: Callbacks) -> Iterator[None]:
        """Callbacks for the length of a ``with`` block."""
        added: list[Callback] = []
        try:
            for cb in callbacks_of(cbs):
                self.add_cb(cb)
                added.append(cb)
            yield
        finally:
            for cb in added:
                if any(cb is c for c in self.cbs):
                    self.remove_cb(cb)

    @contextmanager
    def removed_cbs(self, cbs: Callbacks) -> Iterator[None]:
        """Without these callbacks for the length of a ``with`` block."""
        before = list(self.cbs)
        try:
            self.remove_cbs(cbs)
            yield
        finally:
            self.add_cbs([cb for cb in before if "learn" not in cb.__dict__])

    def ordered_cbs(self, event: str) -> list[Callback]:
        """The callbacks that act at an event, in their order.

        Raises:
            ValueError: there is no such event.
        """
        if event not in EVENTS:
            raise ValueError(f"no event '{event}'{did_you_mean(event, EVENTS)}")
        return [cb for cb in self.cbs if hasattr(type(cb), event)]

    def show_training_loop(self) -> None:
        """Prints the events in their order, each with the callbacks that act at it; inner parts are indented."""
        within: list[str] = []
        for event in EVENTS:
            part = event.rpartition("_")[2]
            if part in within:  # it ends
                del within[within.index(part) :]
            acting = ", ".join(type(cb).__name__ for cb in self.ordered_cbs(event))
            self.logger(f"{'  ' * len(within)}{event}{': ' * bool(acting)}{acting}")
            if event.startswith("before_"):
                within.append(part)
            if part == "validate" and part in within:
                self.logger(f"{'  ' * len(within)}the batch's events as above, without backward and step")

    @contextmanager
    def no_bar(self) -> Iterator[None]:
        """Without the live bar for the length of a ``with`` block; the table is still printed."""
        before, self.show_bar = self.show_bar, False
        try:
            yield
        finally:
            self.show_bar = before

    @contextmanager
    def no_logging(self) -> Iterator[None]:
        """Without any output for the length of a ``with`` block."""
        before, self.logger = self.logger, _silent
        try:
            yield
        finally:
            self.logger = before

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(cb.name for cb in self.__dict__.get("cbs", ()))]

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            called = [cb for cb in self.__dict__.get("cbs", ()) if cb.name == name]
            if len(called) == 1:
                return called[0]
            if called:
                raise AttributeError(f"this Learner has {len(called)} callbacks '{name}'; learn.cbs has them all")
            return super().__getattr__(name)


def _silent(text: str) -> None:
    """Prints nothing."""


def callbacks_of(cbs: Callbacks) -> list[Callback]:
    """One or several callbacks as a list, classes made into objects.

    Raises:
        TypeError: one of them is no callback.
    """
    several = [cbs] if isinstance(cbs, (Callback, type)) else [] if cbs is None else cbs
    if not isinstance(several, Iterable):
        raise TypeError(f"cbs must be a Callback or a list of them, got {describe(several)}")
    made = [cb() if isinstance(cb, type) else cb for cb in several]
    for cb in made:
        if not isinstance(cb, Callback):
            raise TypeError(f"cbs must be a Callback or a list of them, got {describe(cb)}")
    return made

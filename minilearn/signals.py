"""SIGTERM and Ctrl-C, noted until there is a good moment to end."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
APART_S = 0.2
"""How far apart two signals are at least that are meant as two: launchers and `timeout` send one twice at once."""


class SignalWatch:
    """Notes the first of `SIGNALS` that comes, between `watch` and `stop`; the second one ends the process.

    Heard in the main thread only; those that the process ignored before are ignored still.

    Attributes:
        number: the signal that has come; None: none has.
        at_once: whether a second one has come.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.at_once = False
        self._heard_at = 0.0
        self._handlers: dict[int, Any] = {}

    def forget(self) -> None:
        """No signal has come."""
        self.number, self.at_once = None, False

    def watch(self) -> None:
        """Listens from now on."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._process = os.getpid()
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:  # as in a job that a shell runs in the background
                self._handlers[number] = signal.SIG_DFL if before is None else before
                signal.signal(number, self._note)

    def stop(self) -> None:
        """Listens no more."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def end(self, number: int | None) -> None:
        """Ends the process as a signal does that has been waited for; None: it goes on.

        Raises:
            KeyboardInterrupt: for Ctrl-C.
            SystemExit: for another.
        """
        if not number:
            return
        self.number = None
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Notes a signal. The second one ends the process as if nobody had listened, and so does one to a fork of it.

        A fork does not hear Ctrl-C, though, which a terminal sends to all: the main process tells it when to end.
        """
        alone = os.getpid() == self._process
        if not alone and number == signal.SIGINT:
            return
        if alone and self.number is None:
            self.number, self._heard_at = number, time.monotonic()
        elif not alone or time.monotonic() - self._heard_at > APART_S:
            self.at_once = True
            signal.signal(number, self._handlers.get(number, signal.SIG_DFL))
            os.kill(os.getpid(), number)

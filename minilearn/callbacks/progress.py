"""What a person sees of a fit: the table, a row an epoch, and a bar where there is somebody to look at it."""

import math
import sys
import time
from typing import Any

from minilearn.callback import Callback
from minilearn.callbacks.recorder import Recorder
from minilearn.errors import warn

REDRAW_S = 0.1
"""A live bar is drawn anew at most this often."""


class ProgressCallback(Callback):
    """Prints the Recorder's rows as a table; on a terminal and in a notebook with a live bar below it.

    Into a pipe or a file goes one line an epoch and nothing else. `learn.no_bar()` leaves the bar out,
    `learn.no_logging()` everything; a Learner's own `logger` gets the lines instead of `print`. Where a line cannot be
    written (`OSError`: a pipe that is closed, a full disk), there is a warning, once a fit, and the fit goes on.
    """

    order = Recorder.order + 1  # prints the row that the Recorder has made

    def __init__(self) -> None:
        self._master: Any = None
        self._bar: Any = None
        self._live = False
        self._due = math.inf
        self._printed, self._failed = 0, False

    def before_fit(self) -> None:
        if not callable(self.learn.logger):
            raise TypeError(f"learn.logger must be a function of a line, got {self.learn.logger!r}")
        self._printed, self._failed = 0, False
        names = self.learn.recorder.metric_names
        self._live = self.learn.show_bar and self.learn.logger is print
        if self._live and in_notebook():
            from fastprogress.fastprogress import NBMasterBar

            self._master = NBMasterBar(None, total=self.n_epoch)
            self._master.update(0)
            self._master.write(names, table=True)
        elif not getattr(sys.stdout, "isatty", bool)():
            self._live = False

    def before_train(self) -> None:
        self._begin_part()

    def after_batch(self) -> None:
        if self._due <= time.monotonic():
            self._draw()

    def after_train(self) -> None:
        self._end_bar()

    def before_validate(self) -> None:
        self._begin_part()

    def after_validate(self) -> None:
        self._end_bar()

    def after_epoch(self) -> None:
        self._print_rows()

    def after_fit(self) -> None:
        self._print_rows()

    def cleanup_fit(self) -> None:
        self._end_bar()
        if self._master is not None:
            self._master.on_iter_end()  # leaves the table, takes the bar away
        self._master, self._live = None, False

    def _print_rows(self) -> None:
        """Prints the rows that the Recorder has made and that were not printed yet."""
        self._end_bar()
        recorder = self.learn.recorder
        for i in range(self._printed, len(recorder.epochs)):
            figures = ["" if value is None else format_figure(value) for value in recorder.values[i]]
            row = [str(recorder.epochs[i]), *figures]
            if recorder.add_time:
                row.append(format_time(recorder.seconds[i]))
            if self._master is not None:
                self._master.write(row, table=True)
                self._master.update(self.epoch + 1)
            else:
                if not i:
                    self._print(recorder.metric_names)
                self._print(row)
        self._printed = len(recorder.epochs)

    def _print(self, cells: list[str]) -> None:
        names = self.learn.recorder.metric_names
        widths = [max(len(name), 5 if name in ("epoch", "time") else 8) for name in names]
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        try:
            if self.learn.logger is print:
                print(line, flush=True)
            else:
                self.learn.logger(line)
        except OSError as error:  # a pipe that nobody reads any more, a full disk: no reason to lose the run
            if not self._failed:
                self._failed = True
                warn(f"the table cannot be written by learn.logger ({error}): the fit goes on, learn.recorder has it")
        except Exception as error:
            error.add_note("raised by learn.logger, which was given a line of the table")
            raise

    def _begin_part(self) -> None:
        """A part of an epoch begins; one that is over before its bar is due gets none."""
        self._end_bar()
        if self._live:
            self._started = time.time()
            self._due = time.monotonic() + REDRAW_S
        else:
            self.learn.rest_cb(self, "after_batch")

    def _draw(self) -> None:
        if self._bar is None:
            self._bar = self._make_bar()
        if self.training:
            loss = self.learn.recorder.smooth_loss.value
            self._bar.comment = "" if loss is None else f"{loss:.4f}"
        self._bar.update(self.iter + 1)
        self._due = time.monotonic() + REDRAW_S

    def _make_bar(self) -> Any:
        from fastprogress.fastprogress import ConsoleProgressBar, NBProgressBar

        total = self.n_iter or "noinfer"
        if self._master is not None:
            bar = NBProgressBar(None, total=total, parent=self._master)
        else:
            bar = ConsoleProgressBar(None, total=total, leave=False)
            bar.prefix = f"epoch {self.epoch + 1}/{self.n_epoch} {'train' if self.training else 'valid'}"
        bar.update(0)
        bar.start_t = self._started
        return bar

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.prefix = ""  # fastprogress 1.0 would leave the prefix standing when it takes the bar away
            self._bar.on_iter_end()
        self._bar, self._due = None, math.inf


def in_notebook() -> bool:
    """Whether the code runs in a notebook's kernel, where output can be updated in place."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ in ("ZMQInteractiveShell", "Shell")  # Jupyter's; Google Colab's


def format_figure(value: float) -> str:
    """A figure in at most eight characters: six decimals where they fit, else fewer, else an exponent.

    >>> [format_figure(x) for x in (0.98, 5565.107834, -0.5, 1.5e12, 0.0000123, float("nan"))]
    ['0.980000', '5565.108', '-0.50000', '1.50e+12', '1.23e-05', 'nan']
    """
    if not 0 < abs(value) < 1e-4:
        for decimals in range(6, -1, -1):
            if len(text := f"{value:.{decimals}f}") <= 8:
                return text
    return f"{value:.2e}"


def format_time(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any.

    >>> format_time(75.2), format_time(3700)
    ('01:15', '1:01:40')
    """
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole:02d}" if hours else f"{minutes:02d}:{whole:02d}"

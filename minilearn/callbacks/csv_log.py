"""The table of a fit in a file that every spreadsheet opens."""

import contextlib
import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from minilearn.callback import Callback
from minilearn.callbacks.recorder import Recorder
from minilearn.errors import describe, warn, whole
from minilearn.files import whole_file


class CSVLogger(Callback):
    """Writes the Recorder's table into a file, a line an epoch: what is printed, with all digits.

    The file begins, with its folder, when the first epoch does; each line is on the disk when its epoch has ended
    (`after_epoch`), so that a run that is killed keeps its lines. A figure that there is none of is empty; `time` is
    in seconds. The printing is left alone, and `learn.no_logging()` does not concern the file. A batch costs nothing.

    Where the first epoch's file cannot be written, that is an error. Later a run is worth more than its log: on a full
    disk, or where the folder is gone, there is a warning, once a fit, and each epoch tries to write all lines anew.

    Without `append` a fit replaces the file of the one before. A fit that goes on from a checkpoint (`state_dict`,
    with the Recorder's) has each of its epochs in the file once, whatever an interrupted run wrote after the
    checkpoint.

    Args:
        fname: the file, below ``learn.path`` unless it is absolute.
        append: whether what the file holds stays. The lines of this fit follow without a heading of their own.
    Raises:
        TypeError: `fname` is no name.
        ValueError: in `before_fit`, where `append` meets a file with other columns: it could not be read any more.
        OSError: in the first epoch: the file cannot be written.

    >>> CSVLogger("logs/first.csv").fname.name
    'first.csv'
    """

    order = Recorder.order + 1  # writes the row that the Recorder has made
    main_only = True
    acts_in_step = False
    run_search = False  # a search has no epochs

    def __init__(self, fname: str | Path = "history.csv", append: bool = False) -> None:
        if not isinstance(fname, (str, Path)) or not Path(fname).name:
            raise TypeError(f"fname must be the name of a file, such as 'history.csv', got {describe(fname)}")
        self.fname, self.append = Path(fname), append
        self._path: Path | None = None
        self._file: TextIO | None = None
        self._start = self._written = 0
        self._in_fit = self._failed = False

    @property
    def path(self) -> Path:
        """The file: of the last fit, else the one of a fit to come."""
        return self._path or self.learn.path / self.fname

    def read_log(self) -> list[dict[str, float | None]]:
        """What the file holds: a dict a line, with the columns' names; ``pandas.DataFrame(…)`` makes a table of it.

        Raises:
            FileNotFoundError: nothing was written yet.
            ValueError: a cell holds no number, or the file is no table.
        """
        with self.path.open(newline="", encoding="utf-8") as file:
            try:
                return [{name: _number(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
            except csv.Error as error:
                raise ValueError(f"{self.path} is no log: {error}") from None

    def state_dict(self) -> dict[str, Any]:
        """Where in the file this fit begins, in bytes; its lines are in the Recorder's state."""
        return {"start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with a fit whose lines begin there: they are written anew from the Recorder's history."""
        self._close()
        self._start = whole("start", state["start"])
        self._written = 0

    def before_fit(self) -> None:
        self._path = self.learn.path / self.fname
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._start, self._written, self._in_fit, self._failed = 0, 0, True, False
        self._begun = False
        if self.append and self._path.exists():
            names, text = self.learn.recorder.metric_names, _whole_lines(self._path.read_bytes())
            found = next(csv.reader(io.StringIO(text.decode(), newline="")), names)
            if found != names:
                raise ValueError(
                    f"{self._path} has the columns {', '.join(found)}, but this fit has {', '.join(names)}:"
                    " give CSVLogger another fname, or append=False to begin the file anew"
                )
            self._start = len(text)

    def before_epoch(self) -> None:
        if not self._begun:
            self._write_rows()  # of a fit that goes on: those before
            self._begun = True

    def after_epoch(self) -> None:
        self._try_to_write()

    def after_fit(self) -> None:
        self._try_to_write()

    def cleanup_fit(self) -> None:
        self._close()
        self._in_fit = False

    def _try_to_write(self) -> None:
        try:
            self._write_rows()
        except OSError as error:
            with contextlib.suppress(OSError):  # closing writes what is left over
                self._close()
            self._file, self._written = None, 0  # the next attempt replaces the file, with all lines of this fit
            if not self._failed:
                self._failed = True
                warn(f"CSVLogger cannot write {self.path} ({error}): the fit goes on, learn.recorder has its figures")

    def _write_rows(self) -> None:
        """Writes the rows that the Recorder has made and that are not in the file yet."""
        if not self._in_fit:
            return
        recorder = self.learn.recorder
        lines = io.StringIO()
        table = csv.writer(lines, lineterminator="\n")
        for i in range(self._written, len(recorder.epochs)):
            seconds = [recorder.seconds[i]] if recorder.add_time else []
            table.writerow([recorder.epochs[i], *recorder.values[i], *seconds])
        if self._file is None:
            self._begin(recorder.metric_names, lines.getvalue())
        elif lines.tell():
            self._file.write(lines.getvalue())  # at one go: a reader sees whole lines
            self._file.flush()
            os.fsync(self._file.fileno())
        self._written = len(recorder.epochs)

    def _begin(self, names: list[str], lines: str) -> None:
        """Replaces the file by what stays of it, with the first lines of this fit, in one move: none is ever lost."""
        assert self._path is not None
        kept = self._path.read_bytes()[: self._start] if self._start and self._path.exists() else b""
        text = _whole_lines(kept)
        if not text:
            heading = io.StringIO()
            csv.writer(heading, lineterminator="\n").writerow(names)
            text, self._start = heading.getvalue().encode(), 0
        with whole_file(self._path) as file:
            file.write(text + lines.encode())
        self._file = self._path.open("a", newline="", encoding="utf-8")

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def _whole_lines(text: bytes) -> bytes:
    """The lines of a table, without the beginning of one at its end that was cut off as it was written.

    A last line with all its cells is whole but for the line's end, or a digit of its time.
    """
    if not text or text.endswith(b"\n"):
        return text
    lines = text.split(b"\n")
    if lines[-1].count(b",") == lines[0].count(b","):
        return text + b"\n"
    return b"\n".join([*lines[:-1], b""])


def _number(cell: str) -> float | None:
    """A cell's number: a whole one (the epoch) as such; None where the cell is empty."""
    if not cell:
        return None
    return int(cell) if cell.isdecimal() else float(cell)

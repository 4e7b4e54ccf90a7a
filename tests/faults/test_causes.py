"""What breaks from without: each ends in an error that names its cause, or in a warning where the fit can go on."""

import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, get_worker_info

from minilearn.callback import Callback
from minilearn.callbacks import Checkpoint, CSVLogger, TensorBoard
from minilearn.data import DataLoader, DataLoaders
from minilearn.learner import Learner
from tests.conftest import line_dls

FULL = Path("/dev/full")
needs_full_device = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, which this system has not")


def learner(*cbs: Any, dls: Any = None, **kwargs: Any) -> Learner:
    torch.manual_seed(0)
    learn = Learner(dls or line_dls(), nn.Linear(3, 1), F.mse_loss, cbs=list(cbs), **kwargs)
    learn.logger = lambda text: None
    return learn


def still_works(learn: Learner) -> None:
    learn.dls, learn.metrics = line_dls(), []
    learn.fit(1)
    assert len(learn.recorder.values) == 1
    assert all(p.grad is None for p in learn.model.parameters())


class Rows(Dataset[Any]):
    """Rows from files; at row `at` something happens first."""

    def __init__(self, folder: Path, at: int = -1) -> None:
        self.folder, self.at = folder, at
        for i in range(12):
            (folder / f"{i}.txt").write_text(str(i))

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if i == self.at and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((3,), float((self.folder / f"{i}.txt").read_text())) / 12, torch.ones(1)


def loaders(rows: Rows, workers: int) -> DataLoaders:
    return DataLoaders(DataLoader(rows, 4, num_workers=workers), line_dls().valid)


KILLED = """
import time
from pathlib import Path
from threading import Thread
from tests.faults.test_causes import Rows, learner, loaders, still_works

learn = learner(dls=loaders(Rows(Path("."), at=9), 1))
errors = []
try:
    try:
        learn.fit(1)
    except (RuntimeError, ConnectionError, EOFError) as error:  # whichever torch comes upon first
        errors.append(error)
    time.sleep(2)
except RuntimeError as late:  # torch may say it once more, at any moment
    errors.append(late.__context__ or late)
print(errors[0], *errors[0].__notes__)
still_works(learn)
print("still works")
"""


def test_a_worker_that_is_killed_is_named(tmp_path: Path) -> None:
    """In a process of its own: torch raises in whatever the process is at when it hears of its child's death."""
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", KILLED], check=False, cwd=tmp_path, env=env, capture_output=True, text=True
    )
    named = r"a worker process of the loader has (ended: killed|died while it sent a batch\. Was it killed)"
    assert re.search(named, done.stdout), done.stderr
    assert "training batch " in done.stdout
    assert done.stdout.endswith("still works\n")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_is_named_with_the_batch(workers: int, tmp_path: Path) -> None:
    rows = Rows(tmp_path)
    (tmp_path / "9.txt").unlink()
    learn = learner(dls=loaders(rows, workers))
    with pytest.raises(FileNotFoundError, match=r"9\.txt") as caught:
        learn.fit(1)
    assert caught.value.__notes__ == [
        "a file that was asked for is not there (any more): is the data set's folder complete, and mounted?",
        "in epoch 0 of 1, while fetching training batch 2 of 3 (counted from 0)",
    ]
    still_works(learn)


def test_a_fit_goes_on_after_the_file_is_back(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    data.mkdir()
    other.mkdir()

    def weights(dls: DataLoaders, **kwargs: Any) -> list[Tensor]:
        learn = learner(dls=dls, path=tmp_path)
        learn.fit(2, **kwargs)
        return [*learn.model.parameters()]

    whole = weights(loaders(Rows(other), 0))
    dls = loaders(Rows(data), 0)
    (data / "9.txt").unlink()
    with pytest.raises(FileNotFoundError):
        weights(dls, checkpoint=Checkpoint("run", every_batches=1))
    (data / "9.txt").write_text("9")
    assert all(map(torch.equal, whole, weights(dls, checkpoint=Checkpoint("run", every_batches=1))))


def test_a_metric_that_raises_is_named() -> None:
    def ratio(pred: Tensor, target: Tensor) -> float:
        return 1 / 0

    learn = learner(metrics=ratio)
    with pytest.raises(ZeroDivisionError) as caught:
        learn.fit(1)
    assert caught.value.__notes__[0] == "raised by the metric 'ratio'"
    still_works(learn)


# ---- memory ----


class Hungry(nn.Module):
    """Asks for more memory than there is, for large batches."""

    def __init__(self, rows: int, error: type[Exception] | None = None) -> None:
        super().__init__()
        self.line, self.rows, self.error = nn.Linear(3, 1), rows, error

    def forward(self, x: Tensor) -> Tensor:
        held = self.line(x)
        if len(x) >= self.rows:
            if self.error is not None:
                raise self.error("CUDA out of memory. Tried to allocate 20.00 GiB.")
            torch.empty(1 << 60, dtype=torch.uint8)  # an exbibyte
        return held


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError])
def test_want_of_memory_in_validation_is_named_with_the_batch_size_and_what_to_do(error: Any) -> None:
    learn = learner(dls=line_dls(valid_rows=9, bs=4))
    learn.dls.loaders[1] = [(torch.ones(9, 3), torch.ones(9, 1))]
    learn.model = Hungry(9, error)
    with pytest.raises(RuntimeError) as caught:
        learn.fit(1)
    note, where = caught.value.__notes__[-2:]
    assert note.startswith("memory ran out in a validation batch of 9 rows: give the validation loader smaller batches")
    assert where == "in epoch 0 of 1, validation batch 0 of 1 (counted from 0)"
    still_works(learn)


def test_want_of_memory_in_a_validation_alone_and_in_training_is_named_too() -> None:
    learn = learner(dls=line_dls())
    learn.model = Hungry(4)
    with pytest.raises(RuntimeError) as caught:
        learn.fit(1)
    assert any("memory ran out in a training batch of 4 rows: give smaller" in note for note in caught.value.__notes__)
    with pytest.raises(RuntimeError) as caught:
        learn.validate()
    assert any("memory ran out in a validation batch of 4 rows" in note for note in caught.value.__notes__)


def test_error_for_want_of_memory_holds_no_batch_and_no_graph() -> None:
    import gc
    import weakref

    made: list[weakref.ref[Any]] = []

    class Watched(Hungry):
        def forward(self, x: Tensor) -> Tensor:
            held = x * 2
            made.extend([weakref.ref(held), weakref.ref(x)])
            super().forward(held)
            return held

    class Batches:
        def __iter__(self) -> Iterator[Any]:
            yield torch.ones(9, 3), torch.ones(9, 1)

    learn = learner(dls=DataLoaders(line_dls().train, Batches()))
    learn.model = Watched(9)
    with pytest.raises(RuntimeError) as caught:
        learn.validate()
    gc.collect()
    assert len(made) == 2
    assert [ref() is None for ref in made] == [True, True]
    assert caught.value.__notes__


# ---- loggers ----


@needs_full_device
def test_a_table_that_cannot_be_written_is_a_warning_once_and_the_fit_goes_on() -> None:
    def to_full_disk(text: str) -> None:
        with FULL.open("w") as file:
            file.write(text)

    learn = learner()
    learn.logger = to_full_disk
    with pytest.warns(RuntimeWarning, match=r"the table cannot be written by learn.logger \(.*No space left") as caught:
        learn.fit(3)
    assert len(caught) == 1
    assert len(learn.recorder.values) == 3


def test_a_logger_that_is_wrong_is_named() -> None:
    learn = learner()
    learn.logger = lambda text: text.no_such_method()  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no_such_method") as caught:
        learn.fit(1)
    assert caught.value.__notes__[0] == "raised by learn.logger, which was given a line of the table"


class Breaks(Callback):
    "Has something done in epoch 1, and undone in epoch 2."

    order = -1

    def __init__(self, breaks: Any, mends: Any = None) -> None:
        self.breaks, self.mends = breaks, mends

    def before_train(self) -> None:
        if self.epoch == 1:
            self.breaks()
        if self.epoch == 2 and self.mends is not None:
            self.mends()


def test_a_csv_log_whose_folder_was_a_file_for_a_while_has_all_lines_in_the_end(tmp_path: Path) -> None:
    log, folder = CSVLogger("logs/log.csv"), tmp_path / "logs"

    def breaks() -> None:
        log._close()
        shutil.rmtree(folder)
        folder.write_text("in the way")

    def mends() -> None:
        folder.unlink()
        folder.mkdir()

    learn = learner(log, Breaks(breaks, mends), path=tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn.fit(4)
    assert [str(w.message).startswith("CSVLogger cannot write") for w in caught] == [True]
    assert [row["epoch"] for row in log.read_log()] == [0, 1, 2, 3]


@needs_full_device
def test_a_csv_log_on_a_full_disk_is_a_warning_that_names_it(tmp_path: Path) -> None:
    log = CSVLogger("log.csv")

    def breaks() -> None:
        log._close()
        (tmp_path / "log.csv").unlink()
        log._file = FULL.open("w")

    learn = learner(log, Breaks(breaks), path=tmp_path)
    with pytest.warns(RuntimeWarning, match=r"CSVLogger cannot write .*log\.csv \(.*No space left"):
        learn.fit(3)
    assert [row["epoch"] for row in log.read_log()] == [0, 1, 2]


def test_a_csv_log_that_cannot_be_begun_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(OSError, match="logs"):
        learner(CSVLogger("logs/log.csv"), path=tmp_path).fit(1)


@needs_full_device
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_on_a_full_disk_is_a_warning_and_the_fit_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = TensorBoard("run", trace_model=False, log_preds=False)

    full = FULL.open("wb", buffering=0)
    threads: list[Thread] = []

    def breaks() -> None:
        written_by = log._writer.file_writer.event_writer._async_writer
        threads.append(written_by._worker)
        written_by._writer._writer.close()
        written_by._writer._writer = full

    learn = learner(log, Breaks(breaks), path=tmp_path)
    with pytest.warns(RuntimeWarning, match=r"TensorBoard cannot write to .*run \(.*No space left"):
        learn.fit(4)
    threads[0].join(30)  # its error is this test's and not the next one's
    full.close()
    assert len(learn.recorder.values) == 4

"""What bites in fastai's progress bars and CSV files, and no longer does."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import line_dls
from torch import nn

from minilearn.callback import Callback
from minilearn.callbacks import CSVLogger, ShowGraph
from minilearn.learner import Learner

SLOW = """
import sys, time, torch
from torch import nn
from minilearn.callback import Callback
from minilearn.learner import Learner

class Slow(Callback):
    def after_batch(self): time.sleep(0.03)

batches = [(torch.randn(8, 3), torch.randn(8, 1))] * 8
with open(sys.argv[1], "w") as file:
    sys.stdout = sys.stderr = file
    Learner((batches, batches), nn.Linear(3, 1), nn.functional.mse_loss, cbs=Slow).fit(2)
"""


def learner(path: Path, *cbs: Any) -> Learner:
    torch.manual_seed(0)
    learn = Learner(line_dls(), nn.Linear(3, 1), nn.functional.mse_loss, path=path, cbs=list(cbs))
    learn.logger = lambda text: None
    return learn


def first_cells(file: Path) -> list[str]:
    return [line.split(",")[0] for line in file.read_text().splitlines()]


def test_no_bar_is_written_into_a_log_file(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    subprocess.run([sys.executable, "-c", SLOW, str(log)], check=True)
    text = log.read_text()
    assert [line.split()[0] for line in text.splitlines()] == ["epoch", "0", "1"]
    assert not set("\r\b\x1b█|") & set(text)


def test_csv_logger_does_not_repeat_its_heading_when_it_appends(tmp_path: Path) -> None:
    learn = learner(tmp_path, CSVLogger(append=True))
    learn.fit(2)
    learn.fit(1)
    assert first_cells(tmp_path / "history.csv") == ["epoch", "0", "1", "0"]


def test_csv_logger_makes_its_folder(tmp_path: Path) -> None:
    learner(tmp_path / "new", CSVLogger("deep/er/history.csv")).fit(1)
    assert first_cells(tmp_path / "new" / "deep" / "er" / "history.csv") == ["epoch", "0"]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_csv_logger_leaves_the_logger_alone_whatever_ends_the_fit(
    tmp_path: Path, error: type[BaseException] | None
) -> None:
    seen = []

    class End(Callback):
        def before_batch(self) -> None:
            seen.append(self.learn.logger)
            if error is not None:
                raise error

    learn = learner(tmp_path, CSVLogger(), End())
    before = learn.logger
    if error is None:
        learn.fit(1)
    else:
        with pytest.raises(error):
            learn.fit(1)
    assert learn.logger is before
    assert set(seen) == {before}


def test_two_csv_loggers_leave_the_logger_alone_and_write_a_file_each(tmp_path: Path) -> None:
    learn = learner(tmp_path, CSVLogger("a.csv"), CSVLogger("b.csv"))
    before = learn.logger
    learn.fit(1)
    assert learn.logger is before
    assert first_cells(tmp_path / "a.csv") == first_cells(tmp_path / "b.csv") == ["epoch", "0"]


def test_show_graph_needs_no_progress_callback(tmp_path: Path) -> None:
    learn = learner(tmp_path, ShowGraph())
    learn.remove_cb(next(cb for cb in learn.cbs if type(cb).__name__ == "ProgressCallback"))
    learn.fit(1)
    assert learn.recorder.epochs == [0]

"""Disks that fill, folders that cannot be written to, files that are damaged, workers that die: the last good one stays."""

import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import line_dls
from torch.nn import functional as F
from torch.utils.data import Dataset

from minilearn.callback import Callback
from minilearn.callbacks import Checkpoint
from minilearn.checkpoints import CheckpointFolder
from minilearn.data import DataLoader, DataLoaders
from minilearn.files import FileError
from minilearn.learner import Learner
from minilearn.optim import SGD


def learner(path: Path, *cbs: Callback, dls: DataLoaders | None = None) -> Learner:
    torch.manual_seed(0)
    learn = Learner(dls or line_dls(16), torch.nn.Linear(3, 1), F.mse_loss, SGD, 0.01, cbs=list(cbs), path=path)
    learn.logger = lambda text: None
    return learn


class FillsTheDisk(Callback):
    """From a batch on, no file may become longer than a few bytes, as on a disk that is full."""

    order = -1000

    def __init__(self, epoch: int) -> None:
        self.from_epoch, self.before = epoch, resource.getrlimit(resource.RLIMIT_FSIZE)

    def before_epoch(self) -> None:
        if self.epoch == self.from_epoch:
            self.learn.cbs[-1]._folder.finish()  # what is being written still has room
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, self.before[1]))

    def cleanup_fit(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def numbers(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_disk_that_fills_costs_a_warning_and_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    learn = learner(tmp_path, FillsTheDisk(2))
    with pytest.warns(RuntimeWarning, match=r"could not be written, and the run goes on: .*File too large"):
        learn.fit(4, checkpoint=Checkpoint("run", keep=1))
    assert learn.recorder.epochs == [0, 1, 2, 3]
    assert numbers(tmp_path / "run") == ["000002.safetensors"]
    found = CheckpointFolder(tmp_path / "run", 1).newest()
    assert found is not None
    assert found[1]["epoch"] == 2


def test_run_on_a_full_disk_goes_on_from_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="could not be written"):
        (learn := learner(tmp_path, FillsTheDisk(2))).fit(4, checkpoint="run")
    again = learner(tmp_path)
    again.fit(4, checkpoint="run")
    assert again.recorder.values == learn.recorder.values
    assert torch.equal(again.model.weight, learn.model.weight)


def test_folder_that_vanishes_costs_a_warning(tmp_path: Path) -> None:
    class Removes(Callback):
        def before_train(self) -> None:
            if self.epoch == 1:
                self.learn.cbs[-1]._folder.finish()  # else the file that is being written may come in between
                for file in (tmp_path / "run").iterdir():
                    file.unlink()
                (tmp_path / "run").rmdir()

    learn = learner(tmp_path, Removes())
    with pytest.warns(RuntimeWarning, match="could not be written, and the run goes on"):
        learn.fit(2, checkpoint="run")
    assert learn.recorder.epochs == [0, 1]


@pytest.mark.parametrize("kind", ["a file in the way", "no rights"])
def test_folder_that_cannot_be_written_to_is_an_error_before_the_first_batch(kind: str, tmp_path: Path) -> None:
    class Sees(Callback):
        def before_batch(self) -> None:
            raise AssertionError("a batch was begun")

    if kind == "no rights":
        if not os.geteuid():
            pytest.skip("root may write everywhere")
        (tmp_path / "run").mkdir(mode=0o500)
    else:
        (tmp_path / "run").write_text("a file")
    with pytest.raises(FileError, match=r"checkpoints cannot be written to .*run: "):
        learner(tmp_path, Sees()).fit(1, checkpoint="run")


@pytest.mark.parametrize("damage", ["cut short", "a byte", "empty"])
def test_damaged_newest_checkpoint_is_set_aside_and_the_one_before_it_used(damage: str, tmp_path: Path) -> None:
    class Dies(Callback):
        def before_epoch(self) -> None:
            if self.epoch == 3:
                raise ValueError("on purpose")

    whole = learner(tmp_path / "whole")
    whole.fit(4)
    with pytest.raises(ValueError, match="on purpose"):
        learner(tmp_path, Dies()).fit(4, checkpoint="run")
    newest = tmp_path / "run" / "000003.safetensors"
    held = newest.read_bytes()
    changed = {"cut short": held[: len(held) // 2], "a byte": held[:-9] + b"\x99" + held[-8:], "empty": b""}
    newest.write_bytes(changed[damage])
    learn = learner(tmp_path)
    with pytest.warns(RuntimeWarning, match=r"000003.*is damaged.* set aside as 000003.safetensors.damaged"):
        learn.fit(4, checkpoint="run")
    assert "000003.safetensors.damaged" in numbers(tmp_path / "run")
    assert learn.recorder.values == whole.recorder.values
    assert torch.equal(learn.model.weight, whole.model.weight)


def test_where_every_checkpoint_is_damaged_nothing_is_begun_anew_in_silence(tmp_path: Path) -> None:
    learner(tmp_path).fit(3, checkpoint="run")
    for file in (tmp_path / "run").iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(FileError, match=r"no checkpoint in .* can be read: .*Remove the folder to begin the run anew"):
        learner(tmp_path).fit(3, checkpoint="run")


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".000001.safetensors.0123.part").write_bytes(b"half")
    learner(tmp_path).fit(1, checkpoint="run")
    assert numbers(tmp_path / "run") == ["000001.safetensors"]


class Deadly(Dataset[Any]):
    """Rows of which one kills the process that reads it, as a lack of memory does."""

    def __init__(self, deadly: int | None) -> None:
        self.deadly = deadly

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        if i == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((3,), float(i)), torch.zeros(1)


def with_worker(deadly: int | None) -> DataLoaders:
    return DataLoaders(DataLoader(Deadly(deadly), 2, num_workers=1), device="cpu")


def test_worker_that_dies_is_a_clear_error_and_the_run_goes_on_later(tmp_path: Path) -> None:
    # In a process of its own: torch says it once more, wherever the main process is when it hears of the death.
    code = """if True:
        import sys
        from pathlib import Path

        sys.path[:0] = sys.argv[2:]
        from test_disk import Checkpoint, learner, with_worker

        learner(Path(sys.argv[1]), dls=with_worker(9)).fit(2, checkpoint=Checkpoint("run", every_batches=1))
    """
    here = Path(__file__).parent
    command = [sys.executable, "-c", code, str(tmp_path), str(here), str(here.parent)]
    died = subprocess.run(command, capture_output=True, text=True, check=False)
    assert died.returncode == 1
    assert re.search(r"worker .*(killed by signal|has died)", died.stderr)
    learn, whole = learner(tmp_path, dls=with_worker(None)), learner(tmp_path / "whole", dls=with_worker(None))
    learn.fit(2, checkpoint="run")
    whole.fit(2)
    assert torch.equal(learn.model.weight, whole.model.weight)
    assert learn.recorder.values == whole.recorder.values

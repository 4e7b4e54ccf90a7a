"""A folder of checkpoints: which files it keeps, and which one it reads."""

import shutil
from pathlib import Path

import pytest
import torch

from minilearn.checkpoints import CheckpointFolder


def written(path: Path, n: int, keep: int) -> CheckpointFolder:
    folder = CheckpointFolder(path, keep)
    folder.open()
    for i in range(n):
        folder.write({"weights": torch.full((3,), float(i)), "epoch": i}, wait=True)
    return folder


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def test_the_newest_are_kept(tmp_path: Path) -> None:
    _, state = written(tmp_path, 5, keep=2).newest() or (None, {})
    assert files(tmp_path) == ["000004.safetensors", "000005.safetensors"]
    assert state["epoch"] == 4
    assert state["weights"].tolist() == [4.0] * 3


def test_what_a_killed_process_had_no_time_to_remove_goes_when_the_folder_is_read(tmp_path: Path) -> None:
    folder = written(tmp_path, 3, keep=2)
    shutil.copy(tmp_path / "000002.safetensors", tmp_path / "000001.safetensors")
    assert folder.newest() is not None
    assert files(tmp_path) == ["000002.safetensors", "000003.safetensors"]


def test_a_checkpoint_after_which_only_damaged_ones_come_is_not_removed(tmp_path: Path) -> None:
    folder = written(tmp_path, 3, keep=3)
    for name in ("000002", "000003"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="set aside"):
        found = CheckpointFolder(folder.path, keep=1).newest()
    assert found is not None
    assert found[0].name == "000001.safetensors"
    assert files(tmp_path) == ["000001.safetensors", "000002.safetensors.damaged", "000003.safetensors.damaged"]

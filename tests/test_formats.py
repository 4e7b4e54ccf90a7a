"""Files of every format that there has been can be read, and those of formats to come are refused in words."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from formats_samples import learner

from minilearn.checkpoints import CheckpointFolder
from minilearn.files import NewerFormatError
from minilearn.tensor_files import FORMAT, UNSIGNED

SAMPLES = Path(__file__).parent / "formats"
NUMBERS = range(1, FORMAT + 1)


@pytest.fixture(autouse=True)
def threads_of_the_samples() -> Iterator[None]:
    """The samples were made with two threads: with another number sums round otherwise, which Adam's steps enlarge."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def of_a_newer_format(file: Path) -> None:
    """Gives a file the number after the newest, and the SHA-256 that goes with it."""
    data = file.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    manifest = json.loads(header["__metadata__"]["minilearn"])
    header["__metadata__"] |= {"minilearn": json.dumps({**manifest, "format": FORMAT + 1}), "sha256": UNSIGNED}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    made = len(text).to_bytes(8, "little") + text + data[8 + n :]
    file.write_bytes(made.replace(UNSIGNED.encode(), hashlib.sha256(made).hexdigest().encode(), 1))


def test_every_format_has_its_samples() -> None:
    kinds = ("checkpoint", "model")
    assert {f"{kind}-{number}.safetensors" for kind in kinds for number in NUMBERS} == {
        file.name for file in SAMPLES.glob("*.safetensors")
    }


@pytest.mark.parametrize("number", NUMBERS)
def test_a_model_of_every_format_loads(number: int, tmp_path: Path) -> None:
    learn = learner(tmp_path).load(SAMPLES / f"model-{number}.safetensors")
    trained = learner(tmp_path)
    with trained.no_bar():
        trained.fit(2)
    for one, other in zip(learn.model.state_dict().values(), trained.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)
    assert learn.opt.state[learn.model[0].weight].keys() == trained.opt.state[trained.model[0].weight].keys()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_run_goes_on_from_a_checkpoint_of_every_format(number: int, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(SAMPLES / f"checkpoint-{number}.safetensors", tmp_path / "run" / "000001.safetensors")
    learn, trained = learner(tmp_path), learner(tmp_path)
    with learn.no_bar(), trained.no_bar():
        learn.fit(2, checkpoint="run")
        trained.fit(2)
    for one, other in zip(learn.model.state_dict().values(), trained.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)
    assert len(learn.recorder.values) == 2


def test_a_model_of_a_newer_format_is_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    shutil.copy(SAMPLES / f"model-{FORMAT}.safetensors", file)
    of_a_newer_format(file)
    with pytest.raises(NewerFormatError, match=rf"has the format {FORMAT + 1}: this minilearn reads formats up to"):
        learner(tmp_path).load(file)


def test_a_checkpoint_of_a_newer_format_is_not_set_aside_for_an_older_one(tmp_path: Path) -> None:
    for number in (1, 2):
        shutil.copy(SAMPLES / f"checkpoint-{FORMAT}.safetensors", tmp_path / f"00000{number}.safetensors")
    of_a_newer_format(tmp_path / "000002.safetensors")
    with pytest.raises(NewerFormatError, match=f"000002.safetensors has the format {FORMAT + 1}"):
        CheckpointFolder(tmp_path, keep=2).newest()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["000001.safetensors", "000002.safetensors"]

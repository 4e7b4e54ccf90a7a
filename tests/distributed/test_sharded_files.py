"""Checkpoints of many processes: whole or not there, checked to the byte, read by any number of processes."""

import json
import os
import pickletools
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sharded_file_processes import together
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, load
from torch.distributed.fsdp import fully_shard

from minilearn.callbacks.checkpoint import Checkpoint
from minilearn.checkpoints import CheckpointFolder
from minilearn.data import DataLoaders
from minilearn.files import FileError, NewerFormatError
from minilearn.learner import Learner
from minilearn.sharded_conversions import merge_checkpoint, shard_checkpoint
from minilearn.sharded_files import ShardedWriter, find_checkpoint, read_sharded, write_sharded
from minilearn.sharded_manifest import MANIFEST
from minilearn.states import flatten_state, unflatten_state
from minilearn.tensor_files import DTYPES

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks processes that know torch")

VALUES = {"epoch": 3, "lr": 0.5, "seen": [1, 2], "best": float("inf")}
SHARED = {
    "count": torch.tensor(7),
    "none": torch.zeros(0, 3),
    "mask": torch.tensor([True, False, True]),
    "laid out otherwise": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "spread": torch.ones(1).expand(4),
    **{str(dtype): torch.arange(2 * dtype.itemsize, dtype=torch.uint8).view(dtype) for dtype in DTYPES},
}
"""What all processes have: without a dimension, without an element, laid out otherwise, and of every dtype."""


def model() -> nn.Sequential:
    """One whose shapes cannot be shared out evenly: of the last weight and bias, most processes have nothing."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Linear(10, 3), nn.Linear(3, 1))


def trained() -> tuple[nn.Sequential, torch.optim.Adam]:
    """A model after two steps of Adam; sharded where there are several processes."""
    made = model()
    if distributed.is_initialized():
        fully_shard(made)
    opt = torch.optim.Adam(made.parameters(), lr=0.1)
    for i in range(2):
        x = torch.linspace(-1, 1, 24).reshape(4, 6) * (i + 1)
        made(x).square().mean().backward()
        opt.step()
        opt.zero_grad()
    return made, opt


def state_of(made: nn.Module, opt: torch.optim.Optimizer) -> tuple[Any, dict[str, Tensor]]:
    return flatten_state({"model": dict(made.state_dict()), "opt": opt.state_dict(), "shared": dict(SHARED), **VALUES})


def full(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The bytes of whole tensors, the same in all processes, which must all ask."""
    found = {}
    for name, tensor in tensors.items():
        whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        plain = whole.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found[name] = (str(whole.dtype), tuple(whole.shape), plain)
    return found


def emptied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same shapes with other numbers in them."""
    return {name: torch.zeros_like(tensor.detach()) for name, tensor in tensors.items()}


# ---- 4 → 2 → 1 → 4 ----


def writes(rank: int, folder: Path) -> dict[str, Any]:
    values, tensors = state_of(*trained())
    write_sharded(folder / "four", tensors, values)
    before = full(tensors)
    writer = ShardedWriter()
    called: list[int] = []
    last = dict(trained()[0].named_parameters())["3.weight"]
    tied = {"last": last, "other": torch.zeros_like(last.detach()), "again": last.detach()}
    writer.write(folder / "later", tensors, values, then=lambda: called.append(rank))
    for tensor in tensors.values():
        if tensor.stride() != (0,):
            tensor.detach().zero_()
    writer.finish()
    writer.finish()  # nothing is left to wait for
    return {
        "full": before,
        "called": called,
        "local": [t.to_local().numel() for t in tensors.values() if hasattr(t, "to_local")],
        "tied": flatten_state(tied)[0],
    }


def reads(rank: int, folder: Path, source: str, target: str | None) -> dict[str, Any]:
    values, tensors = state_of(*trained())
    into = emptied(tensors)
    loaded = read_sharded(folder / source, into)
    if target is not None:
        write_sharded(folder / target, into, loaded)
    state = unflatten_state(loaded, into)
    return {"full": full(into), "values": {name: state[name] for name in VALUES}, "same": values == loaded}


def names_of_all() -> set[str]:
    """The names of the tensors of a trained model and what is kept beside it."""
    made = model()
    kept = {
        f"opt.state.{i}.{what}" for i, _ in enumerate(made.parameters()) for what in ("step", "exp_avg", "exp_avg_sq")
    }
    return {f"model.{name}" for name in made.state_dict()} | {f"shared.{name}" for name in SHARED} | kept


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with what four processes wrote, and what they tell."""
    folder = tmp_path_factory.mktemp("sharded")
    told = together(4, writes, folder)
    assert all(isinstance(of_one, dict) for of_one in told), told
    return folder, told


def test_four_processes_two_one_and_four_again_read_the_very_bits(
    written: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    folder, told = written
    right = told[0]["full"]
    assert any(0 in of_one["local"] for of_one in told), "some process should have nothing of some tensor"
    assert right.keys() == names_of_all()
    shutil.copytree(folder / "four", tmp_path / "four")
    for n, source, target in ((2, "four", "two"), (1, "two", "one"), (4, "one", None)):
        for of_one in together(n, reads, tmp_path, source, target):
            assert of_one["full"] == right, f"{source} by {n}"
            assert of_one["same"]
            assert of_one["values"] == VALUES


def test_a_checkpoint_written_beside_the_training_holds_what_was_when_it_began(
    written: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, told = written
    found = find_checkpoint(folder / "later")
    into = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in found.tensors.items()}
    found.read(into)
    assert full(into) == told[0]["full"]
    assert [of_one["called"] for of_one in told] == [[0], [], [], []]


def test_tied_shards_are_one_tensor_in_all_processes_and_empty_ones_are_not_tied(
    written: tuple[Path, list[dict[str, Any]]],
) -> None:
    last = {"tensor": "last"}
    for of_one in written[1]:
        assert of_one["tied"] == {"dict": {"last": last, "other": {"tensor": "other"}, "again": last}}


def test_every_process_writes_its_part_and_what_all_have_is_written_once(
    written: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, _ = written
    files = sorted((folder / "four").glob("*.safetensors"))
    assert [file.name[:11] for file in files] == [f"shard-0000{i}" for i in (1, 2, 3, 4)]
    elements: dict[str, int] = {}
    for file in files:
        for name, tensor in load_file(file).items():
            elements[name] = elements.get(name, 0) + tensor.numel()
    found = find_checkpoint(folder / "four").tensors
    assert elements == {name: torch.Size(tensor.shape).numel() for name, tensor in found.items()}


def test_a_process_begins_another_file_where_one_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minilearn.sharded_storage.FILE_BYTES", 40)
    tensors = {name: torch.arange(n, dtype=torch.float32) + n for name, n in {"a": 5, "b": 5, "c": 30, "d": 1}.items()}
    write_sharded(tmp_path / "f", tensors, None)
    held = [set(load_file(file)) for file in sorted((tmp_path / "f").glob("*.safetensors"))]
    assert held == [{"a", "b"}, {"c"}, {"d"}]
    into = emptied(tensors)
    read_sharded(tmp_path / "f", into)
    assert full(into) == full(tensors)


def test_torchs_own_reader_finds_the_tensors(written: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, told = written
    found = find_checkpoint(folder / "four").tensors
    into: dict[str, Any] = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in found.items()}
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        load(into, storage_reader=HuggingFaceStorageReader(str(folder / "four")))
    assert full(into) == told[0]["full"]


# ---- no pickle ----


def test_no_file_holds_a_pickle(written: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = written
    files = [file for name in ("four", "later") for file in (folder / name).iterdir()]
    assert {file.suffix for file in files} == {".safetensors", ".json"}
    for file in files:
        with pytest.raises(ValueError), file.open("rb") as opened:  # noqa: PT011 -- several messages
            list(pickletools.genops(opened))
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            load_file(file)
    assert not list(folder.rglob(".metadata*"))


def unpickled(rank: int, folder: Path) -> list[str]:
    """What is found in pickles while a checkpoint is read, other than in what processes send each other."""
    seen: list[str] = []

    def look(event: str, args: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            frame, names = sys._getframe(1), []
            while frame is not None:
                names.append(frame.f_code.co_name)
                frame = frame.f_back  # type: ignore[assignment]
            if "_tensor_to_object" not in names:
                seen.append(str(args))

    _, tensors = state_of(*trained())
    into = emptied(tensors)
    sys.addaudithook(look)
    read_sharded(folder / "four", into)
    return seen


def test_reading_takes_nothing_out_of_pickles(written: tuple[Path, list[dict[str, Any]]]) -> None:
    assert together(1, unpickled, written[0]) == [[]]
    assert together(2, unpickled, written[0]) == [[], []]


# ---- damage ----


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint that one process wrote, of two files, and its tensors."""
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False])}
    write_sharded(tmp_path / "small", tensors, {"dict": {"epoch": 3}})
    return tmp_path / "small", tensors


def test_a_changed_byte_anywhere_in_any_file_is_found(small: tuple[Path, dict[str, Tensor]]) -> None:
    folder, tensors = small
    names = sorted(file.name for file in folder.iterdir())
    assert len(names) == 2
    for name in names:
        data = (folder / name).read_bytes()
        for i in range(len(data)):
            (folder / name).write_bytes(data[:i] + bytes([data[i] ^ 0x20]) + data[i + 1 :])
            into = emptied(tensors)
            with pytest.raises(FileError, match=name):
                read_sharded(folder, into)
            assert not into["w"].any()
        (folder / name).write_bytes(data)
    read_sharded(folder, into)
    assert torch.equal(into["w"], tensors["w"])


def test_a_file_cut_short_is_named(small: tuple[Path, dict[str, Tensor]]) -> None:
    folder, tensors = small
    for file in list(folder.iterdir()):
        data = file.read_bytes()
        for n in range(0, len(data), 7):
            file.write_bytes(data[:n])
            with pytest.raises(FileError, match=rf"{file.name} is (damaged|no manifest)"):
                read_sharded(folder, emptied(tensors))
        file.write_bytes(data)


def test_a_manifest_of_a_newer_format_or_made_to_mislead_is_refused(small: tuple[Path, dict[str, Tensor]]) -> None:
    import hashlib

    folder, tensors = small
    right = json.loads((folder / MANIFEST).read_text())

    def signed(**changes: Any) -> None:
        text = json.dumps({**right, **changes, "sha256": "0" * 64}, separators=(",", ":"))
        text = text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1)
        (folder / MANIFEST).write_text(text)

    signed()
    read_sharded(folder, emptied(tensors))
    name, size, digest = right["files"][0]
    dtype, shape, pieces = right["tensors"]["w"]
    signed(format=2)
    with pytest.raises(NewerFormatError, match="format 2: this minilearn reads formats up to 1"):
        read_sharded(folder, emptied(tensors))
    for changes, named in (
        ({"format": 0}, "the format 0, which is none"),
        ({"kind": "model"}, "holds no checkpoint, but a model"),
        ({"files": [[f"../{folder.name}/{name}", size, digest]]}, "not one of its folder"),
        ({"tensors": {"w": [dtype, shape, []]}}, "do not make the whole"),
        ({"tensors": {"w": [dtype, shape, [[0, [1, 0], [2, 3]]]]}}, "not within it"),
        ({"tensors": {"w": [dtype, [-2, -3], pieces]}}, "shape"),
        ({"tensors": {"w": ["PY", shape, pieces]}}, "no manifest"),
        ({"tensors": {"w": [dtype, [2**31, 3], [[0, [0, 0], [2**31, 3]]]]}}, f"{name} holds other tensors.*: w"),
        ({"tensors": {**right["tensors"], "no": right["tensors"]["b"]}}, f"{name} holds other tensors.*: no"),
        ({"tensors": {"w": [dtype, [10**30, 0], []]}}, "shape"),
        ({"files": 7}, "no manifest"),
    ):
        signed(**changes)
        with pytest.raises(FileError, match=named):
            read_sharded(folder, emptied(tensors))


def test_what_is_missing_unexpected_or_of_another_shape_is_named_and_nothing_is_changed(
    small: tuple[Path, dict[str, Tensor]],
) -> None:
    folder, _ = small
    into = {"w": torch.zeros(3, 2), "b": torch.zeros(2), "bias": torch.zeros(1)}
    with pytest.raises(ValueError, match="nothing was loaded") as caught:
        read_sharded(folder, into)
    assert "the checkpoint has no bias" in str(caught.value)
    assert "w is (2, 3) in the checkpoint and (3, 2) here" in str(caught.value)
    assert "b is torch.bool in the checkpoint and torch.float32 here" in str(caught.value)
    with pytest.raises(ValueError, match="it has b, which is not here"):
        read_sharded(folder, {"w": torch.zeros(2, 3)})
    assert not any(tensor.any() for tensor in into.values())
    with pytest.raises(FileNotFoundError, match="did you mean"):
        read_sharded(folder.with_name("smal"), into)


def test_a_tensor_that_cannot_be_saved_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    for tensor, named in (
        (torch.ones(2, dtype=torch.complex128), "w cannot be saved: it is of torch.complex128"),
        (torch.ones(2, 2).to_sparse(), "w cannot be saved: it is a torch.sparse_coo tensor"),
        (torch.ones(2, device="meta"), "w cannot be saved: it is on no device"),
    ):
        with pytest.raises(TypeError, match=named):
            write_sharded(tmp_path / "f", {"w": tensor}, None)
    with pytest.raises(FileError, match="JSON"):
        write_sharded(tmp_path / "f", {"w": torch.ones(2)}, float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_never_written_over_another(small: tuple[Path, dict[str, Tensor]]) -> None:
    folder, tensors = small
    with pytest.raises(FileError, match="is there already"):
        write_sharded(folder, tensors, None)
    assert [file.name for file in folder.parent.iterdir()] == ["small"]
    assert read_sharded(folder, emptied(tensors)) == {"dict": {"epoch": 3}}


# ---- faults in one of several processes ----


def faults(rank: int, folder: Path) -> list[str]:
    """What each process is told of a damaged file, of names that do not fit, and of a disk that is full in one."""
    import resource

    _, tensors = state_of(*trained())
    told = []

    def told_by(act: Any) -> None:
        try:
            act()
        except (FileError, ValueError) as error:
            told.append(f"{type(error).__name__}: {error}")
        else:
            told.append("nothing")

    into = emptied(tensors)
    told_by(lambda: read_sharded(folder / "damaged", into))
    told_by(lambda: read_sharded(folder / "missing", into))
    told_by(lambda: find_checkpoint(folder / "four").read({"only here": torch.zeros(2)} if rank == 1 else into))
    writer = ShardedWriter()
    if rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    writer.write(folder / "full", tensors, None)
    told_by(writer.finish)
    told_by(writer.finish)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    writer.write(folder / "room again", tensors, None)
    told_by(writer.finish)
    return told


def test_what_goes_wrong_in_one_process_is_an_error_in_all(
    written: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    for name in ("four", "damaged", "missing"):
        shutil.copytree(written[0] / "four", tmp_path / name)
    third = next((tmp_path / "damaged").glob("shard-00003*"))
    third.write_bytes(third.read_bytes()[:-1] + b"\xff")
    (tmp_path / "missing" / third.name).unlink()
    told = together(2, faults, tmp_path)
    assert told[0] == told[1]
    damaged, missing, misfit, full_disk, again, room = told[0]
    assert damaged == f"FileError: {third} is damaged: its SHA-256 is not the one that was written"
    assert missing.startswith(f"FileError: {tmp_path / 'missing' / third.name} is missing")
    assert "the checkpoint has no only here" in misfit
    assert full_disk == f"FileError: {tmp_path / 'full'} was not written: process 1: File too large"
    assert [again, room] == ["nothing", "nothing"]
    assert sorted(f.name for f in tmp_path.iterdir() if f.is_dir()) == ["damaged", "four", "missing", "room again"]


def killed(rank: int, folder: Path, victim: int, file: str) -> str:
    """One process ends at once when it opens a file; what the others are told."""
    _, tensors = state_of(*trained())
    write_sharded(folder / "000001", tensors, None)

    def end(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and file in str(args[0]) and "000002" in str(args[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    if rank == victim:
        sys.addaudithook(end)
    began = perf_counter()
    try:
        write_sharded(folder / "000002", tensors, None)
    except FileError as error:
        assert perf_counter() - began < 20, "a process that is gone is noticed in seconds"
        return str(error)
    return "written"


@pytest.mark.parametrize(("victim", "file"), [(1, "shard-00002"), (0, MANIFEST)], ids=["its shard", "the manifest"])
def test_a_process_killed_in_the_middle_leaves_the_old_checkpoint_and_no_new_one(
    victim: int, file: str, tmp_path: Path
) -> None:
    told = together(2, killed, tmp_path, victim, file)
    assert told[victim] == -signal.SIGKILL
    assert told[1 - victim].startswith(f"{tmp_path / '000002'} was not written: ")
    assert not (tmp_path / "000002").exists()
    found = find_checkpoint(tmp_path / "000001")
    into = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in found.tensors.items()}
    found.read(into)
    assert into["model.0.weight"].any()


# ---- conversions ----


def test_a_merged_checkpoint_is_one_that_a_single_process_reads(
    written: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    folder, told = written
    path = merge_checkpoint(folder / "four", tmp_path / "run" / "000001")
    assert path == tmp_path / "run" / "000001.safetensors"
    found, state = CheckpointFolder(tmp_path / "run", keep=1).newest() or (None, {})
    assert found == path
    _, tensors = flatten_state(state)
    assert full(tensors) == told[0]["full"]
    assert {name: state[name] for name in VALUES} == VALUES


def run(path: Path, epochs: int) -> Learner:
    torch.manual_seed(0)
    x = torch.randn(32, 6)
    learn = Learner(DataLoaders.from_tensors(x, x[:, :1], bs=8), model(), nn.functional.mse_loss, path=path)
    learn.fit(epochs, lr=0.01, cbs=Checkpoint("run"))
    return learn


def test_a_fits_checkpoint_is_sharded_and_merged_and_gone_on_with(tmp_path: Path) -> None:
    learn = run(tmp_path, 2)
    first = max((tmp_path / "run").glob("*.safetensors"))
    folder = shard_checkpoint(first, tmp_path / "sharded" / "000001")
    assert sorted(file.suffix for file in folder.iterdir()) == [".json", ".safetensors"]
    back = merge_checkpoint(folder, tmp_path / "merged" / "run" / first.stem)
    assert back.read_bytes() == first.read_bytes()
    again = run(tmp_path / "merged", 2)  # it is done: nothing is trained
    assert again.recorder.values == learn.recorder.values
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), learn.model.parameters(), strict=True))


def takes_over(rank: int, folder: Path, source: str) -> dict[str, Any]:
    """Reads a checkpoint of one process into a sharded model, its optimizer's state into the shards beside it."""
    made = model()
    fully_shard(made)
    found = find_checkpoint(folder / source)
    own = {f"model.{name}": tensor.detach() for name, tensor in made.state_dict().items()}
    by_shape = {tuple(p.shape): p for p in made.parameters()}
    into = {}
    for name, tensor in found.tensors.items():
        if name in own:
            into[name] = own[name]
        elif name.startswith("opt") and tensor.shape in by_shape:
            into[name] = torch.zeros_like(by_shape[tensor.shape].detach(), dtype=tensor.dtype)
        else:
            into[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    found.read(into)
    return full(into)


def test_processes_read_what_one_process_wrote_as_it_is_and_converted(tmp_path: Path) -> None:
    run(tmp_path, 1)
    first = max((tmp_path / "run").glob("*.safetensors"))
    shard_checkpoint(first, tmp_path / "sharded")
    right = full(load_file(first))
    for source in (str(first.relative_to(tmp_path)), "sharded"):
        assert together(2, takes_over, tmp_path, source) == [right, right]


def test_a_conversion_of_what_is_not_there_or_damaged_is_an_error_and_writes_nothing(
    small: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    folder, _ = small
    with pytest.raises(FileNotFoundError, match="small"):
        merge_checkpoint(tmp_path / "smal", tmp_path / "f")
    with pytest.raises(FileNotFoundError, match="there is no"):
        shard_checkpoint(tmp_path / "f", tmp_path / "g")
    with pytest.raises(TypeError, match="folder must be the name of a folder, got"):
        merge_checkpoint("", tmp_path / "f")
    file = merge_checkpoint(folder, tmp_path / "f")
    with pytest.raises(FileError, match="is there already"):
        shard_checkpoint(file, folder)
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    with pytest.raises(FileError, match="is damaged: its SHA-256"):
        shard_checkpoint(file, tmp_path / "g")
    shard = next(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(FileError, match=shard.name):
        merge_checkpoint(folder, tmp_path / "h")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.safetensors", "small"]

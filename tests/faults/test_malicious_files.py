"""Files that would run a program, or write where they should not, given to every function that reads a file."""

import builtins
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minilearn.archives import archive_of, read_archive
from minilearn.callbacks.csv_log import CSVLogger
from minilearn.checkpoints import CheckpointFolder
from minilearn.data import DataLoaders, untar_data
from minilearn.data.download import DataError, check_sha256, unpack
from minilearn.data.handwritten import mnist
from minilearn.data.idx import read_idx
from minilearn.exchange import import_weights
from minilearn.exported import GRAPH, MANIFEST, load_exported
from minilearn.files import FileError
from minilearn.learner import Learner
from minilearn.saved import load_model
from minilearn.tensor_files import read_tensors


class Calls:
    """Unpickled, it is a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def learner(path: Path) -> Learner:
    x = torch.ones(4, 3)
    dls = DataLoaders.from_tensors(x, x[:, :1], x, x[:, :1], bs=2, device="cpu")
    learn = Learner(dls, nn.Linear(3, 1), F.mse_loss, path=path)
    learn.logger = lambda text: None
    return learn


# ---- the files; each leaves `ran` where it is carried out ----


def programs(ran: Path) -> dict[str, Any]:
    touch = f"open({str(ran)!r}, 'w').close()"
    return {
        "os.system": Calls(os.system, f"touch {ran}"),
        "exec": Calls(builtins.exec, touch),
        "eval": Calls(builtins.eval, touch),
        "nested": {"model": {"0.weight": torch.ones(1), "deep": [(1, {"x": Calls(builtins.exec, touch)})]}},
        "in a list": [torch.ones(2), Calls(os.system, f"touch {ran}")],
        "pickle in a pickle": Calls(pickle.loads, pickle.dumps(Calls(os.system, f"touch {ran}"))),
    }


def files(folder: Path, ran: Path) -> dict[str, bytes]:
    """The contents of malicious files by what they are."""
    made: dict[str, bytes] = {}
    for name, program in programs(ran).items():
        for protocol in (0, 2, 4):
            made[f"{name}, protocol {protocol}"] = pickle.dumps(program, protocol)
        saved = folder / "saved"
        torch.save(program, saved)
        made[f"{name}, torch.save"] = saved.read_bytes()
        torch.save(program, saved, _use_new_zipfile_serialization=False)
        made[f"{name}, torch.save of before 1.6"] = saved.read_bytes()
        made[f"{name}, gzip"] = gzip.compress(pickle.dumps(program))
        saved.unlink()
    evil = made["os.system, protocol 2"]
    made["a header of its length"] = len(evil).to_bytes(8, "little") + evil
    made["zip with ../"] = zipped({"a/../../outside": b"x", "a/data.pkl": evil})
    made["zip with /"] = zipped({f"{ran}": b"x"})
    made["zip bomb"] = zipped({"a/data.pkl": bytes(10_000_000)}, zipfile.ZIP_DEFLATED)
    made["zip of two of one name"] = zipped({"a/data.pkl": evil}) + zipped({"a/data.pkl": evil})
    for what in ("../outside", f"{ran}", "a/../../outside"):
        made[f"tar with {what[:5]}"] = tarred([(what, tarfile.REGTYPE, "")])
    made["tar with a link out"] = tarred([("a", tarfile.SYMTYPE, ".."), ("a/outside", tarfile.REGTYPE, "")])
    made["tar with a hard link out"] = tarred([("a", tarfile.LNKTYPE, "/etc/passwd")])
    made["tar with a link to /"] = tarred([("a", tarfile.SYMTYPE, str(folder)), ("a/outside", tarfile.REGTYPE, "")])
    made["tar with a device"] = tarred([("a", tarfile.CHRTYPE, "")])
    made["gzip bomb"] = gzip.compress(bytes(10_000_000))
    made["deep JSON"] = b"[" * 200_000
    made["numpy's pickle"] = (
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}".ljust(128) + evil
    )
    return made


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(members: list[tuple[str, bytes, str]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, 1 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"x"))
    return buffer.getvalue()


# ---- the functions ----


def in_checkpoints(file: Path) -> None:
    """A fit that is to go on from the file."""
    place = file.parent / "run" / "000001.safetensors"
    place.parent.mkdir()
    file.rename(place)
    learn = learner(file.parent)
    with learn.no_bar():
        learn.fit(1, checkpoint=place.parent)


def in_checkpoint_folder(file: Path) -> None:
    place = file.parent / "000001.safetensors"
    file.rename(place)
    CheckpointFolder(file.parent, keep=2).newest()


def as_mnist(file: Path) -> None:
    raw = file.parent / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{part}-ubyte.gz").write_bytes(file.read_bytes())
    mnist(file.parent, download=False)


def as_log(file: Path) -> None:
    log = CSVLogger(file.name)
    log._path = file
    log.read_log()


def downloaded(file: Path) -> None:
    untar_data(file.as_uri(), file.parent / "data", hashlib.sha256(file.read_bytes()).hexdigest())


READERS: dict[str, Callable[[Path], Any]] = {
    "learn.load": lambda file: learner(file.parent).load(file),
    "load_model": lambda file: load_model(file, nn.Linear(3, 1)),
    "read_tensors": lambda file: read_tensors(file, kind="model"),
    "fit(checkpoint=)": in_checkpoints,
    "CheckpointFolder": in_checkpoint_folder,
    "load_exported": load_exported,
    "import_weights": lambda file: import_weights(file, nn.Linear(3, 1)),
    "learn.import_weights": lambda file: learner(file.parent).import_weights(file),
    "read_archive": read_archive,
    "untar_data": downloaded,
    "unpack": lambda file: unpack(file, file.parent / "unpacked"),
    "check_sha256": lambda file: check_sha256(file, "0" * 64),
    "read_idx": read_idx,
    "mnist": as_mnist,
    "CSVLogger.read_log": as_log,
}
"""Every public function of the package that reads a file, with a file of that name."""
MAY_READ = {"read_archive", "CSVLogger.read_log"}
"""Those that give bytes or numbers of whatever is there, and take nothing for code."""


@pytest.mark.parametrize("reader", READERS)
def test_nothing_that_a_file_says_is_run_or_written_elsewhere(reader: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for what, data in files(tmp_path, ran).items():
        inside = tmp_path / "in" / "side"
        inside.mkdir(parents=True)
        file = inside / "file.safetensors"
        file.write_bytes(data)
        try:
            READERS[reader](file)
            failed = ""
        except (OSError, ValueError, TypeError) as error:
            failed = str(error)
        assert not ran.exists(), what
        assert [there.name for there in tmp_path.iterdir()] == ["in"], what
        assert [there.name for there in (tmp_path / "in").iterdir()] == ["side"], what
        assert failed or reader in MAY_READ or (reader in ("untar_data", "unpack") and is_tar_without_harm(inside)), (
            what
        )
        shutil.rmtree(tmp_path / "in")


def is_tar_without_harm(folder: Path) -> bool:
    """Whether what was unpacked lies in its folder: Python's filter takes a leading / from names."""
    return all(there.resolve().is_relative_to(folder) and not there.is_symlink() for there in folder.rglob("*"))


def test_the_files_would_run_where_a_reader_unpickles(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for what, data in files(tmp_path, ran).items():
        if what.split(", ")[-1] in ("protocol 2", "torch.save"):
            if "protocol" in what:
                pickle.loads(data)
            else:
                torch.load(io.BytesIO(data), weights_only=False)
            assert ran.exists(), what
            ran.unlink()


# ---- exported models: the form of the file is right, and what it says is not ----


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("exported")
    return read_archive(learner(folder).export("model.pt2"))


def with_manifest(members: dict[str, bytes]) -> bytes:
    manifest = json.loads(members[MANIFEST])
    manifest["files"] = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in members.items()
        if name != MANIFEST
    }
    return archive_of({**members, MANIFEST: json.dumps(manifest).encode()}).getvalue()


def changed(members: dict[str, bytes], change: Callable[[Any], Any]) -> dict[str, bytes]:
    graph = json.loads(members[GRAPH])
    change(graph)
    return {**members, GRAPH: json.dumps(graph).encode()}


def node(graph: Any) -> Any:
    return graph["graph_module"]["graph"]["nodes"][0]


def signature(graph: Any) -> Any:
    return graph["graph_module"]["module_call_graph"][0]["signature"]


ENUM = json.dumps([{"__enum__": True, "fqn": "this:s", "name": "x"}])
RUN = "__import__('os').system('touch ran')"
GRAPHS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "guards": (lambda g: g.update(guards_code=[RUN]), "guards_code"),
    "a stack trace": (lambda g: node(g).update(metadata={"stack_trace": f"\n{RUN}"}), "metadata"),
    "an operator of os": (lambda g: node(g).update(target="torch.os.system"), r"it calls 'torch\.os\.system'"),
    "an operator of operator": (lambda g: node(g).update(target="_operator.methodcaller"), "methodcaller"),
    "from_file": (lambda g: node(g).update(target="torch.ops.aten.from_file.default"), "from_file"),
    "save": (lambda g: node(g).update(target="torch.ops.aten.save.default"), "save"),
    "a library": (lambda g: node(g).update(target="torch.ops.load_library"), "load_library"),
    "a private operator": (lambda g: node(g).update(target="torch.ops.aten._cudnn_rnn.default"), "_cudnn_rnn"),
    "an unknown one": (lambda g: node(g).update(target="torch.ops.aten.nothing.default"), "does not have"),
    "a name": (lambda g: node(g).update(name=f"x={RUN}"), "it has the name"),
    "an argument": (lambda g: node(g)["inputs"][0].update(name="a, b=1): pass #"), "it has the name"),
    "a text": (lambda g: node(g)["inputs"][0].update(arg={"as_string": RUN}), "it has the text"),
    "an object": (lambda g: node(g)["inputs"][0].update(arg={"as_custom_obj": {}}), "as_custom_obj"),
    "an operator as a value": (lambda g: node(g)["inputs"][0].update(arg={"as_operator": "x"}), "as_operator"),
    "a size": (
        lambda g: g["graph_module"]["graph"]["tensor_values"]["linear"]["sizes"].__setitem__(
            0, {"as_expr": {"expr_str": RUN, "hint": None}}
        ),
        "it has a size of",
    ),
    "a size by a builtin": (
        lambda g: g["graph_module"]["graph"]["tensor_values"]["linear"]["sizes"].__setitem__(
            0, {"as_expr": {"expr_str": "exec(s0)", "hint": None}}
        ),
        "it has a size of",
    ),
    "a huge size": (
        lambda g: g["graph_module"]["graph"]["tensor_values"]["linear"]["sizes"].__setitem__(
            0, {"as_expr": {"expr_str": "9**9**9", "hint": None}}
        ),
        "it has a size of",
    ),
    "a symbol": (lambda g: g["range_constraints"].update({RUN: {"min_val": 0, "max_val": 1}}), "it has the text"),
    "an enum": (
        lambda g: signature(g).update(
            in_spec=json.dumps([1, {"type": "builtins.dict", "context": ENUM, "children_spec": []}])
        ),
        "of a type beside",
    ),
    "a type": (
        lambda g: signature(g).update(
            out_spec=json.dumps([1, {"type": "os.system", "context": "null", "children_spec": []}])
        ),
        "of a type beside",
    ),
    "depth": (lambda g: g.update(deep=json.loads("[" * 150 + "]" * 150)), "nested too deep"),
}


@pytest.mark.parametrize("what", GRAPHS)
def test_a_graph_that_says_more_than_a_graph_is_refused(what: str, exported: dict[str, bytes], tmp_path: Path) -> None:
    change, named = GRAPHS[what]
    (tmp_path / "m.pt2").write_bytes(with_manifest(changed(exported, change)))
    with pytest.raises(FileError, match=named):
        load_exported(tmp_path / "m.pt2")
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt2"]
    assert not Path("ran").exists()


def pickled(members: dict[str, bytes], listed: str) -> dict[str, bytes]:
    config = json.loads(members[listed])
    for entry in config["config"].values():
        entry["use_pickle"] = True
    return {**members, listed: json.dumps(config).encode()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m, evil: {**m, "data/sample_inputs/model.pt": evil}, "sample inputs, which are a pickle"),
        (lambda m, evil: {**m, "data/constants/custom_obj_0": evil}, "custom_obj_0"),
        (lambda m, evil: {**m, "data/constants/opaque_obj_0": evil}, "opaque_obj_0"),
        (lambda m, evil: {**m, "data/weights/model.pt": evil}, r"model\.pt"),
        (lambda m, evil: {**m, "data/aotinductor/model/x.so": evil}, "aotinductor"),
        (lambda m, evil: {**m, "serialized_example_inputs.pt": evil}, "serialized_example_inputs"),
        (
            lambda m, evil: {**pickled(m, "data/weights/model_weights_config.json"), "data/weights/weight_0": evil},
            "is a pickle",
        ),
    ],
    ids=["samples", "script object", "opaque object", "old weights", "library", "old format", "pickled weight"],
)
def test_a_member_that_torch_would_unpickle_is_refused(
    change: Any, named: str, exported: dict[str, bytes], tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    torch.save(Calls(os.system, f"touch {ran}"), tmp_path / "evil")
    (tmp_path / "m.pt2").write_bytes(with_manifest(change(exported, (tmp_path / "evil").read_bytes())))
    with pytest.raises(FileError, match=named):
        load_exported(tmp_path / "m.pt2")
    assert not ran.exists()


def test_a_tensor_larger_than_its_bytes_is_refused(exported: dict[str, bytes], tmp_path: Path) -> None:
    listed = "data/weights/model_weights_config.json"
    config = json.loads(exported[listed])
    next(iter(config["config"].values()))["tensor_meta"]["sizes"] = [{"as_int": 1 << 40}, {"as_int": 3}]
    (tmp_path / "m.pt2").write_bytes(with_manifest({**exported, listed: json.dumps(config).encode()}))
    with pytest.raises(FileError, match="is larger than its 12 bytes in the file"):
        load_exported(tmp_path / "m.pt2")


def test_a_file_of_torchs_own_is_not_taken_for_one_of_ours(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(3, 1), (torch.ones(2, 3),)), tmp_path / "m.pt2")
    with pytest.raises(FileError, match=r"minilearn did not write it|can be code"):
        load_exported(tmp_path / "m.pt2")


def test_an_archive_that_unpacks_well_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tarred([("top/file", tarfile.REGTYPE, "")]))
    assert [file.name for file in unpack(tmp_path / "a.tar.gz", tmp_path / "data").iterdir()] == ["file"]


def test_a_download_that_is_not_the_one_expected_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tarred([("top/file", tarfile.REGTYPE, "")]))
    with pytest.raises(DataError, match="its SHA-256 is"):
        untar_data((tmp_path / "a.tar.gz").as_uri(), tmp_path / "data", "0" * 64)
    assert list((tmp_path / "data").iterdir()) == []

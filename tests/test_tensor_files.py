"""Files of tensors and values: exact, whole or not there, and no byte of them changed without an error."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from minilearn import tensor_files
from minilearn.files import FileError
from minilearn.states import flatten_state, unflatten_state
from minilearn.tensor_files import DTYPES, read_tensors, write_tensors

VALUES = {"dict": {"epoch": 3, "best": 0.5}}


def small(path: Path) -> dict[str, Tensor]:
    tensors = {"w": torch.arange(3.0), "b": torch.tensor([True, False])}
    write_tensors(path, tensors, VALUES, kind="test")
    return tensors


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and bits(a[n]) == bits(b[n]) for n in a
    )


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    numbers = torch.randint(0, 2, (7, dtype.itemsize), dtype=torch.uint8)
    tensors = {"odd": torch.ones(3, dtype=torch.uint8), "t": numbers.view(dtype) if dtype.itemsize > 1 else numbers}
    tensors["t"] = numbers.view(dtype)
    write_tensors(tmp_path / "f", tensors, None, kind="test")
    found, values = read_tensors(tmp_path / "f", kind="test")
    assert values is None
    assert same(found, tensors)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(2.5),
        torch.zeros(0, 3),
        torch.arange(6).reshape(2, 3).T,
        torch.arange(10)[::3],
        torch.ones(1).expand(4),
        torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.tensor([1 + 2j]).conj(),
        torch.nn.Parameter(torch.rand(3)),
        torch.tensor([float("nan"), float("inf"), -0.0]),
    ],
    ids=["0-dim", "empty", "transposed", "strided", "expanded", "channels_last", "conj", "parameter", "nan"],
)
def test_every_form_of_tensor_comes_back(tensor: Tensor, tmp_path: Path) -> None:
    write_tensors(tmp_path / "f", {"t": tensor}, None, kind="test")
    found, _ = read_tensors(tmp_path / "f", kind="test")
    assert same(found, {"t": tensor.detach().resolve_conj().contiguous()})


def test_other_readers_of_the_format_find_the_tensors(tmp_path: Path) -> None:
    tensors = small(tmp_path / "f")
    assert same(safetensors.torch.load_file(tmp_path / "f"), tensors)


def test_tensors_lie_at_multiples_of_their_size(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_tensors(path, {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(3)}, None, kind="test")
    data = path.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    assert n % 8 == 0
    header = json.loads(data[8 : 8 + n])
    assert [header[name]["data_offsets"] for name in ("b", "a")] == [[0, 12], [12, 15]]


def test_tensors_that_share_memory_are_written_each_for_itself(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    write_tensors(tmp_path / "f", {"whole": whole, "part": whole[2:4]}, None, kind="test")
    found, _ = read_tensors(tmp_path / "f", kind="test")
    found["whole"].zero_()
    assert found["part"].tolist() == [2, 3]


def test_what_is_read_belongs_to_nobody_else(tmp_path: Path) -> None:
    small(tmp_path / "f")
    first, _ = read_tensors(tmp_path / "f", kind="test")
    first["w"].fill_(-1)
    again, _ = read_tensors(tmp_path / "f", kind="test")
    assert again["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (torch.ones(2, dtype=torch.complex128), "w cannot be saved: it is of torch.complex128"),
        (torch.ones(2, 2).to_sparse(), "w cannot be saved: it is a torch.sparse_coo tensor"),
        (torch.ones(2, device="meta"), "w cannot be saved: it is on no device"),
    ],
)
def test_a_tensor_that_the_format_has_not_is_refused_and_nothing_written(
    tensor: Tensor, named: str, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=named):
        write_tensors(tmp_path / "f", {"w": tensor}, None, kind="test")
    assert list(tmp_path.iterdir()) == []


# ---- damage ----


def test_every_truncated_length_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "f"
    small(path)
    data = path.read_bytes()
    for n in range(len(data)):
        path.write_bytes(data[:n])
        with pytest.raises(FileError, match=f"{path} (is|has)"):
            read_tensors(path, kind="test")


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_every_flipped_byte_is_a_clear_error(flip: int, tmp_path: Path) -> None:
    path = tmp_path / "f"
    small(path)
    data = path.read_bytes()
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ flip]) + data[i + 1 :])
        with pytest.raises(FileError, match=f"{path} (is|has)"):
            read_tensors(path, kind="test")


def test_bytes_added_at_the_end_are_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "f"
    small(path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FileError, match="SHA-256"):
        read_tensors(path, kind="test")


def signed(path: Path, header: Any, data: bytes = b"", manifest: Any = None, n: int | None = None) -> None:
    """Writes a file whose SHA-256 is right, whatever else is in it."""
    if isinstance(header, dict):
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        header = {"__metadata__": {"sha256": "0" * 64, "minilearn": text}, **header}
        header = json.dumps(header, separators=(",", ":")).encode()
    whole = struct.pack("<Q", len(header) if n is None else n) + header + data
    path.write_bytes(whole.replace(b"0" * 64, hashlib.sha256(whole).hexdigest().encode(), 1))


GOOD = {"format": 1, "kind": "test", "values": None}


@pytest.mark.parametrize(
    ("header", "data", "manifest", "named"),
    [
        ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"1234", GOOD, "no whole safetensors file"),
        ({"w": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}}, b"1234", GOOD, "no whole safetensors"),
        ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234", GOOD, "no whole safetensors"),
        ({"w": {"dtype": "PY", "shape": [1], "data_offsets": [0, 4]}}, b"1234", GOOD, "no whole safetensors"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678", GOOD, "no whole safetensors"),
        ({"w": "builtins.exec"}, b"", GOOD, "no whole safetensors"),
        ({}, b"", {**GOOD, "format": 2}, "format 2: this minilearn reads formats up to 1"),
        ({}, b"", {**GOOD, "format": True}, "format True"),
        ({}, b"", {**GOOD, "kind": "other"}, "holds no test, but a other"),
        ({}, b"", {"format": 1, "kind": "test"}, "manifest that is none"),
        ({}, b"", [1], "manifest that is none"),
        ({}, b"", "[" * 100_000, "manifest that is none"),
        ({}, b"", '{"format": ' + "9" * 5000 + "}", "manifest that is none"),
        (b"[" * 100_000, b"", None, "damaged, or minilearn did not write it"),
        (b'{"__metadata__":{"sha256":5,"minilearn":"x"}}', b"", None, "its manifest is not as it was written"),
        (b'{"__metadata__":7}', b"", None, "damaged, or minilearn"),
        (b"[1]", b"", None, "damaged, or minilearn"),
        (b"\xff\xfe\x00", b"", None, "damaged, or minilearn"),
    ],
)
def test_a_file_made_to_mislead_is_a_clear_error(
    header: Any, data: bytes, manifest: Any, named: str, tmp_path: Path
) -> None:
    signed(tmp_path / "f", header, data, manifest)
    with pytest.raises(FileError, match=named):
        read_tensors(tmp_path / "f", kind="test")


def test_a_header_longer_than_the_file_is_not_read(tmp_path: Path) -> None:
    signed(tmp_path / "f", b"{}", n=1 << 62)
    with pytest.raises(FileError, match="damaged, cut short"):
        read_tensors(tmp_path / "f", kind="test")


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "f").write_bytes(f"cposix\nsystem\n(S'touch {ran}'\ntR.".encode())
    with pytest.raises(FileError, match="no safetensors file"):
        read_tensors(tmp_path / "f", kind="test")
    assert not ran.exists()


def test_a_file_of_another_writer_is_refused_with_the_way_to_read_it(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "f")
    with pytest.raises(FileError, match=r"safetensors\.torch\.load_file reads those of others"):
        read_tensors(tmp_path / "f", kind="test")


def test_a_file_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    small(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'model\.safetensors'"):
        read_tensors(tmp_path / "modle.safetensors", kind="test")
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_tensors(tmp_path / "x" / "f", kind="test")


def test_plain_values_have_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(tmp_path / "f")
    monkeypatch.setattr(tensor_files, "MAX_JSON_BYTES", 10)
    with pytest.raises(ValueError, match="plain values"):
        small(tmp_path / "g")
    with pytest.raises(FileError, match="plain values"):
        read_tensors(tmp_path / "f", kind="test")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


# ---- the old one or the new one ----


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    old = small(path)

    class Gone(torch.Tensor):
        def detach(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, {"a": torch.ones(5), "b": torch.ones(2).as_subclass(Gone)}, None, kind="test")
    assert list(tmp_path.iterdir()) == [path]
    assert same(read_tensors(path, kind="test")[0], old)


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path = tmp_path / "f"
    old = small(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(FileError, match=r"was not written: .* is as it was"):
            write_tensors(path, {"a": torch.ones(100_000)}, None, kind="test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)
    assert list(tmp_path.iterdir()) == [path]
    assert same(read_tensors(path, kind="test")[0], old)


def test_a_file_replaced_while_it_is_read_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "f", tmp_path / "g"
    small(path)
    write_tensors(other, {"w": torch.full((3,), 9.0)}, {"dict": {"epoch": 4}}, kind="test")
    checked = tensor_files._checked

    def replaced_after(file: Any) -> Any:
        found = checked(file)
        if other.exists():
            other.replace(path)
        return found

    monkeypatch.setattr(tensor_files, "_checked", replaced_after)
    tensors, values = read_tensors(path, kind="test")
    assert (tensors["w"].tolist(), values) == ([9, 9, 9], {"dict": {"epoch": 4}})


def test_an_optimizers_state_goes_through_a_file_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    opt = torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)
    model(torch.ones(1, 3)).sum().backward()
    opt.step()
    state = opt.state_dict()
    plain, tensors = flatten_state(state)
    write_tensors(tmp_path / "f", tensors, plain, kind="test")
    found, values = read_tensors(tmp_path / "f", kind="test")
    back = unflatten_state(values, found)
    assert back["param_groups"] == state["param_groups"]
    assert type(back["param_groups"][0]["betas"]) is tuple
    for i, entries in state["state"].items():
        assert same(back["state"][i], entries)

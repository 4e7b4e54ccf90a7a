"""One file for tensors and plain values: safetensors, which every reader of that format opens, checked byte by byte.

The file is a safetensors file: a header in JSON, then the tensors' bytes. Its header's metadata hold two texts of ours:

- ``minilearn``: a manifest in JSON, with the number of the format, what the file is (`kind`), and the plain values;
- ``sha256``: that of the whole file, with zeros in place of this text. It is written last.

Nothing in a file names code or a place outside it.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from minilearn.archives import not_there
from minilearn.errors import describe
from minilearn.files import FileError, NewerFormatError, whole_file

SUFFIX = ".safetensors"
FORMAT = 1
"""The number of the format; a reader takes those up to its own."""
MAX_JSON_BYTES = 64 << 20
"""How long a file's plain values may be as text."""
MAX_HEADER_BYTES = 100_000_000
"""How long a header may be. Source: safetensors 0.8."""
BLOCK_BYTES = 1 << 20
UNSIGNED = "0" * 64
"""What stands in place of the SHA-256 while it is computed."""

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}
"""The dtypes that a file holds, by their names in it. Source: safetensors 0.8."""


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    values: Any,
    *,
    kind: str,
    data_of: Callable[[str], Tensor] | None = None,
) -> None:
    """Writes tensors and plain values to one file, which gets its name when it is whole and on the disk.

    Tensors on a GPU come to the CPU one by one, so that memory for one more is enough.

    Args:
        path: the file; its folder must be there. What had that name before is replaced.
        tensors: tensors by name; those that share memory are written once each.
        values: what JSON holds, as `minilearn.states.flatten_state` gives it.
        kind: what the file is, which its reader asks for.
        data_of: gives a tensor by its name when its turn comes, where `tensors` tell of dtypes and shapes alone.
    Raises:
        TypeError: a tensor is of a dtype or layout that the format does not have.
        ValueError: the values are too large, or not JSON.
        FileError: the folder is not there or cannot be written to, or the disk is full; the old file stays as it was.
    """
    if sys.byteorder != "little":
        raise FileError(f"{path} was not written: this machine is big-endian, safetensors are little-endian")
    text = json.dumps({"format": FORMAT, "kind": kind, "values": values}, allow_nan=False, separators=(",", ":"))
    # The larger elements first, so that all lie at multiples of their size, as readers that map a file need it.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header = _header(tensors, names, text)
    if len(text) > MAX_JSON_BYTES or len(header) > MAX_HEADER_BYTES:
        raise ValueError(f"{path} was not written: its plain values take {len(text) >> 20} MiB, and 64 are allowed")
    try:
        with whole_file(path) as file:
            digest = hashlib.sha256()
            for part in (len(header).to_bytes(8, "little"), header):
                digest.update(part)
                file.write(part)
            for name in names:
                data = _bytes(tensors[name] if data_of is None else data_of(name))
                digest.update(data)
                file.write(data)
            file.seek(8 + header.index(UNSIGNED.encode()))
            file.write(digest.hexdigest().encode())
    except OSError as error:
        why = f"{error.strerror or error}"
        raise FileError(f"{path} was not written: {why}. What had that name before is as it was.") from error


def read_tensors(path: Path, *, kind: str) -> tuple[dict[str, Tensor], Any]:
    """What `write_tensors` wrote, after its SHA-256 was found right.

    Args:
        path: the file.
        kind: what it must be.
    Returns:
        The tensors, on the CPU, and the values. Nobody else holds them.
    Raises:
        FileNotFoundError: there is no such file.
        NewerFormatError: a newer minilearn wrote it.
        FileError: it cannot be read, is damaged or cut short, or minilearn did not write it.
    """
    while True:
        with _whole(path) as file:
            found = _checked(file)
            tensors = _tensors(path)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break  # else another has taken its name meanwhile: that one is read, whole
    return tensors, _of_kind(path, found, kind)


def check_file(path: Path) -> None:
    """Reads a file of `write_tensors` through, and finds its SHA-256 right or raises what `read_tensors` does."""
    with _whole(path) as file:
        _checked(file)


def values_of(path: Path, *, kind: str) -> Any:
    """The plain values of a file of `write_tensors`, of which nothing but the header is read; it may be damaged.

    Raises:
        FileNotFoundError, FileError: as `read_tensors` does, so far as the header shows it.
    """
    with _whole(path) as file:
        _, _, _, text, _ = _metadata(file)
        found = _manifest(text)
    return _of_kind(path, found, kind)


def kind_of(path: Path) -> str:
    """What a file of `write_tensors` is, as its header says; raises what `values_of` does."""
    with _whole(path) as file:
        _, _, _, text, _ = _metadata(file)
        return str(_manifest(text)["kind"])


def shapes_of(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The dtypes and shapes of the tensors of a safetensors file, by name; none of them is read.

    Raises:
        FileNotFoundError, FileError: as `read_tensors` does, so far as the header shows it.
    """
    from safetensors import safe_open

    named = {name: dtype for dtype, name in DTYPES.items()}
    with _whole(path):
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 -- it is no dict
                return {name: (named[s.get_dtype()], tuple(s.get_shape())) for name, s in slices.items()}
        except Exception as error:  # the library has errors of several kinds for a file that is not what it says
            raise _Damaged(f"is no whole safetensors file: {error}") from error


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """An open file, and errors in words of what is wrong with it."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise not_there(path) from None
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    except _Damaged as error:
        kind_of_error = NewerFormatError if isinstance(error, _Newer) else FileError
        raise kind_of_error(f"{path} {error}") from error


def _of_kind(path: Path, found: Mapping[str, Any], kind: str) -> Any:
    if found["kind"] != kind:
        raise FileError(f"{path} holds no {kind}, but a {found['kind']!s:.80}")
    return found["values"]


class _Damaged(Exception):  # noqa: N818 -- its text goes on from the file's name
    """What is wrong with a file."""


class _Newer(_Damaged):
    """Nothing is, but its format is newer than this reader."""


def _header(tensors: Mapping[str, Tensor], names: list[str], text: str) -> bytes:
    """The header, its SHA-256 left open. The digest's place comes first: no value before it can look like it."""
    entries: dict[str, Any] = {"__metadata__": {"sha256": UNSIGNED, "format": "pt", "minilearn": text}}
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in DTYPES:
            what = f"a {tensor.layout} tensor" if tensor.layout is not torch.strided else f"of {tensor.dtype}"
            raise TypeError(f"{name} cannot be saved: it is {'on no device' if tensor.is_meta else what}")
        begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8)


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes, in order."""
    plain = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
    data: Any = plain.reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)


def _checked(file: BinaryIO) -> dict[str, Any]:
    """The manifest of an open file, all of whose bytes are as they were written."""
    first, header, signature, text, wanted = _metadata(file)
    digest = hashlib.sha256(first + header.replace(signature, f'"sha256":"{UNSIGNED}"'.encode()))
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    if digest.hexdigest() != wanted:
        raise _Damaged("is damaged: its SHA-256 is not the one that was written with it")
    return _manifest(text)


def _metadata(file: BinaryIO) -> tuple[bytes, bytes, bytes, str, str]:
    """An open file's first bytes, its header, the SHA-256 as it stands in it, our text, and the SHA-256."""
    size = os.fstat(file.fileno()).st_size
    first = file.read(8)
    n = int.from_bytes(first, "little")
    if len(first) < 8 or n > min(MAX_HEADER_BYTES, size - 8):
        raise _Damaged("is damaged, cut short, or no safetensors file")
    header = file.read(n)
    try:
        metadata = json.loads(header)["__metadata__"]
        text, wanted = metadata["minilearn"], metadata["sha256"]
        signature = f'"sha256":"{wanted}"'.encode()
        shaped = isinstance(text, str) and isinstance(wanted, str) and len(wanted) == len(UNSIGNED)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _Damaged(
            "is damaged, or minilearn did not write it: safetensors.torch.load_file reads those of others"
        ) from None
    if not shaped or header.count(signature) != 1:
        raise _Damaged("is damaged: its manifest is not as it was written")
    return first, header, signature, text, wanted


def _manifest(text: str) -> dict[str, Any]:
    if len(text) > MAX_JSON_BYTES:
        raise _Damaged(f"has {len(text) >> 20} MiB of plain values, and 64 are allowed")
    try:
        found = json.loads(text)
        number = found["format"]
        found["kind"], found["values"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _Damaged("has a manifest that is none") from None
    if type(number) is not int or number < 1:
        raise _Damaged(f"has the format {number!s:.20}, which is none")
    if number > FORMAT:
        raise _Newer(
            f"has the format {number!s:.20}: this minilearn reads formats up to {FORMAT}, a newer one this too"
        )
    return dict(found)


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, each in memory of its own; the library checks what the header says of them."""
    from safetensors import safe_open  # here, not above: 7 ms of every import, for what few programs do

    try:
        with safe_open(path, framework="pt") as file:
            # What it gives is the file itself, mapped: a change of one would be seen by the next who asks.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 -- it is no dict
    except FileNotFoundError:
        raise
    except Exception as error:  # the library has errors of several kinds for a file that is not what it says
        raise _Damaged(f"is no whole safetensors file: {error}") from error


def safetensors_path(file: str | Path, argument: str = "file") -> Path:
    """A file's path with the suffix ``.safetensors``, which need not be given.

    Args:
        file: a name or a path.
        argument: what the user calls it, for the messages.
    Raises:
        TypeError: it is no name.
        ValueError: it has the suffix of another kind of file.

    >>> safetensors_path("models/best-1.5").as_posix()
    'models/best-1.5.safetensors'
    """
    if not isinstance(file, (str, Path)) or not Path(file).name:
        raise TypeError(f"{argument} must be a name or a path, got {describe(file)}")
    path = Path(file)
    if path.suffix in {".pth", ".pt", ".pkl", ".bin", ".ckpt"}:
        raise ValueError(
            f"{argument} is '{file}', but minilearn's files are safetensors: '{path.with_suffix('')}' is enough"
        )
    return path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)

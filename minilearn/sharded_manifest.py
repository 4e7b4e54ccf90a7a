"""What a sharded checkpoint says of itself: its files with their SHA-256, and of which pieces each tensor is made."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minilearn.archives import not_there
from minilearn.files import FileError, NewerFormatError, flush_folder
from minilearn.tensor_files import DTYPES, UNSIGNED

MANIFEST = "manifest.json"
"""The name of the file in the checkpoint's folder; it is written last."""
FORMAT = 1
"""The number of the format; a reader takes those up to its own."""
MAX_MANIFEST_BYTES = 512 << 20
"""How long a manifest may be: 1,024 processes with 5,000 tensors each take about half of it."""
BEGIN = b'{"sha256":"'
NAMED = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, which lies in one file under the tensor's name.

    Args:
        file: the file's name, within the checkpoint's folder.
        offsets: where the box begins in the tensor, one number a dimension.
        sizes: how long it is, one number a dimension.
    """

    file: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Pieced:
    """A tensor of a checkpoint.

    Args:
        dtype: that of its elements.
        shape: that of the whole tensor.
        pieces: boxes that do not overlap and together make the tensor.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Manifest:
    """All that can be known of a sharded checkpoint without reading a tensor.

    Args:
        kind: what the checkpoint is, which its reader asks for.
        values: what JSON holds, as `minilearn.states.flatten_state` gives it.
        files: sizes in bytes and SHA-256, by the files' names.
        tensors: the tensors by their names.
    """

    kind: str
    values: Any
    files: Mapping[str, tuple[int, str]]
    tensors: Mapping[str, Pieced]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes a manifest into a folder whose other files are on the disk.

    Raises:
        ValueError: the values are not JSON, or too much of it.
        OSError: it cannot be written.
    """
    numbers = {name: i for i, name in enumerate(manifest.files)}
    held = {
        "sha256": UNSIGNED,
        "format": FORMAT,
        "kind": manifest.kind,
        "values": manifest.values,
        "files": [[name, size, digest] for name, (size, digest) in manifest.files.items()],
        "tensors": {
            name: [DTYPES[t.dtype], t.shape, [[numbers[p.file], p.offsets, p.sizes] for p in t.pieces]]
            for name, t in manifest.tensors.items()
        },
    }
    text = json.dumps(held, allow_nan=False, separators=(",", ":")).encode()
    if len(text) > MAX_MANIFEST_BYTES:
        raise ValueError(
            f"{folder} was not written: its values and the places of its tensors take {len(text) >> 20} MiB, and"
            f" {MAX_MANIFEST_BYTES >> 20} are allowed"
        )
    digest = hashlib.sha256(text).hexdigest().encode()
    with (folder / MANIFEST).open("xb") as file:
        file.write(BEGIN + digest + text[len(BEGIN) + len(digest) :])
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a sharded checkpoint, after its own SHA-256 was found right.

    Raises:
        FileNotFoundError: there is no such folder.
        NewerFormatError: a newer minilearn wrote it.
        FileError: it is damaged, cut short or missing.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise not_there(folder)
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise FileError(f"{path} is damaged: it is longer than any manifest")
        text = path.read_bytes()
    except FileNotFoundError:
        raise FileError(f"{folder} is no sharded checkpoint, or not a whole one: it has no {MANIFEST}") from None
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    end = len(BEGIN) + len(UNSIGNED)
    unsigned = BEGIN + UNSIGNED.encode() + text[end:]
    if text[: len(BEGIN)] != BEGIN or hashlib.sha256(unsigned).hexdigest().encode() != text[len(BEGIN) : end]:
        raise FileError(f"{path} is damaged: its SHA-256 is not the one that was written with it")
    try:
        held = json.loads(text)
        number = held["format"]
        if type(number) is int and number > FORMAT:
            raise NewerFormatError(
                f"{folder} has the format {number}: this minilearn reads formats up to {FORMAT}, a newer one this too"
            )
        if type(number) is not int or number < 1:
            raise ValueError(f"it has the format {number!s:.20}, which is none")
        return _manifest(held)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise FileError(f"{path} is no manifest: {error!s:.200}") from error


def flushed(path: Path) -> tuple[int, str]:
    """Brings a file that was written and closed to the disk; gives its size in bytes and its SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def name_folder(part: Path, folder: Path) -> None:
    """Flushes a folder whose files are on the disk, and gives it its name.

    Raises:
        FileError: there is something of that name already.
    """
    flush_folder(part)
    if folder.exists():  # an empty folder would be replaced in silence
        raise FileError(f"{folder} is there already, and a checkpoint is never written over another")
    part.rename(folder)
    flush_folder(folder.parent)


def _manifest(held: Mapping[str, Any]) -> Manifest:
    files = {str(name): (int(size), str(digest)) for name, size, digest in held["files"]}
    for name in files:
        if name in ("", ".", "..") or Path(name).name != name:
            raise ValueError(f"it names the file {name[:80]!r}, which is not one of its folder")
    names = list(files)
    tensors = {}
    for name, (dtype, shape, pieces) in held["tensors"].items():
        boxes = tuple(Piece(names[number], _sizes(offsets), _sizes(sizes)) for number, offsets, sizes in pieces)
        tensors[name] = Pieced(NAMED[dtype], _sizes(shape), boxes)
        _check_boxes(name, tensors[name])
    return Manifest(str(held["kind"]), held["values"], files, tensors)


def _sizes(numbers: list[Any]) -> tuple[int, ...]:
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise ValueError(f"it has the shape {str(numbers)[:80]}, which is none")
    return tuple(numbers)


def _check_boxes(name: str, tensor: Pieced) -> None:
    """That a tensor's pieces lie within it and are as many elements as it has."""
    for piece in tensor.pieces:
        ends = [begin + n for begin, n in zip(piece.offsets, piece.sizes, strict=True)]
        if len(ends) != len(tensor.shape) or any(end > n for end, n in zip(ends, tensor.shape, strict=True)):
            raise ValueError(f"{name[:80]} has a piece that is not within it")
    if sum(math.prod(piece.sizes) for piece in tensor.pieces) != math.prod(tensor.shape):
        raise ValueError(f"the pieces of {name[:80]} do not make the whole of it")

"""Checkpoints of many processes as the file of one, and the other way round, a tensor at a time."""

import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilearn.errors import describe
from minilearn.files import FileError
from minilearn.sharded_files import find_checkpoint
from minilearn.sharded_manifest import Manifest, Piece, Pieced, flushed, name_folder, read_manifest, write_manifest
from minilearn.tensor_files import SUFFIX, kind_of, safetensors_path, write_tensors

ONE_FILE = f"shard-00001-model-00001-of-00001{SUFFIX}"
"""What torch's `HuggingFaceStorageWriter` calls the one file of one process."""
OPEN_FILES = 256
"""How many files are held open: systems allow a process 1,024 of them or so."""


def merge_checkpoint(folder: str | Path, file: str | Path) -> Path:
    """Makes a checkpoint that many processes wrote into the file that one process writes and reads.

    Runs in one process, without a process group. Memory is needed for one tensor, the largest.

    Args:
        folder: the sharded checkpoint, such as ``runs/big/000012``.
        file: the file, such as ``runs/small/000001``; ``.safetensors`` is added where it is not there. Its folder is
            made.
    Returns:
        The file's path.
    Raises:
        FileNotFoundError: there is no such folder.
        FileError: it is damaged or not whole, or the file cannot be written.
    """
    from safetensors import safe_open

    source, path = _path("folder", folder), safetensors_path(file)
    manifest = read_manifest(source)
    found = find_checkpoint(source, kind=manifest.kind)

    @lru_cache(OPEN_FILES)
    def opened(name: str) -> Any:
        return safe_open(source / name, framework="pt")

    def whole(name: str) -> Tensor:
        tensor = found.tensors[name]
        made = torch.empty(tensor.shape, dtype=tensor.dtype)
        for piece in tensor.pieces:
            box = made
            for dim, (offset, size) in enumerate(zip(piece.offsets, piece.sizes, strict=True)):
                box = box.narrow(dim, offset, size)
            box.copy_(opened(piece.file).get_tensor(name))
        return made

    # One element stands for all of a tensor's: the dtype and the shape are what is asked for before the data's turn.
    described = {name: torch.empty((), dtype=t.dtype).expand(t.shape) for name, t in found.tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, described, found.values, kind=manifest.kind, data_of=whole)
    return path


def shard_checkpoint(file: str | Path, folder: str | Path) -> Path:
    """Makes a checkpoint of one process into one that many read and write, in one piece.

    Processes that shard their tensors read the file as it is, too. Runs in one process, without a process group, and
    copies the file as it is.

    Args:
        file: the checkpoint, such as ``runs/small/000003``, with or without ``.safetensors``.
        folder: the sharded one, such as ``runs/big/000001``, which must not be there. Its parent is made.
    Returns:
        The folder's path.
    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is damaged, or the folder is there or cannot be written.
    """
    source, path = safetensors_path(file), _path("folder", folder)
    kind = kind_of(source)
    found = find_checkpoint(source, kind=kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        part.chmod(0o755)
        shutil.copyfile(source, part / ONE_FILE)
        tensors = {
            name: Pieced(t.dtype, t.shape, tuple(Piece(ONE_FILE, p.offsets, p.sizes) for p in t.pieces))
            for name, t in found.tensors.items()
        }
        write_manifest(part, Manifest(kind, found.values, {ONE_FILE: flushed(part / ONE_FILE)}, tensors))
        name_folder(part, path)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} was not written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def _path(argument: str, value: str | Path) -> Path:
    if not isinstance(value, (str, Path)) or not Path(value).name:
        raise TypeError(f"{argument} must be the name of a folder, got {describe(value)}")
    return Path(value)

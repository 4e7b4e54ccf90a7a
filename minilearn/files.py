"""Files that are whole or not there: written beside their place under a temporary name, flushed, then renamed."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class FileError(OSError):
    """A file that is damaged, not whole, or not what it should be; the message names it and the cause."""


class NewerFormatError(FileError):
    """A file that a newer minilearn wrote: whole, but not for this one to read."""


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which becomes `path` when the block ends, and is removed where the block fails.

    Its `name` is the temporary one, by which it can be looked at before the block ends.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; nothing is left behind.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` when the block ends, and is removed where the block fails.

    Where another process has made `path` meanwhile, that one stays.

    Raises:
        OSError: the parent folder cannot be written to, or the disk is full; nothing is left behind.
    """
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield folder
        folder.chmod(0o755)
        try:
            folder.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Makes the new name itself last over a power cut; Windows has no such call and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""Zip archives such as torch writes, read and written as a whole: members by name, kept plainly, none of them trusted.

What a file may do to its reader by the form of a zip alone is refused: members that unpack to more than the file,
members outside the archive's folder, two of one name. Whoever hands members on to torch hands on an archive made anew
of them (`archive_of`), as two readers of zips may see two things in one file.
"""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from minilearn.errors import did_you_mean
from minilearn.files import FileError

MAX_MEMBERS = 100_000
"""How many members an archive may have; a model has a few thousand tensors."""
ROOT = "archive"
"""The folder that all members of an archive of ours are in; torch asks for one, of any name."""
DATE = (1980, 1, 1, 0, 0, 0)
"""No time is written down, so that the same model makes the same file."""


def read_archive(path: Path) -> dict[str, bytes]:
    """The members of a zip archive as torch writes it: by their names within its one folder, each with its CRC right.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it cannot be read, is damaged, or is no archive of this form.
    """
    try:
        with path.open("rb") as file:
            return members_of(file, str(path))
    except FileNotFoundError:
        raise not_there(path) from None
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error


def archive_of(members: Mapping[str, bytes], root: str = ROOT) -> io.BytesIO:
    """An archive of these members, in memory: always the same bytes for the same members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(f"{root}/{name}", DATE), data)
    buffer.seek(0)
    return buffer


def not_there(path: Path) -> FileNotFoundError:
    """The error for a file that is not there, with what is there instead."""
    folder = path.parent
    if not folder.is_dir():
        return FileNotFoundError(f"there is no file {path}, and no folder {folder}")
    others = sorted(other.name for other in folder.glob(f"*{path.suffix}"))
    known = f" {folder} has {', '.join(others[:5])}{', …' if len(others) > 5 else ''}." if others else ""
    return FileNotFoundError(f"there is no file {path}{did_you_mean(path.name, others)}{known}")


def members_of(file: BinaryIO, path: str) -> dict[str, bytes]:
    """The members of an open archive; `path` is its name in errors, which are those of `read_archive`."""
    size = file.seek(0, os.SEEK_END)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            if why := _refused(infos, size):
                raise FileError(f"{path} {why}")
            return {info.filename.split("/", 1)[1]: archive.read(info) for info in infos}
    # A damaged archive makes Python's reader raise all of these.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OverflowError) as error:
        raise FileError(f"{path} is damaged, cut short, or no zip archive: {error}") from error


def _refused(infos: list[zipfile.ZipInfo], size: int) -> str:
    """Why an archive of `size` bytes is not read; empty where it may be."""
    if not 0 < len(infos) <= MAX_MEMBERS:
        return f"is an archive of {len(infos)} members, and 1 to {MAX_MEMBERS} are allowed"
    names = [info.filename for info in infos]
    if len(set(names)) < len(names):
        return "is an archive with two members of one name"
    for info in infos:
        parts = info.filename.split("/")
        if len(parts) < 2 or any(part in ("", ".", "..") for part in parts) or not _plain(info.filename):
            return f"is an archive with a member outside its folder, or of an odd name: {info.filename[:80]!r}"
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            return (
                f"is an archive with a compressed or encrypted member, {info.filename[:80]!r}, which torch never writes"
            )
    if len({name.split("/", 1)[0] for name in names}) > 1:
        return "is an archive with several folders, which torch never writes"
    if sum(info.file_size for info in infos) > size:
        return "is an archive whose members are larger than itself"
    return ""


def _plain(name: str) -> bool:
    return name.isascii() and name.isprintable() and not set(name) & set('\\:*?"<>|')

"""Getting data: where it is looked for, downloads that are checked before they get their name, safe unpacking."""

import hashlib
import os
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from minilearn.files import whole_file, whole_folder

TIMEOUT_S = 5.0
"""How long a server may be silent, when connecting and between two blocks."""
BLOCK_BYTES = 1 << 16


class DataError(OSError):
    """A data set that is not there, not whole, or cannot be written; the message says which file and what to do."""


def user_folder() -> Path:
    """Where minilearn keeps what it downloads: ``~/.local/share/minilearn``, or below ``$XDG_DATA_HOME``."""
    from fastcore.xdg import xdg_data_home  # here, as `import minilearn.all` would be felt to take longer

    return Path(xdg_data_home()) / "minilearn"


def data_folders(path: str | Path | None = None) -> list[Path]:
    """The folders to look in: `path` alone where it is given, else ``$MINILEARN_DATA``, then the user's data folder."""
    if path is not None:
        return [Path(path).expanduser()]
    given = os.environ.get("MINILEARN_DATA")
    return [*([Path(given).expanduser()] if given else []), user_folder()]


def writable_folder(path: str | Path | None = None) -> Path:
    """The folder to write to, made if needed: `path`, else the user's data folder. ``$MINILEARN_DATA`` is only read.

    Raises:
        DataError: it cannot be made or written to.
    """
    folder = Path(path).expanduser() if path is not None else user_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def cannot_write(folder: Path, error: OSError) -> DataError:
    """The error for a folder that has no room or gives no permission."""
    return DataError(
        f"cannot write to the data folder {folder}: {error.strerror or error}. Nothing was left there."
        " Make room or give permission, or choose another folder: path=..., or the variable XDG_DATA_HOME."
    )


@contextmanager
def one_process(path: Path) -> Iterator[None]:
    """Lets one process of this machine at a time into a ``with`` block that makes `path`; the others wait.

    Who comes in looks first whether it is there by now. The lock is a file in the system's folder for temporary ones,
    and ends with its process, however that ends. Where the system has no such locks (Windows), all come in: what is
    made is whole all the same.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    lock = Path(tempfile.gettempdir(), f"minilearn-{os.getuid()}-{name}.lock")
    handle = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def download(url: str, path: Path, check: Callable[[Path], object]) -> Path:
    """Brings `url` to the file `path`, which gets its name only after `check` found it whole.

    Args:
        url: http, https or file.
        path: where to put it; the folder must exist.
        check: called with the temporary file; raises where it is not what it should be.
    Returns:
        `path`.
    Raises:
        DataError: no connection, a connection that broke, no room, no permission, or whatever `check` raised. Nothing
            is left behind.
    """
    # Here, not above: a tenth of what `import minilearn.all` takes, for what is done once on a machine.
    import http.client
    import urllib.error

    try:
        with whole_file(path) as file:
            try:
                _copy(url, file)
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                raise DataError(f"cannot download {url}: {getattr(error, 'reason', error)}") from error
            file.flush()
            try:
                check(Path(file.name))
            except DataError as error:
                raise DataError(f"what {url} sent is not what it should be: {error}") from error
    except DataError:
        raise
    except OSError as error:
        raise cannot_write(path.parent, error) from error
    return path


def _copy(url: str, file: BinaryIO) -> None:
    import urllib.request

    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
        total = int(response.headers.get("Content-Length") or 0)
        done = 0
        with _bar(url, total) as show:
            while block := response.read(BLOCK_BYTES):
                file.write(block)
                done += len(block)
                show(done)
    if total and done != total:
        raise DataError(f"the download of {url} broke off: {done} of {total} bytes came. Try again.")


@contextmanager
def _bar(url: str, total: int) -> Iterator[Callable[[int], object]]:
    """A function that shows how much has come: a bar on a terminal, elsewhere one line at the start."""
    size = f" ({total / 1e6:.1f} MB)" if total else ""
    print(f"downloading {url}{size}", flush=True)
    if not sys.stdout.isatty() or not total:
        yield lambda done: None
        return
    from fastprogress.fastprogress import ConsoleProgressBar

    bar = ConsoleProgressBar(None, total=total, leave=False)
    bar.update(0)
    yield bar.update
    bar.on_iter_end()


def check_sha256(path: Path, sha256: str) -> None:
    """Raises a `DataError` where the file's SHA-256 is another one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise DataError(f"{path} is not the file expected: its SHA-256 is {found}, expected {sha256}. It was not used.")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpacks a tar archive into the new folder `folder`, whole or not at all.

    A single folder at the top of the archive is left out: `folder` takes its place. Nothing is written outside
    `folder`, no device files, no links out of it: Python's `data` filter refuses them.

    Raises:
        DataError: the archive is damaged, holds what the filter refuses, there is no room or permission, or this
            Python is older than the filter (3.11.4).
    """
    if not hasattr(tarfile, "data_filter"):
        raise DataError(f"{archive} was not unpacked: Python 3.11.4 or newer can do so safely, this one cannot")
    try:
        with whole_folder(folder) as inside:
            with tarfile.open(archive) as tar:
                tar.extractall(inside, filter="data")
            top = list(inside.iterdir())
            if len(top) == 1 and top[0].is_dir():
                only = top[0].rename(inside / f".{top[0].name}.top")
                for child in list(only.iterdir()):
                    child.rename(inside / child.name)
                only.rmdir()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}. Nothing of it was kept.") from error
    except OSError as error:
        raise cannot_write(folder.parent, error) from error
    return folder

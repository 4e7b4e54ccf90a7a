"""Checkpoints that many processes write and read together: each its own part, in files of safetensors.

A sharded checkpoint is a folder: files of safetensors (``shard-00001-…`` of the first process and so on) and
`manifest.json`, with the plain values, the files' sizes and SHA-256, and of which pieces each tensor is made. The
folder gets its name when all of it is on the disk. It is read by any number of processes, however their tensors are
sharded; and so is the file that one process writes (`minilearn.tensor_files`). The engine is torch's own
(`minilearn.sharded_storage`).

The processes share the folder's file system, on several machines too: a disk of each machine's own will not do.
"""

import hashlib
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from minilearn.files import FileError
from minilearn.sharded_manifest import MANIFEST, Piece, Pieced, read_manifest
from minilearn.tensor_files import DTYPES, check_file, shapes_of, values_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from minilearn.sharded_storage import CopiesPlanner, FolderWriter

KIND = "checkpoint"
SHOWN = 5
"""How many names a message lists."""


class ShardedWriter:
    """Writes sharded checkpoints while training goes on: the tensors are copied, then files are written in a thread.

    All processes make one, and call its methods, at the same places. The thread has a process group of its own, over
    gloo, so that what it sends never comes between what training sends.
    """

    def __init__(self) -> None:
        together = _together(None)
        self._group = distributed.new_group(backend="gloo") if together else None
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    def write(
        self,
        folder: Path,
        tensors: Mapping[str, Tensor],
        values: Any,
        *,
        kind: str = KIND,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Begins a checkpoint, after the one before is written; returns when the tensors are copied.

        Args:
            folder: where it goes, as for `write_sharded`.
            tensors: as for `write_sharded`; they may change as soon as this returns.
            values: what JSON holds; must not change until the checkpoint is written.
            kind: what the checkpoint is, which its reader asks for.
            then: called in the first process when the checkpoint is whole.
        Raises:
            FileError: what went wrong with the checkpoint before this one; this one is not begun.
            TypeError: a tensor cannot be saved.
        """
        self.finish()
        planner, writer = _planned(folder, tensors, values, kind)

        def write() -> None:
            try:
                _write(planner, writer, self._group)
                if then is not None and _number(self._group) == 0:
                    then()
            except BaseException as error:
                self._failed = error

        # A daemon: a process that is told to end at once does not wait for the others.
        self._thread = threading.Thread(target=write, name="sharded checkpoint", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
            FileError: what went wrong with it, in whichever process.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed


def write_sharded(
    folder: Path,
    tensors: Mapping[str, Tensor],
    values: Any,
    *,
    kind: str = KIND,
    group: "ProcessGroup | None" = None,
) -> None:
    """Writes a state that is spread over processes: each writes its shards; what all have is written once.

    All processes call it. The folder gets its name when everything is on the disk; before, or where one of them fails
    or dies, there is nothing of that name.

    Args:
        folder: must not be there yet; its parent must, and all processes must see it.
        tensors: DTensors, and plain tensors, by names that are the same in all processes. Of a plain tensor, that of
            the first process is written.
        values: what JSON holds, as `minilearn.states.flatten_state` gives it; those of the first process are written.
        kind: what the checkpoint is, which its reader asks for.
        group: the processes; by default all of the job, or this one where there is no process group.
    Raises:
        FileError: in all processes, where one could not write; the message says which and why.
        TypeError: a tensor is of a dtype or layout that safetensors do not have.
    """
    _write(*_planned(folder, tensors, values, kind), group)


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint, sharded or of one process, every byte of which was found right.

    Args:
        path: its folder, or its file.
        values: the plain values.
        tensors: dtypes, shapes and places of its tensors, by name.
        group: the processes that looked at it.
    """

    path: Path
    values: Any
    tensors: Mapping[str, Pieced]
    group: "ProcessGroup | None" = None

    def read(self, into: Mapping[str, Tensor]) -> None:
        """Loads all tensors into those of the same names, in place; all processes call it.

        Args:
            into: DTensors, sharded in whatever way, and plain tensors, in the checkpoint's shapes and dtypes.
        Raises:
            ValueError: names, shapes or dtypes are others; nothing has been changed.
            FileError: a file cannot be read.
        """
        misfits = _misfits(self.tensors, into)
        error = ValueError(f"{self.path} does not fit, and nothing was loaded: {misfits}") if misfits else None
        _agree(error, self.group)
        with _own_errors(f"{self.path} cannot be read"):
            _read(self.path if self.path.is_dir() else self.path.parent, self.tensors, into, self.group)


def find_checkpoint(path: Path, *, kind: str = KIND, group: "ProcessGroup | None" = None) -> FoundCheckpoint:
    """Looks through a checkpoint; all processes call it, and each checks the SHA-256 of its share of the files.

    Args:
        path: the folder of a sharded checkpoint, or the file of one process.
        kind: what it must be.
        group: the processes; by default all of the job, or this one where there is no process group.
    Raises:
        FileNotFoundError: there is no such folder or file.
        NewerFormatError: a newer minilearn wrote it.
        FileError: it is damaged, cut short or not whole; the message names the file. All processes raise it.
    """
    found: FoundCheckpoint | None = None
    failed: Exception | None = None
    try:
        found, checks = _looked_at(path, kind, group)
        for check in checks[_number(group) :: _count(group)]:
            check()
    except (OSError, ValueError) as error:
        failed = error
    _agree(failed, group)
    assert found is not None
    return found


def read_sharded(
    path: Path, into: Mapping[str, Tensor], *, kind: str = KIND, group: "ProcessGroup | None" = None
) -> Any:
    """Loads a checkpoint into tensors, in place, on any number of processes, all of which call it.

    Everything is checked before anything is changed: each byte, names, shapes and dtypes.

    Args:
        path: the folder of a sharded checkpoint, or the file of one process.
        into: DTensors, sharded in whatever way, and plain tensors, by name.
        kind: what it must be.
        group: the processes; by default all of the job, or this one where there is no process group.
    Returns:
        The plain values.
    Raises:
        FileNotFoundError: there is no such folder or file.
        FileError: it is damaged, cut short or not whole; the message names the file. All processes raise it.
        ValueError: names, shapes or dtypes are others.
    """
    found = find_checkpoint(path, kind=kind, group=group)
    found.read(into)
    return found.values


def is_checkpoint(path: Path) -> bool:
    """Whether a path looks like a sharded checkpoint: a folder with a manifest."""
    return (path / MANIFEST).is_file()


# ---- writing ----


def _planned(
    folder: Path, tensors: Mapping[str, Tensor], values: Any, kind: str
) -> "tuple[CopiesPlanner, FolderWriter]":
    """What writes a checkpoint, with copies of the tensors."""
    from minilearn.sharded_storage import CopiesPlanner, FolderWriter

    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in DTYPES:
            what = f"a {tensor.layout} tensor" if tensor.layout is not torch.strided else f"of {tensor.dtype}"
            raise TypeError(f"{name} cannot be saved: it is {'on no device' if tensor.is_meta else what}")
        if any(placement.is_partial() for placement in getattr(tensor, "placements", ())):
            raise TypeError(f"{name} cannot be saved: its parts have yet to be added up")
    return CopiesPlanner(tensors), FolderWriter(folder, values, kind)


def _write(planner: "CopiesPlanner", writer: "FolderWriter", group: "ProcessGroup | None") -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        with _own_errors(f"{writer.folder} was not written"):
            if _together(group):
                save({}, storage_writer=writer, planner=planner, process_group=group)
            else:  # as save does it, which warns that there are no other processes
                planner.set_up_planner({}, is_coordinator=True)
                plans, metadata = planner.create_global_plan([planner.create_local_plan()])
                plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
                writer.finish(metadata, [writer.write_data(plan, planner).value()])
    finally:
        writer.clear_away()


# ---- reading ----


def _looked_at(
    path: Path, kind: str, group: "ProcessGroup | None"
) -> tuple[FoundCheckpoint, Sequence[Callable[[], None]]]:
    """A checkpoint as its manifest has it, and what is to be done to know that each file is as it was written."""
    if path.is_file():
        about = shapes_of(path)
        tensors = {
            name: Pieced(dtype, shape, (Piece(path.name, (0,) * len(shape), shape),))
            for name, (dtype, shape) in about.items()
        }
        return FoundCheckpoint(path, values_of(path, kind=kind), tensors, group), [lambda: check_file(path)]
    manifest = read_manifest(path)
    if manifest.kind != kind:
        raise FileError(f"{path} holds no {kind}, but a {manifest.kind:.80}")

    held: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {name: {} for name in manifest.files}
    for name, tensor in manifest.tensors.items():
        for piece in tensor.pieces:
            held[piece.file][name] = tensor.dtype, piece.sizes

    def check_of(name: str) -> Callable[[], None]:
        return lambda: _check(path / name, *manifest.files[name], held[name])

    return FoundCheckpoint(path, manifest.values, manifest.tensors, group), [check_of(name) for name in manifest.files]


def _check(path: Path, n_bytes: int, sha256: str, held: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    """That a file is as it was written, and holds the tensors that the manifest says."""
    try:
        with path.open("rb") as file:
            seen = file.seek(0, 2)
            if seen != n_bytes:
                raise FileError(f"{path} is damaged or cut short: it has {seen} bytes, and {n_bytes} were written")
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise FileError(f"{path} is damaged: its SHA-256 is not the one that was written")
    except FileNotFoundError:
        raise FileError(f"{path} is missing: {path.parent} is no whole checkpoint") from None
    # An empty piece of a short tensor lies in a file, and the manifest passes it over.
    found, held = ({name: a for name, a in of.items() if math.prod(a[1])} for of in (shapes_of(path), held))
    if found != held:
        others = [name for name in {**held, **found} if held.get(name) != found.get(name)]
        raise FileError(f"{path} holds other tensors than the manifest of {path.parent} says: {_some(others)}")


def _misfits(tensors: Mapping[str, Pieced], into: Mapping[str, Tensor]) -> str:
    """What of a checkpoint does not fit, in words; empty where all of it does."""
    missing = [name for name in into if name not in tensors]
    unexpected = [name for name in tensors if name not in into]
    others = []
    for name, tensor in into.items():
        about = tensors.get(name)
        if about is None:
            continue
        if about.shape != tuple(tensor.shape):
            others.append(f"{name} is {about.shape} in the checkpoint and {tuple(tensor.shape)} here")
        elif about.dtype != tensor.dtype:
            others.append(f"{name} is {about.dtype} in the checkpoint and {tensor.dtype} here")
        elif tensor.is_meta:
            others.append(f"{name} is on no device here")
    said = []
    if missing:
        said.append(f"the checkpoint has no {_some(missing)}")
    if unexpected:
        said.append(f"it has {_some(unexpected)}, which is not here")
    if others:
        said.append(_some(others))
    return "; ".join(said)


def _read(
    folder: Path, tensors: Mapping[str, Pieced], into: Mapping[str, Tensor], group: "ProcessGroup | None"
) -> None:
    from torch.distributed.checkpoint import state_dict_loader

    from minilearn.sharded_storage import PiecesReader, TensorsPlanner

    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is allowed
        reader, planner = PiecesReader(folder, tensors), TensorsPlanner()
        state_dict_loader.load(dict(into), storage_reader=reader, planner=planner, process_group=group)


# ---- many processes ----


def _together(group: "ProcessGroup | None") -> bool:
    return group is not None or (distributed.is_available() and distributed.is_initialized())


def _number(group: "ProcessGroup | None") -> int:
    return distributed.get_rank(group) if _together(group) else 0


def _count(group: "ProcessGroup | None") -> int:
    return distributed.get_world_size(group) if _together(group) else 1


def _agree(error: Exception | None, group: "ProcessGroup | None") -> None:
    """Raises in all processes what went wrong in one, so that none goes on alone and waits for the others."""
    errors = [error]
    if _together(group):
        errors = [None] * _count(group)
        distributed.all_gather_object(errors, error, group=group)
    for found in errors:
        if found is not None:
            raise found


@contextmanager
def _own_errors(what: str) -> Iterator[None]:
    """Errors of torch's checkpoints as ours: the first process that failed, and why."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        number, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
        raise FileError(f"{what}: process {number}: {_in_words(cause)}") from cause
    except FileError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # a process that is gone is a RuntimeError of torch's
        raise FileError(f"{what}: {_in_words(error)}") from error


def _in_words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip() or type(error).__name__


def _some(texts: Sequence[str]) -> str:
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more} more" if more > 0 else "")

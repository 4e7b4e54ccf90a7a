"""A folder of checkpoints: numbered files, the newest good ones kept, a damaged one set aside."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilearn import distributed
from minilearn.errors import warn
from minilearn.files import FileError, NewerFormatError, whole_file
from minilearn.states import flatten_state, unflatten_state
from minilearn.tensor_files import SUFFIX, read_tensors, write_tensors

KIND = "checkpoint"


class CheckpointFolder:
    """The checkpoints of one run; each is a file of its own, and the next one is there before an old one goes.

    Args:
        path: the folder; it is made when `open` is called.
        keep: how many of the newest are kept.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep = path, keep
        self._writer: threading.Thread | None = None
        self._failed: Exception | None = None

    def open(self) -> None:
        """Makes the folder, tries whether it can be written to, and clears away what a killed process left half done.

        Raises:
            OSError: it cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for part in self.path.glob(".*.part"):
                part.unlink(missing_ok=True)
            probe = self.path / "probe"
            with whole_file(probe) as file:
                file.write(b"minilearn")
            probe.unlink()
        except OSError as error:
            why = error.strerror or error
            raise FileError(f"checkpoints cannot be written to {self.path.absolute()}: {why}") from error

    def newest_of_main(self) -> tuple[Path, dict[str, Any]] | None:
        """Makes the folder ready, and gives the newest checkpoint: of several processes all take the one of rank 0.

        Raises:
            OSError: as `open` and `newest` do; or a process cannot read what rank 0 has found.
        """
        found = None
        if distributed.is_main():
            self.open()
            found = self.newest()
        name = distributed.from_main(None if found is None else found[0].name)
        if name is None or found is not None:
            return found
        try:
            tensors, values = read_tensors(self.path / name, kind=KIND)
        except OSError as error:
            raise FileError(
                f"rank {distributed.rank()} cannot read the checkpoint {name} that rank 0 has found in"
                f" {self.path.absolute()}: {error}. All processes read it: it must lie where every machine sees it."
            ) from error
        state: dict[str, Any] = unflatten_state(values, tensors)
        return self.path / name, state

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is whole, and its state; None where there is none.

        A damaged one gets another name, `….damaged`, and a warning says so.

        Raises:
            NewerFormatError: the newest that is whole was written by a newer minilearn; nothing is set aside.
            FileError: there are checkpoints, but not one of them can be read; they are left as they are.
        """
        return self._newest_of(self._files(), _state_in)

    def _newest_of(
        self, files: list[Path], read: Callable[[Path], dict[str, Any]]
    ) -> tuple[Path, dict[str, Any]] | None:
        """The newest of these checkpoints that can be read; of several processes rank 0 sets damaged ones aside."""
        broken: list[tuple[Path, Exception]] = []
        for i, file in reversed(list(enumerate(files))):
            try:
                state = read(file)
            except NewerFormatError:
                raise
            except (FileError, ValueError, RecursionError) as error:
                broken.append((file, error if isinstance(error, FileError) else FileError(f"{file}: {error}")))
                continue
            if distributed.is_main():
                for bad, why in broken:
                    bad.rename(bad.with_name(f"{bad.name}.damaged"))
                    warn(f"{why}. It was set aside as {bad.name}.damaged, and the checkpoint before it is used.")
                self._let_go(files[: i + 1])  # one too many, where the process was killed before it could
            return file, state
        if broken:
            raise FileError(
                f"no checkpoint in {self.path} can be read: {broken[0][1]}. Remove the folder to begin the run anew."
            )
        return None

    def write(self, state: Mapping[str, Any], *, wait: bool = False) -> None:
        """Writes a checkpoint, beside the training unless `wait`; it takes copies of the tensors first.

        A write that fails, on a full disk say, is a warning: the checkpoints before it are whole, and the run goes on.
        """
        self.finish()
        value, tensors = flatten_state(dict(state))
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        # A daemon: a second Ctrl-C, which says at once, does not wait for the write.
        self._writer = threading.Thread(target=self._write, args=(copies, value), name="checkpoint", daemon=True)
        self._writer.start()
        if wait:
            self.finish()

    def finish(self) -> None:
        """Waits until the last checkpoint is written."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        failed, self._failed = self._failed, None
        if failed is not None:
            warn(f"a checkpoint could not be written, and the run goes on: {failed}")

    def _write(self, tensors: dict[str, Tensor], value: Any) -> None:
        files = self._files()
        number = int(files[-1].stem) + 1 if files else 1
        try:
            with torch.no_grad():
                write_tensors(self.path / f"{number:06d}{SUFFIX}", tensors, value, kind=KIND)
            self._let_go(self._files())
        except Exception as error:
            self._failed = error

    def _let_go(self, files: list[Path]) -> None:
        """Removes all but the newest."""
        for old in files[: -self.keep]:
            old.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """The checkpoints, the oldest first."""
        found = (file for file in self.path.glob(f"*{SUFFIX}") if file.stem.isdecimal() and file.is_file())
        return sorted(found, key=lambda file: int(file.stem))


def _state_in(file: Path) -> dict[str, Any]:
    """The state of a run that a file holds."""
    tensors, values = read_tensors(file, kind=KIND)
    state = unflatten_state(values, tensors)
    if not isinstance(state, dict):
        raise ValueError("it holds no state of a run")
    return state

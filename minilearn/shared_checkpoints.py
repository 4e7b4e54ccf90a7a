"""A folder of checkpoints that several processes keep together, each of which may be read by any number of them."""

import re
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilearn import distributed
from minilearn.checkpoints import KIND, CheckpointFolder
from minilearn.errors import warn
from minilearn.files import FileError
from minilearn.job_errors import of_all
from minilearn.sharded_files import ShardedWriter, find_checkpoint, is_checkpoint
from minilearn.states import flatten_state, unflatten_state

OF_PARAMETER = re.compile(r"opt\..*?\bstate\.(\d+)\.")


Like = Callable[[str, tuple[int, ...]], Tensor | None]


class SharedFolder(CheckpointFolder):
    """The checkpoints of one run of one process or several.

    Where tensors are sharded, a checkpoint is a folder that all write together (`minilearn.sharded_files`); otherwise
    the file that one process writes (`minilearn.tensor_files`). Either is read by any number of processes.

    Args:
        path: the folder, which all processes must see; it is made when `open` is called.
        keep: how many of the newest are kept.
        sharded: whether the run's tensors are.
        places: how a checkpoint's tensors are to be laid out; asked when there is one that may be sharded.
    """

    def __init__(self, path: Path, keep: int, sharded: bool, places: Callable[[], Like]) -> None:
        super().__init__(path, keep)
        self.sharded, self.places = sharded, places
        self._sharded: ShardedWriter | None = None

    def open(self) -> None:
        """Makes the folder, tries whether it can be written to, and clears away what a killed process left half done.

        Raises:
            FileError: it cannot be made or written to.
        """
        for part in self.path.glob(".*.part"):
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
        super().open()

    def newest_of_main(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is whole, and its state: all processes take the one that rank 0 finds.

        Raises:
            OSError: as `CheckpointFolder.newest_of_main` does.
        """
        failed: FileError | None = None
        if distributed.is_main():
            try:
                self.open()
            except FileError as error:
                failed = error
        if (failed := distributed.from_main(failed)) is not None:
            raise of_all(failed)
        files = [self.path / name for name in distributed.from_main([file.name for file in self._files()])]
        if not (self.sharded or any(map(is_checkpoint, files))):
            return super().newest_of_main()
        return self._newest_of(files, self._state_in)

    def write(self, state: Mapping[str, Any], *, wait: bool = False) -> None:
        """Writes a checkpoint, beside the training unless `wait`; it takes copies of the tensors first.

        Where tensors are sharded all processes call it, else the one that writes. A write that fails, on a full disk
        say, is a warning: the checkpoints before it are whole, and the run goes on.
        """
        if not self.sharded:
            super().write(state, wait=wait)
            return
        self.finish()
        value, tensors = flatten_state(dict(state))
        self._sharded = self._sharded or ShardedWriter()
        self._sharded.write(self._next(), tensors, value, kind=KIND, then=lambda: self._let_go(self._files()))
        if wait:
            self.finish()

    def finish(self) -> None:
        """Waits until the last checkpoint is written."""
        super().finish()
        try:
            if self._sharded is not None:
                self._sharded.finish()
        except FileError as error:
            if distributed.is_main():
                warn(f"a checkpoint could not be written, and the run goes on: {error}")

    def _next(self) -> Path:
        files = self._files()
        number = distributed.from_main(int(files[-1].stem) + 1 if files else 1)
        return self.path / f"{number:06d}"

    def _state_in(self, path: Path) -> dict[str, Any]:
        """A checkpoint's state, its tensors laid out as they are wanted, and what this process had of its own."""
        found = find_checkpoint(path, kind=KIND)
        like, into = self.places(), {}
        for name, tensor in found.tensors.items():
            own = like(name, tensor.shape)
            if own is None or not _is_sharded(own):
                into[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            else:
                into[name] = torch.empty_like(own.detach(), dtype=tensor.dtype)
        found.read(into)
        state = unflatten_state(found.values, into)
        if not isinstance(state, dict):
            raise FileError(f"{path} holds no state of a run")
        return state

    def _let_go(self, files: Sequence[Path]) -> None:
        """Removes all but the newest; a folder loses its name first, so that nobody finds half of one."""
        for old in files[: -self.keep]:
            if old.is_dir():
                gone = old.with_name(f".{old.name}.{secrets.token_hex(4)}.part")
                old.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)
            else:
                old.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """The checkpoints of both kinds, the oldest first."""
        folders = (path for path in self.path.glob("*") if path.name.isdecimal() and path.is_dir())
        return sorted([*super()._files(), *folders], key=lambda path: int(path.stem))


def placing(current: Mapping[str, Tensor], params: Sequence[Tensor], named: Mapping[str, Tensor]) -> Like:
    """How a run's tensors are to be laid out: as those of the same names are, or the parameters that they belong to.

    Args:
        current: the tensors of the run's state as it is, by name.
        params: the optimizer's parameters, as its state numbers them.
        named: the model's parameters, by name.
    Returns:
        A function of a tensor's name and shape: a tensor laid out so, or None where each process is to have all of it.
    """

    def like(name: str, shape: tuple[int, ...]) -> Tensor | None:
        found = current.get(name)
        if found is None and (match := OF_PARAMETER.match(name)) and int(match[1]) < len(params):
            found = params[int(match[1])]
        if found is None:
            found = named.get(name.removeprefix("grads."))
        return found if found is not None and tuple(found.shape) == shape else None

    return like


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")

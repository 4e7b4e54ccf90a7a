"""Rows that come batch by batch, gathered in memory or in a file: one copy of them, and no wait for the device."""

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from minilearn.files import whole_file
from minilearn.tensors import map_tensors, shape_text

IN_FLIGHT = 8
"""How many batches may be on their way from a GPU: the oldest has long arrived when it is looked at."""
HEADER_BYTES = 256
"""Room for a .npy file's header, which tells the number of rows, known at the end; a multiple of 64, as NumPy asks."""


class Column:
    """A tensor that comes batch by batch. From a CUDA GPU each part is copied without waiting, and stored later."""

    def __init__(self) -> None:
        self._coming: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def append(self, part: Tensor) -> None:
        """Takes a batch's rows on, (batch, …); a scalar counts as one row."""
        if part.requires_grad:
            part = part.detach()
        if not part.ndim:
            part = part.unsqueeze(0)
        if part.is_cpu:
            self._store(part)
            return
        if not part.is_cuda:
            self._store(part.cpu())
            return
        copy = part.to("cpu", non_blocking=True)  # into pinned memory: valid once the event has passed
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(part.device))
        self._coming.append((copy, event))
        if len(self._coming) > IN_FLIGHT:
            self._arrive()

    def result(self) -> Any:
        """All rows, on the CPU; waits for those that are on their way."""
        while self._coming:
            self._arrive()
        return self._whole()

    def discard(self) -> None:
        """Lets go of what was gathered so far."""
        self._coming.clear()

    def _arrive(self) -> None:
        part, event = self._coming.popleft()
        event.synchronize()
        self._store(part)

    def _store(self, part: Tensor) -> None:
        raise NotImplementedError

    def _whole(self) -> Any:
        raise NotImplementedError


class InMemory(Column):
    """Rows in a tensor that is as long as they will be, where that is known or can be told from the first batch.

    Where more come, they go to a further block, and the blocks are joined at the end, each let go when it is copied.
    Rows of differing shapes make a list, with a tensor a row.

    Args:
        rows: how many will come; None where nobody knows.
        batches: in how many batches; None where nobody knows.
        dim: the axis along which batches are joined; any but 0 needs a second copy.
    """

    def __init__(self, rows: int | None, batches: int | None, dim: int = 0) -> None:
        super().__init__()
        self._rows, self._batches, self._dim = rows, batches, dim
        self._blocks: list[Tensor] = []
        self._used: list[int] = []
        self._size = 0  # of the last block
        self._last: tuple[torch.Size, torch.dtype] | None = None
        self._ragged = False

    def _store(self, part: Tensor) -> None:
        shape = part.shape
        if (shape, part.dtype) != self._last:
            self._look(part)
        if self._ragged or self._dim:
            self._add(part.clone())
            return
        start = self._used[-1]
        stop = start + shape[0]
        if stop > self._size:
            self._room(part, max(shape[0], sum(self._used)))
            stop = shape[0]
        self._used[-1] = stop
        self._blocks[-1][stop - shape[0] : stop] = part

    def append_all(self, parts: list[Tensor]) -> None:
        """Takes several parts on, at least one; those of the kind of the part before are copied by one call."""
        first = parts[0]
        alike = len(set(map(dtype_of, parts))) == len(set(map(Tensor.dim, parts))) == 1
        as_before = alike and self._last == (first.shape, first.dtype)
        if as_before and first.is_cpu and not (self._ragged or self._dim):
            start, numbers = self._used[-1], sum(map(numel, parts))
            stop = start + numbers * first.shape[0] // max(first.numel(), 1)
            if start < stop <= self._size:
                with suppress(RuntimeError):  # rows of another shape among them
                    torch.cat(parts, out=self._blocks[-1][start:stop])
                    self._used[-1] = stop
                    return
        for part in parts:
            self.append(part)

    def _look(self, part: Tensor) -> None:
        """The first part, or one of another shape than that before it: the ragged last, or rows of other shapes."""
        self._last = part.shape, part.dtype
        if self._dim:
            return
        if not self._blocks:
            self._begin(part)
        block = self._blocks[-1]
        self._ragged |= part.shape[1:] != block.shape[1:] or part.dtype != block.dtype

    def _begin(self, part: Tensor) -> None:
        expected = self._rows if self._rows is not None else len(part) * (self._batches or 1)
        try:
            self._room(part, max(expected, len(part)))
        except RuntimeError:  # no room for all that may come; perhaps not all does
            self._room(part, len(part))

    def _room(self, part: Tensor, rows: int) -> None:
        """A block for so many rows; memory is taken up as they are written."""
        block = torch.empty((rows, *part.shape[1:]), dtype=part.dtype)
        self._blocks.append(block)
        self._used.append(0)
        self._size = rows

    def _add(self, block: Tensor) -> None:
        self._blocks.append(block)
        self._used.append(len(block))

    def _whole(self) -> Any:
        blocks = [block[:used] for block, used in zip(self._blocks, self._used, strict=True)]
        self._blocks, self._used = [], []
        if self._ragged:
            return [row for block in blocks for row in block]
        if self._dim:
            return torch.cat(blocks, self._dim)
        if len(blocks) == 1:
            return blocks[0]
        joined = torch.empty((sum(map(len, blocks)), *blocks[0].shape[1:]), dtype=blocks[0].dtype)
        start = 0
        for i in range(len(blocks)):
            stop = start + len(blocks[i])
            joined[start:stop] = blocks[i]
            blocks[i] = joined[:0]  # so that its memory is free
            start = stop
        return joined

    def discard(self) -> None:
        """Lets go of what was gathered so far."""
        super().discard()
        self._blocks, self._used = [], []


class InFile(Column):
    """Rows in a .npy file, written as they come; it is there when all have come. The result is mapped from it.

    NumPy has no bfloat16: such rows are written as float32, which holds the same numbers.

    Args:
        path: the file; its folder is made. It replaces one of the name.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows = 0
        self._like: Tensor | None = None
        self._opened: AbstractContextManager[BinaryIO] | None = None
        self._file: BinaryIO | None = None

    def _store(self, part: Tensor) -> None:
        if part.dtype == torch.bfloat16:
            part = part.float()
        if self._like is None or self._file is None:
            self._like = part[:0]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._opened = whole_file(self.path)
            self._file = self._opened.__enter__()
            self._file.write(bytes(HEADER_BYTES))
        if part.shape[1:] != self._like.shape[1:] or part.dtype != self._like.dtype:
            raise ValueError(
                f"{self.path}: a file holds rows of one shape, and after {shape_text(self._like)} came"
                f" {shape_text(part)}. Gather them in memory: leave save_preds and save_targs out."
            )
        self._file.write(part.contiguous().numpy().data)
        self._rows += len(part)

    def _whole(self) -> Tensor | None:
        if self._opened is None or self._file is None or self._like is None:
            return None
        self._file.seek(0)
        self._file.write(_header(self._like, self._rows))
        opened, self._opened = self._opened, None
        opened.__exit__(None, None, None)
        # Copy on write: torch wants memory that can be written to, and the file stays as it is.
        return torch.from_numpy(np.load(self.path, mmap_mode="c"))

    def discard(self) -> None:
        """Removes what was written, unless it was finished."""
        super().discard()
        if self._opened is not None:
            opened, self._opened = self._opened, None
            unfinished = InterruptedError(f"{self.path} was not finished")
            opened.__exit__(InterruptedError, unfinished, None)


def _header(like: Tensor, rows: int) -> bytes:
    """The beginning of a .npy file, version 1.0, of `HEADER_BYTES`. Source: numpy.lib.format of NumPy 2.4."""
    shape = (rows, *like.shape[1:])
    told = f"{{'descr': {like.numpy().dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}"
    start = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little")
    return start + told.encode("latin1").ljust(HEADER_BYTES - 11) + b"\n"


class Listed:
    """What is no tensor: one after another in a list; a batch's list of such things is a thing a row."""

    def __init__(self) -> None:
        self._things: list[Any] = []

    def append(self, part: Any) -> None:
        """Takes a batch's things on."""
        if isinstance(part, (list, tuple)):
            self._things.extend(map(_on_cpu, part))
        else:
            self._things.append(_on_cpu(part))

    def result(self) -> list[Any]:
        """All of them."""
        return self._things

    def discard(self) -> None:
        """Lets go of them."""
        self._things = []


class Nested:
    """Nested tuples, lists and dicts of tensors that come batch by batch, gathered into the same nesting.

    Args:
        make: makes the column for a tensor of a name: "" for a tensor alone, else its place, such as "0" or "logits".
    """

    def __init__(self, make: Callable[[str], Column]) -> None:
        self._make = make
        self._columns: dict[str, Column | Listed] = {}
        self._last: Any = None

    def append(self, value: Any) -> None:
        """Takes a batch's value on.

        Raises:
            ValueError: it is nested otherwise than the first one.
        """
        if not self._columns:
            self._columns = {name: self._column(name, part) for name, part in _named(value)}
        if value.__class__ is Tensor and "" in self._columns:  # nearly always
            self._columns[""].append(value)
            return
        parts = dict(self.parts(value))
        if parts.keys() != self._columns.keys():
            raise ValueError(
                f"batches are to be gathered, but one has the parts {list(parts)}, the first one {list(self._columns)}"
            )
        for name, part in parts.items():
            self._columns[name].append(part)
        self._last = value if self._last is None else self._last

    def skip(self) -> None:
        """Takes note that a batch has no row that is to be gathered."""

    def parts(self, value: Any) -> Iterator[tuple[str, Any]]:
        """The parts of a value with their places."""
        return _named(value)

    def _column(self, name: str, part: Any) -> Column | Listed:
        return self._make(name) if isinstance(part, Tensor) else Listed()

    def result(self) -> Any:
        """All of it; None where nothing came."""
        if not self._columns:
            return None
        wholes = {name: column.result() for name, column in self._columns.items()}
        return wholes[""] if "" in wholes else rebuilt(self._last, iter(wholes.values()))

    def discard(self) -> None:
        """Lets go of what was gathered so far."""
        for column in self._columns.values():
            column.discard()
        self._last = None


def _is_columns(value: Any) -> bool:
    """Whether a tuple or a list holds columns. Else it holds rows: dicts, as of detection models, or texts."""
    nests = (Tensor, tuple, list, Mapping) if isinstance(value, tuple) else (Tensor, tuple, list)
    return isinstance(value, (tuple, list)) and any(isinstance(part, nests) for part in value)


def _named(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The parts of a nested value with their places."""
    if isinstance(value, Mapping):
        parts = [(str(key), part) for key, part in value.items()]
    elif _is_columns(value):
        parts = [(str(i), part) for i, part in enumerate(value)]
    else:
        yield name, value
        return
    for place, part in parts:
        yield from _named(part, f"{name}_{place}" if name else place)


def rebuilt(like: Any, wholes: Iterator[Any]) -> Any:
    """The next of `wholes` in place of each part of `like`."""
    if isinstance(like, Mapping):
        return {key: rebuilt(part, wholes) for key, part in like.items()}
    if _is_columns(like):
        parts = [rebuilt(part, wholes) for part in like]
        return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)
    return next(wholes)


def _on_cpu(value: Any) -> Any:
    return map_tensors(lambda part: part.detach().clone().cpu(), value)


def in_rows(value: Any, order: Tensor | None, dim: int = 0) -> Any:
    """`value` with the rows of every tensor of that many, and of every such list, in another order."""
    if order is None:
        return value
    n = len(order)
    if isinstance(value, list) and len(value) == n and not any(isinstance(part, list) for part in value):
        return [value[i] for i in order.tolist()]
    if isinstance(value, Tensor):
        return value.index_select(dim, order) if value.ndim > dim and value.shape[dim] == n else value
    if isinstance(value, Mapping):
        return {key: in_rows(part, order, dim) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [in_rows(part, order, dim) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def npy_path(path: Path, stem: str, name: str) -> Path:
    """The file for a part called `name`: `path` with ``.npy``, or `stem` in the folder `path`; ``_name`` before it.

    >>> npy_path(Path("out/valid"), "preds", "logits").as_posix()
    'out/valid_logits.npy'
    """
    if path.is_dir():
        path = path / stem
    stem = path.name.removesuffix(".npy")
    place = re.sub(r"\W", "_", name)
    return path.with_name(f"{stem}_{place}.npy" if place else f"{stem}.npy")


dtype_of: Callable[[Tensor], torch.dtype] = attrgetter("dtype")
numel = Tensor.numel

"""Rows that come batch by batch in several processes, put together in the order in which one process would have them.

Every process makes the same steps, and has a part of each or none: step by step come the rows of rank 0, of rank 1, …
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minilearn import distributed
from minilearn.rows import Column, Listed, Nested, rebuilt
from minilearn.tensors import map_tensors

Sizes = list[dict[str, int]]
"""How many rows each part of a nested value has, step by step; nothing of a step without a row."""


class JoinedNested(Nested):
    """Gathers this process's rows in memory, and puts them together with the others' at the end.

    At the end the rows of all are in every process's memory, and besides them, for a while, those that are on their
    way: as much again.

    Args:
        make: as in `Nested`.
        dim: the axis of the rows.
    """

    def __init__(self, make: Callable[[str], Column], dim: int = 0) -> None:
        super().__init__(make)
        self._dim = dim
        self._sizes: Sizes = []

    def append(self, value: Any) -> None:
        """Takes this process's rows of a step on."""
        listed = {name: len(c.result()) for name, c in self._columns.items() if isinstance(c, Listed)}
        super().append(value)
        found = {}
        for name, part in self.parts(value):
            column = self._columns[name]
            if isinstance(column, Listed):
                found[name] = len(column.result()) - listed.get(name, 0)
            else:
                found[name] = part.shape[self._dim] if part.ndim > self._dim else 1
        self._sizes.append(found)

    def skip(self) -> None:
        """Takes note of a step in which this process has no row."""
        self._sizes.append({})

    def result(self) -> Any:
        """All processes' rows, in each of them; None where nothing came."""
        own = {name: column.result() for name, column in self._columns.items()}
        nesting = map_tensors(lambda part: torch.empty(0), self._last)
        known = distributed.gathered((list(own), nesting, self._sizes))
        found = [(names, like) for names, like, _ in known if names]
        if not found:
            return None
        names, like = found[0]
        if any(other != names for other, _ in found):
            raise ValueError(f"batches are to be gathered, and the parts of the processes' differ: {found}")
        sizes = [by_step for _, _, by_step in known]
        wholes = {name: _whole(own.get(name), places(sizes, name), self._dim) for name in names}
        return wholes[""] if "" in wholes else rebuilt(like, iter(wholes.values()))


class FiledNested(Nested):
    """Gathers each step's rows of all processes at once, and rank 0 writes them: no memory is needed.

    The others map the file when it is there; where they are on another machine, they must see the same folder.

    Args:
        make: as in `Nested`; makes what writes the file.
        path: gives the file of a part of a name.
    """

    def __init__(self, make: Callable[[str], Column], path: Callable[[str], Path]) -> None:
        super().__init__(make)
        self._path = path

    def append(self, value: Any) -> None:
        """Takes this process's rows of a step on."""
        self._send(map_tensors(lambda part: part.detach().cpu().clone(), value))

    def skip(self) -> None:
        """Takes part in a step in which this process has no row."""
        self._send(None)

    def result(self) -> Any:
        """All rows, mapped from the file; None where nothing came."""
        whole = super().result() if distributed.is_main() else None
        nesting = map_tensors(lambda part: torch.empty(0), self._last)
        names, like = distributed.from_main((list(self._columns), nesting))
        if distributed.is_main() or not names:
            return whole
        wholes = {name: torch.from_numpy(np.load(self._path(name), mmap_mode="c")) for name in names}
        return wholes[""] if "" in wholes else rebuilt(like, iter(wholes.values()))

    def _send(self, value: Any) -> None:
        for part in distributed.gathered(value):
            if part is not None and distributed.is_main():
                super().append(part)


def places(sizes: list[Sizes], name: str) -> list[Tensor]:
    """Where each process's rows stand among those of all, by rank, int64 (its rows,).

    Args:
        sizes: each process's, by rank; all have as many steps.
        name: the part.

    >>> places([[{"": 2}, {"": 1}], [{"": 1}, {}]], "")
    [tensor([0, 1, 3]), tensor([2])]
    """
    found: list[list[Tensor]] = [[] for _ in sizes]
    begin = 0
    for step in zip(*sizes, strict=True):
        for rank, rows in enumerate(part.get(name, 0) for part in step):
            found[rank].append(torch.arange(begin, begin + rows))
            begin += rows
    return [torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64) for parts in found]


def _whole(own: Any, at: list[Tensor], dim: int) -> Any:
    kinds = distributed.gathered(_kind(own, dim))
    if len(set(kinds) - {None}) == 1 and "listed" not in kinds:
        parts = [(place, part) for place, part in zip(at, distributed.gathered_tensors(own), strict=True)]
        first = next(part for _, part in parts if part is not None)
        whole = torch.empty((*first.shape[:dim], sum(map(len, at)), *first.shape[dim + 1 :]), dtype=first.dtype)
        for place, part in parts:
            if part is not None:
                whole.index_copy_(dim, place, part)
        return whole
    from_all = distributed.gathered(None if own is None else [_copied(row) for row in own])
    rows: list[Any] = [None] * sum(map(len, at))
    for place, own_rows in zip(at, from_all, strict=True):
        for i, row in zip(place.tolist(), own_rows or (), strict=True):
            rows[i] = row
    return rows


def _kind(own: Any, dim: int) -> Any:
    """What has to be the same in all processes for one tensor of all rows."""
    if own is None or not isinstance(own, Tensor):
        return None if own is None else "listed"
    return (*own.shape[:dim], *own.shape[dim + 1 :]), own.dtype


def _copied(row: Any) -> Any:
    """A row alone: what is sent of a part of a tensor is all that lies beside it, too."""
    return map_tensors(Tensor.clone, row)

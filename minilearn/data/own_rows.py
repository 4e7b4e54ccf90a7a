"""What each of several processes takes of what is left at a loader's end, and of rows that come one by one."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset

Step = tuple[Any, int, int, int, int]
"""A process's part of a step: a batch, how many of its rows count here, those of lower ranks, those of all together,
and how many of the loader's batches these are."""


def share_sizes(rows: int, world: int, bs: int) -> list[int]:
    """How many of the last `rows` each of so many processes has, with batches of at most `bs`; two at least, or none.

    >>> share_sizes(9, 4, 8), share_sizes(5, 4, 8), share_sizes(1, 4, 8), share_sizes(3, 4, 1)
    ([3, 2, 2, 2], [3, 2, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0])
    """
    sharers = max(-(-rows // bs), min(world, rows // min(2, bs)), 1)
    return [rows // sharers + (r < rows % sharers) if r < sharers else 0 for r in range(world)]


class OwnRows(IterableDataset[Step]):
    """One process's batches of an `IterableDataset`, of which each reads all rows, a step's rows at once.

    Everything else that is asked of it is the data set's.
    """

    def __init__(
        self, dataset: Any, bs: int, rank: int, world: int, collate: Callable[[list[Any]], Any], drop_last: bool
    ) -> None:
        vars(self).update(dataset=dataset, _bs=bs, _rank=rank, _world=world, _collate=collate, _drop_last=drop_last)
        vars(self)["skipped"] = 0

    def __iter__(self) -> Iterator[Step]:
        rows, most = iter(self.dataset), self._bs * self._world
        for _ in islice(rows, self.skipped):
            pass
        vars(self)["skipped"] = 0  # once: a worker process may live on
        while group := list(islice(rows, most)):
            total = len(group)
            if total == most:
                sizes = [self._bs] * self._world
            elif self._drop_last:
                return
            else:
                sizes = share_sizes(total, self._world, self._bs)
            own, before = sizes[self._rank], sum(sizes[: self._rank])
            mine = group[before : before + own] if own else group[: sizes[0]]
            del group
            yield self._collate(mine), own, before, total, -(-total // self._bs)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # asked for while an object is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "skipped":  # how many rows are left out at the beginning
            vars(self)[name] = value
        else:
            setattr(self.dataset, name, value)

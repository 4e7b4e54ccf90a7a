"""A loader that is gone through several times, and which loader is at the bottom of one that goes through another."""

from collections.abc import Iterator
from typing import Any

from minilearn import distributed
from minilearn.data.loader import length, no_batch
from minilearn.data.shares import Share


class Rounds:
    """A loader that is gone through again and again until `n` batches have come.

    In several processes each goes through its share: `n` is the number of steps.

    Args:
        loader: the loader; what else is asked for, its `dataset` say, is its.
        n: how many batches.
    """

    def __init__(self, loader: Any, n: int) -> None:
        self.loader, self.n = Share(loader) if distributed.world_size() > 1 else loader, n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Any]:
        left = self.n
        while left:
            before = left
            for batch in self.loader:
                yield batch
                del batch  # so that the next one may take its memory
                left -= 1
                if not left:
                    return
            if left == before:
                raise ValueError(no_batch("training loader", length(self.loader)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying asks of an object before it has its attributes
            raise AttributeError(name)
        return getattr(self.loader, name)


def beneath(dl: Any) -> Any:
    """The loader whose batches these are: of one that goes through another several times, or by shares, that other."""
    while isinstance(dl, (Rounds, Share)):
        dl = dl.loader
    return dl

"""The middle of an epoch: a loader that begins there, and random numbers that depend on the place alone."""

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import Sampler

Then = Callable[[], object]
"""What is done between the drawing of an epoch's order and the reading of the first batch."""


@runtime_checkable
class Skipping(Protocol):
    """A loader that can leave the first batches of an epoch out without reading them."""

    def begin_at(self, batch: int, then: Then) -> Iterator[Any]:
        """The batches from number `batch` on."""


def batches_from(loader: Any, batch: int, then: Then) -> Iterator[Any]:
    """The batches of an epoch from number `batch` on, as they come where the epoch begins with number 0.

    The order is drawn as for a whole epoch, from the random numbers as they are now. minilearn's loaders go by the
    rows' numbers; of any other loader the first batches are read and let go.

    Args:
        loader: any iterable of batches.
        batch: how many batches to leave out.
        then: called when the order has been drawn, before the first batch is read (of another loader: when the first
            ones have been let go).
    Raises:
        ValueError: the loader has fewer batches.
    """
    return loader.begin_at(batch, then) if isinstance(loader, Skipping) else without_first(iter(loader), batch, then)


def without_first(batches: Iterator[Any], first: int, then: Then) -> Iterator[Any]:
    """What comes after the first few of `batches`; `then` is called before it, but after the others."""
    done = sum(1 for _ in islice(batches, first))
    if done < first:
        raise ValueError(f"the loader cannot go on with batch {first}: it has {done} batches")
    then()
    yield from batches


def drawn_without_first(rows: Iterator[Any], first: int, then: Then, ahead: int = 0) -> Iterator[Any]:
    """The same for a sampler, whose draws come with what is asked of it: its order with the first of the rows, say.

    Args:
        rows: what the sampler gives.
        first: how many to leave out.
        then: called when so many, and those ahead, have been drawn: where random numbers stood that it puts back.
        ahead: how many more had been drawn there than were used, for worker processes; one beyond the end is the end.
    Raises:
        ValueError: the sampler gives fewer.
    """
    done = sum(1 for _ in islice(rows, first))
    if done < first:
        raise ValueError(f"the loader cannot go on with batch {first}: it has {done} batches")
    drawn = list(islice(rows, ahead if first else max(ahead, 1)))
    then()
    yield from drawn
    yield from rows


class Rows(list[int]):
    """The numbers of a batch's rows, with the seed of the random numbers that reading them may draw."""

    seed: int


class NumberedBatches(Sampler[list[int]]):
    """A batch sampler whose batches carry seeds, (the epoch's seed + the batch's number), and may begin in the middle.

    The epoch's seed is drawn where torch's loader draws one for its workers, so that the order that follows is the one
    torch's loader has.

    Args:
        batches: the batch sampler.
        generator: where the epoch's seed comes from; None: torch's own random numbers.
    """

    def __init__(self, batches: Any, generator: torch.Generator | None) -> None:
        self.batches, self.generator = batches, generator
        self.begin: tuple[int, Then] = (0, _nothing)
        self.ahead = self.drawn = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Rows]:
        (first, then), self.begin = self.begin, (0, _nothing)
        ahead, self.ahead = self.ahead, 0
        seed = int(torch.empty((), dtype=torch.int64).random_(generator=self.generator))
        self.drawn = first
        for batch, rows in enumerate(drawn_without_first(iter(self.batches), first, then, ahead), first):
            numbered = Rows(rows)
            numbered.seed = (seed + batch) % 2**63
            self.drawn = batch + 1
            yield numbered
        self.drawn += 1  # the end: a sampler may draw once more before it


class SeededRows:
    """A dataset in a worker process, where each batch's random numbers start from the batch's own seed.

    So they do not depend on how many workers there are, nor on what they have read before. Everything else that is
    asked of it is the dataset's.
    """

    def __init__(self, dataset: Any) -> None:
        vars(self)["dataset"] = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: Any) -> Any:
        return self.dataset[i]

    def __getitems__(self, rows: list[int]) -> Any:
        if isinstance(rows, Rows):
            random.seed(rows.seed)
            np.random.seed(rows.seed % 2**32)
            torch.default_generator.manual_seed(rows.seed)
        several = getattr(self.dataset, "__getitems__", None)
        return several(list(rows)) if several else [self.dataset[i] for i in rows]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # asked for while an object is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """What is started within a ``with`` block does not hear Ctrl-C, which a terminal sends to every process of a job.

    A worker that ended at it would take the main process along, which may have something to bring to its end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)  # None: one that is not Python's


def drawn(loader: Any) -> int:
    """How many batches' rows a loader has drawn in this epoch, those for worker processes ahead; 0: it does not say."""
    numbered = _numbered_of(loader)
    return numbered.drawn if numbered is not None else 0


def draw_ahead(loader: Any, n: int) -> None:
    """Has the next `batches_from` draw `n` batches' rows more before its `then`."""
    numbered = _numbered_of(loader)
    if numbered is not None:
        numbered.ahead = max(n, 0)


def _numbered_of(loader: Any) -> NumberedBatches | None:
    """A loader's numbered batches, made where there are none yet."""
    of_loader = getattr(loader, "_numbered_batches", None)
    found = of_loader() if callable(of_loader) else None
    return found if isinstance(found, NumberedBatches) else None


def generators_of(loader: Any) -> list[torch.Generator]:
    """The generators of a loader, its sampler and its batch sampler, each once, in the order of their attributes."""
    found: dict[int, torch.Generator] = {}
    sampler, batch_sampler = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    for part in (loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None)):
        for value in getattr(part, "__dict__", {}).values():
            if isinstance(value, torch.Generator):
                found[id(value)] = value
    return list(found.values())


def _nothing() -> None:
    """Nothing is done."""

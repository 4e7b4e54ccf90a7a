"""The loader: batches of a dataset, whole ones at a time where the dataset is tensors."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, IterableDataset, RandomSampler, SequentialSampler, TensorDataset

from minilearn.batches import split_batch
from minilearn.data.columns import CUT_AT_ONCE, as_columns, batches, copied, fit_on, on_device
from minilearn.data.position import (
    NumberedBatches,
    SeededRows,
    Then,
    deaf_to_ctrl_c,
    drawn_without_first,
    without_first,
)
from minilearn.distributed import local_world_size
from minilearn.errors import describe, whole
from minilearn.plots import show_batch
from minilearn.tensors import existing_device

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_WORKERS = 8
"""How many processes ``num_workers="auto"`` starts at most: each holds the dataset's objects and two batches."""


class DataLoader(torch.utils.data.DataLoader[Any]):
    """torch's DataLoader, with all its options, that fetches a whole batch at once where the dataset is tensors.

    A `TensorDataset`, a tensor, a tuple of tensors (inputs, targets), or a list of tuples of equal-shaped tensors (the
    lessons' ``list(zip(train_x, train_y))``) is kept as one tensor a column, in its own dtype; a batch then costs at
    most one indexing operation a column, not one for each row. Other datasets, worker processes and `collate_fn` go
    torch's way. A batch is always a copy: changing it in place leaves the dataset and other batches alone.

    Args:
        dataset: the rows.
        bs: rows a batch; torch's name `batch_size` is taken too.
        shuffle: a new order each epoch, drawn from torch's random numbers (`torch.manual_seed`), or `generator`'s.
        options: torch's: `drop_last`, `num_workers`, `sampler`, `batch_sampler`, `collate_fn`, `generator`, …
            `pin_memory` is on where there is a CUDA GPU. ``num_workers="auto"`` starts processes for a dataset that is
            read row by row: one a core, less one, at most 8, which live on from epoch to epoch
            (`persistent_workers`), with torch's `prefetch_factor` of 2 batches each. They see the dataset as it was
            when they started. As with any number of workers, a dataset must be picklable and a script have its
            ``if __name__ == "__main__":`` where processes are not forked, so the default is none.
    Raises:
        ValueError: the batch size is no whole number above 0, or is given twice; columns differ in length, or the
            dataset is empty; `num_workers` is less than 0, or a word other than "auto".
        TypeError: the dataset has no rows to ask for by number and is no `IterableDataset`.

    >>> x, y = torch.arange(3.0).unsqueeze(1), torch.tensor([0, 1, 0])
    >>> [tuple(xb.shape) for xb, yb in DataLoader(list(zip(x, y)), 2)]
    [(2, 1), (1, 1)]
    """

    def __init__(self, dataset: Any, bs: int | None = None, shuffle: bool = False, **options: Any) -> None:
        if bs is not None and "batch_size" in options:
            raise ValueError(f"give bs or batch_size, not both: got bs={bs}, batch_size={options['batch_size']}")
        if options.get("batch_sampler") is not None:
            if bs is not None:
                raise ValueError(f"give bs or batch_sampler, not both: got bs={bs}")
        else:
            # batch_size=None is torch's word for a dataset that gives whole batches.
            options["batch_size"] = size = options.get("batch_size", 64 if bs is None else bs)
            if size is not None:
                options["batch_size"] = whole("bs", size, 1)
        if shuffle:
            options["shuffle"] = True  # torch refuses it beside a sampler
        options.setdefault("pin_memory", torch.cuda.is_available())
        if isinstance(dataset, tuple) and (columns := as_columns(dataset)) is not None:
            dataset = TensorDataset(*columns)
        whole_batches = options.get("batch_size", 1) is None
        workers = _check_workers(options.get("num_workers", 0))
        row_by_row = options.get("collate_fn") is not None or workers > 0 or whole_batches
        self.columns = None if row_by_row else as_columns(dataset)
        self._given = self.columns
        _check_dataset(dataset)
        if options.get("num_workers") == AUTO:
            alone = self.columns is not None or isinstance(dataset, IterableDataset)
            options["num_workers"] = workers = 0 if alone else auto_workers()
            if workers:
                options.setdefault("persistent_workers", True)
        super().__init__(dataset, **options)
        self._numbered: NumberedBatches | None = None

    @property
    def bs(self) -> int | None:
        """Rows a batch."""
        return self.batch_size

    def one_batch(self) -> Any:
        """The first batch; a look at the data, not a part of training. `DataLoaders`' transforms come later."""
        return next(iter(self))

    def show_batch(self, b: Any = None, max_n: int = 9, **kwargs: Any) -> "Axes":
        """The first rows of a batch, as the loader gives it: see `plots.show_batch`.

        Args:
            b: the batch, inputs and then targets; by default `one_batch`.
            max_n: how many rows, at least 1.
            kwargs: for `plots.show_batch`: `vocab`, `columns`, `ax`.
        """
        xb, yb = split_batch(self.one_batch() if b is None else b, None)
        return show_batch(xb, yb or None, max_n=whole("max_n", max_n, 1), **kwargs)

    def to(self, device: torch.device | str) -> Self:
        """Moves the columns of a dataset of tensors to a device, where they fit (`columns.fit_on`).

        Batches are gathered there from then on, and an epoch copies nothing but its order. The dataset keeps its own
        tensors, from which a later `to` starts. Other datasets stay as they are.

        Raises:
            ValueError: there is no such device.
        """
        target = existing_device(device)
        if self._given is not None:
            self.columns = self._given  # what another device holds makes room
            if fit_on(self._given, target):
                self.columns = tuple(column.to(target) for column in self._given)
        return self

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._iterator_of_rows() if self.columns is None else self._gather(self.columns)

    def begin_at(self, batch: int, then: Then) -> Iterator[Any]:
        """The batches of an epoch from number `batch` on, without those before it being read: see `batches_from`."""
        if self.columns is not None:
            return self._gather(self.columns, batch, then)
        if (numbered := self._numbered_batches()) is not None:
            numbered.begin = batch, then
            return self._iterator_of_rows()
        return without_first(self._iterator_of_rows(), batch, then)

    def _iterator_of_rows(self) -> Iterator[Any]:
        """torch's iterator; with worker processes, over rows whose random numbers depend on their place alone."""
        numbered = self._numbered_batches()
        if numbered is None:
            return super().__iter__()
        # torch reads these three when it makes an iterator (2.6 to 2.13), and keeps them in it. Its own draw from the
        # generator, which comes for the first epoch only where workers live on, is taken from one of no account.
        given = self.dataset, self.batch_sampler, self.generator
        rows = SeededRows(self.dataset) if self.num_workers else self.dataset
        vars(self).update(dataset=rows, batch_sampler=numbered, generator=torch.Generator())
        try:
            with deaf_to_ctrl_c() if self.num_workers else nullcontext():
                batches = super().__iter__()
            return _sent(batches) if self.num_workers else batches
        finally:
            vars(self).update(zip(("dataset", "batch_sampler", "generator"), given, strict=True))

    def _numbered_batches(self) -> NumberedBatches | None:
        """The batch sampler with numbers and seeds; none where the data set has no rows by number, or no batches."""
        if self.batch_sampler is None or isinstance(self.dataset, IterableDataset):
            return None
        if self._numbered is None or self._numbered.batches is not self.batch_sampler:  # a copy may have another one
            self._numbered = NumberedBatches(self.batch_sampler, self.generator)
        return self._numbered

    def lent(self, safe: bool = False) -> Iterator[Any]:
        """The batches, to be looked at one after another: from tensors in order they are the data set's own rows.

        The first one is a copy, but for its input where that is `safe`, as nobody is known who would write to it. Where
        it is changed in place, as by a model that begins with such an operation, all are copies. Where only a later one
        is, that is an error at the end, as the data set has changed with it.

        Raises:
            ValueError: a batch was changed in place, though the first one was not.
        """
        return self._lend(self.columns, safe) if self.columns is not None and self.can_lend() else iter(self)

    def can_lend(self) -> bool:
        """Whether batches may be the data set's own rows: from tensors in order."""
        if self.columns is None or not self.as_they_lie():
            return False
        if torch.is_inference_mode_enabled() or any(column.is_inference() for column in self.columns):
            return False  # such tensors do not count their changes
        return not (self.pins() and self.columns[0].is_cpu)  # rows not in pinned memory would have to be waited for

    def _lend(self, columns: tuple[Tensor, ...], safe: bool) -> Iterator[Any]:
        n, bs = used_rows(self, len(columns[0])), self.batch_size or 1
        if not n:
            return
        with left_as_they_are(columns):
            parts_of_first = [column[: min(bs, n)] for column in columns]
            first = self.as_given()([part if safe and not i else part.clone() for i, part in enumerate(parts_of_first)])
            before = changes_of(first)
            yield first
            if changes_of(first) != before:
                yield from islice(self._gather(columns), 1, None)
                return
            for block in self.blocks(1):
                parts: list[Any] = [torch.split(rows, bs) for rows in block]
                yield from zip(*parts, strict=True) if isinstance(first, tuple) else parts[0]

    def blocks(self, first: int) -> Iterator[list[Tensor]]:
        """Of tensors in order, the columns from batch number `first` on, some batches' rows at a time."""
        assert self.columns is not None
        n, bs = used_rows(self, len(self.columns[0])), self.batch_size or 1
        for start in range(first * bs, n, bs * CUT_AT_ONCE):
            yield [column[start : min(start + bs * CUT_AT_ONCE, n)] for column in self.columns]

    def _gather(self, columns: tuple[Tensor, ...], first: int = 0, then: Then | None = None) -> Iterator[Any]:
        copies, given = self._copies(columns, first, then), self.as_given()
        return copies if given is tuple else map(given, copies)

    def as_given(self) -> Callable[[Sequence[Tensor]], Any]:
        """What makes a batch of its columns, in the form in which the data set has its rows."""
        dataset: Any = self.dataset
        bare = isinstance(dataset, Tensor) or (isinstance(dataset, list) and isinstance(dataset[0], Tensor))
        return itemgetter(0) if bare else tuple

    def pins(self) -> bool:
        """Whether batches in the computer's memory are in its pinned part."""
        return self.pin_memory and torch.accelerator.is_available()

    def as_they_lie(self) -> bool:
        """Whether the rows come as they lie."""
        one_order = type(self.batch_sampler) is BatchSampler and self.batch_size is not None
        return one_order and type(self.sampler) is SequentialSampler and len(self.sampler) == len(self.columns[0])  # type: ignore[index]

    def _copies(self, columns: tuple[Tensor, ...], first: int, then: Then | None) -> Iterator[tuple[Tensor, ...]]:
        """The batches' columns, in the sampler's order, from batch number `first` on."""
        n, device, sampler = len(columns[0]), columns[0].device, self.sampler
        pin = self.pins()
        one_order = type(self.batch_sampler) is BatchSampler and self.batch_size is not None
        shuffled = type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == n
        if not (self.as_they_lie() or (one_order and shuffled)):
            several = iter(self.batch_sampler or ())
            for indices in drawn_without_first(several, first, then) if then else several:
                yield copied(columns, on_device(torch.as_tensor(indices), device), pin=pin)
            return
        bs = self.batch_size or n
        # One permutation an epoch: index by index, as torch's sampler gives them, costs more than the batch itself. It
        # is drawn in the computer's memory, so that a seed gives one order wherever the data is.
        order = (
            on_device(torch.randperm(n, generator=sampler.generator), device)
            if isinstance(sampler, RandomSampler)
            else None
        )
        n = used_rows(self, n)
        if then:
            then()
            done = first * bs
            if done >= n:
                return
            n -= done
            columns = tuple(column[done:] for column in columns) if order is None else columns
            order = None if order is None else order[done:]
        yield from batches(columns, bs, n, order, pin=pin)


def used_rows(dl: Any, n: int) -> int:
    """How many of `n` rows are in a batch: all, but for a ragged last one's with `drop_last`."""
    return n - n % (dl.batch_size or 1) if dl.drop_last else n


def changes_of(batch: Any) -> list[int]:
    """How often each tensor of a batch has been changed in place."""
    return [part._version for part in (batch if isinstance(batch, tuple) else (batch,))]


@contextmanager
def left_as_they_are(columns: tuple[Tensor, ...]) -> Iterator[None]:
    """Raises a ValueError at the end of a ``with`` block in which rows were changed in place."""
    before = changes_of(columns)
    yield
    if changes_of(columns) != before:
        raise ValueError(
            "rows of the data set were changed in place: a model or a callback that changes a batch so must do it"
            " to the first one too, or work on a copy"
        )


def _sent(batches: Iterator[Any]) -> Iterator[Any]:
    """What worker processes send; one that dies while it does leaves just a broken connection behind.

    Raises:
        RuntimeError: a worker has died.
    """
    try:
        yield from batches
    except (ConnectionError, EOFError) as error:
        raise RuntimeError(
            "a worker process of the loader has died while it sent a batch. Was it killed (no memory left?), or does"
            " the dataset crash? num_workers=0 reads without one, and shows where."
        ) from error


AUTO = "auto"


def auto_workers() -> int:
    """The worker processes that ``num_workers="auto"`` stands for: one a core, less one for the training, at most 8.

    Only the cores that this process may use count, where the system tells which; processes that a launcher started on
    this machine share them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // local_world_size() - 1, 0), MOST_WORKERS)


def _check_workers(num_workers: Any) -> int:
    """A number of workers that was given, 0 for "auto".

    Raises:
        ValueError: it is neither a number from 0 up nor "auto".
        TypeError: it is no whole number.
    """
    if num_workers == AUTO:
        return 0
    if isinstance(num_workers, str):
        raise ValueError(f"num_workers must be a whole number of at least 0 or 'auto', got {describe(num_workers)}")
    return whole("num_workers", num_workers)


def _check_dataset(dataset: Any) -> None:
    """Refuses what torch would only fail on when the first batch is fetched.

    Raises:
        ValueError: it has no rows.
        TypeError: it has no rows that can be asked for by number.
    """
    if isinstance(dataset, IterableDataset):
        return
    if not hasattr(dataset, "__getitem__"):
        hint = " Make it a list: list(...)." if isinstance(dataset, Iterable) else ""
        raise TypeError(
            f"a dataset must have rows by number, dataset[0], got an object of {type(dataset).__name__}.{hint}"
        )
    if length(dataset) == 0:
        raise ValueError("the dataset is empty: it has no rows")


ANEW = "Give an object whose __iter__ starts anew, a list of batches, or a DataLoader."


def length(dl: Any) -> int | None:
    """The number of batches in a loader; None where it does not say."""
    try:
        return len(dl)
    except (TypeError, NotImplementedError):
        return None


def no_batch(part: str, n: int | None) -> str:
    """The message for a loader, such as "training loader", of `n` batches that gave none."""
    if n is None:
        return f"the {part} gave no batch. A generator can be run through only once. {ANEW}"
    return (
        f"the {part} is empty: it has {n} batches. Its dataset has no row, or fewer than one batch with drop_last=True."
    )

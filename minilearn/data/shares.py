"""A loader's batches divided among processes: step k of all together has the rows of step k of one with larger ones."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, IterableDataset, RandomSampler

from minilearn import distributed
from minilearn.data.columns import batches, copied, on_device
from minilearn.data.loader import DataLoader, changes_of, left_as_they_are, length
from minilearn.data.own_rows import OwnRows, Step, share_sizes
from minilearn.data.position import Rows, Then, generators_of
from minilearn.random_states import host_states, set_host_states
from minilearn.tensors import batch_size

Planned = list[tuple["Rows", int, int, int, int]]
"""The same with the rows' numbers in place of a batch."""
Reader = Callable[[int], Iterator[Step]]
"""Gives a process's steps from a number on."""


class Share:
    """What one of several processes reads of a loader, whose batches are those of one process.

    With batches of `bs` rows, N processes together do the work of one with batches of N · `bs`: the order is drawn as
    there, from rank 0's random numbers, and process r has the rows r · `bs` to (r + 1) · `bs` of each N · `bs`. What is
    left at the end is divided evenly, at least two rows each where there are so many, as layers that normalise over the
    batch need two. All processes make as many steps. One without a row left gets rows of another's to go along with:
    `own` is 0 then, and they count for nothing.

    Loaders that fetch rows by number fetch their own alone. Of an `IterableDataset` every process reads all rows, and
    makes batches of its own; one with an attribute ``splits_itself = True`` gives each process other rows by itself,
    and the processes tell each other in each step how many they have: steps go on until none has any. Of any other
    loader, of batches that are put together already, every process reads all and takes one of N; so it is with a batch
    sampler that is not torch's own.

    Args:
        loader: any iterable of batches.
        rank: the process's number; by default this one's.
        world: how many processes there are; by default as many as work together.

    Attributes:
        own: how many rows of the batch that was given last count here.
        before: how many rows of that step the processes of lower ranks have.
        total: how many rows that step has in all processes.
        reached: how many of the loader's batches have been given by all processes together in this epoch: the place in
            it, which any number of processes can go on from.
        drawn: how many the loader had to draw for that.
        rows_before: how many rows the steps before it had.
    """

    def __init__(self, loader: Any, rank: int | None = None, world: int | None = None) -> None:
        self.loader = loader
        self.rank = distributed.rank() if rank is None else rank
        self.world = distributed.world_size() if world is None else world
        self.own = self.before = self.total = self.rows_before = 0
        self.reached = self.drawn = 0
        self._twin: Any = None
        self._start: tuple[int, int] | None = None
        self._lends = False

    def __len__(self) -> int:
        n = steps(self.loader, self.world)
        if n is None:
            raise TypeError(f"{type(self.loader).__name__} has no length")
        return n

    @property
    def weight(self) -> float:
        """What makes the mean over processes of means over `own` rows the mean over all rows: 1 in a full step."""
        return self.own * self.world / self.total

    def __iter__(self) -> Iterator[Any]:
        return self.begin_at(0, _nothing)

    def lent(self, safe: bool = False) -> Iterator[Any]:
        """The batches, to be looked at one after another: as of `DataLoader.lent`, with its error."""
        self._lends = isinstance(self.loader, DataLoader) and self.loader.can_lend()
        return iter(self)

    def go_on_from(self, reached: int, step: int | None = None) -> tuple[int, int | None]:
        """Has the next epoch begin where `reached` of the loader's batches have been given, by however many processes.

        Args:
            reached: how many.
            step: the number of the step that comes then, where it is known.
        Returns:
            The number of that step, for `begin_at`, and of all steps of such an epoch (None: it is not known): where
            other processes began it, the first is counted by its share of the rows.
        """
        n, left = length(self.loader), None
        if n is not None:
            plain = type(getattr(self.loader, "batch_sampler", None)) is BatchSampler
            more = n - reached
            left = max(0, more // self.world if plain and self.loader.drop_last else -(-more // self.world))
            if step is None and reached % self.world and more > 0:
                step = round(left * reached / more)
        step = reached // self.world if step is None else step
        self._start = step, reached
        return step, None if left is None else step + left

    def begin_at(self, batch: int, then: Then) -> Iterator[Any]:
        """The batches from number `batch` on: see `position.batches_from`."""
        at, start = self._start or (batch, batch * self.world)
        start, self._start = start + (batch - at) * self.world, None
        self.drawn = 0
        with nullcontext() if self._draws_nothing() else numbers_of_main(generators_of(self.loader)):
            read = self._planned(start, batch)
        then()
        self._lends = False
        self.reached, self.rows_before, self.total = start, 0, 0
        for one, *counts in read:
            self.rows_before += self.total
            self.own, self.before, self.total, given = counts
            self.reached += given
            yield one

    def _draws_nothing(self) -> bool:
        """Whether reading takes no random numbers, so that rank 0's need not be known."""
        loader = self.loader
        return isinstance(loader, DataLoader) and loader.columns is not None and loader.as_they_lie()

    def _planned(self, first: int, done: int) -> Iterator[Step]:
        """This process's steps from batch number `first` of the loader on, `done` of them left out; in their order."""
        loader = self.loader
        if not isinstance(loader, torch.utils.data.DataLoader):
            return self._of_whole_batches(iter(loader), first)
        if splits_itself(loader):
            return _begun(self._of_own(iter(loader)), done)
        if isinstance(loader.dataset, IterableDataset) and loader.batch_size is not None:
            return self._of_rows_that_come(loader, first, done)
        if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
            return self._of_whole_batches(iter(loader), first)
        if not isinstance(loader, DataLoader) or (columns := loader.columns) is None:
            # Where torch's loader draws one for its workers.
            seed = int(torch.empty((), dtype=torch.int64).random_(generator=loader.generator))
            if loader.num_workers and not isinstance(loader, DataLoader) and first == done * self.world:
                # torch's workers go on with the random numbers that they had: what was read is read again, as alone.
                return _begun(self._by_twin(loader, self._steps(loader, 0), seed, 0), done)
            return self._by_twin(loader, self._steps(loader, first), seed, first)
        if (order := _order(loader, len(columns[0]))) is not None:
            in_order = self._in_one_order(loader, columns, order, first)
            return self._own_rows(loader, columns, in_order) if self._lends and not first else in_order
        return self._of_columns(loader, columns, self._steps(loader, first))

    # ---- rows by number ----

    def _in_one_order(
        self, loader: DataLoader, columns: tuple[Tensor, ...], order: Tensor, first: int
    ) -> Iterator[Step]:
        """Of tensors in an order of all rows: own rows are gathered as they are where there is one process."""
        bs, device, given = loader.batch_size or 1, columns[0].device, loader.as_given()
        group = bs * self.world
        self.drawn = -(-len(order) // bs) + 1
        order = order[first * bs :]
        full = len(order) // group
        own = order[: full * group].view(full, self.world, bs)[:, self.rank].reshape(-1)
        for batch in batches(columns, bs, len(own), on_device(own, device), pin=loader.pins()):
            yield given(batch), bs, self.rank * bs, group, self.world
        if full * group < len(order):
            yield from self._left_over(loader, columns, order[full * group :])

    def _left_over(self, loader: DataLoader, columns: tuple[Tensor, ...], left: Tensor) -> Iterator[Step]:
        """The last step, of fewer rows."""
        if not loader.drop_last:
            bs = loader.batch_size or 1
            rows, own, before = self._share_of(left, bs)
            batch = copied(columns, on_device(rows, columns[0].device), pin=loader.pins())
            yield loader.as_given()(batch), own, before, len(left), -(-len(left) // bs)

    def _own_rows(self, loader: DataLoader, columns: tuple[Tensor, ...], copies: Iterator[Step]) -> Iterator[Step]:
        """The data set's rows themselves, as they lie; the first step's are a copy, and all where that is changed."""
        bs, n, given = loader.batch_size or 1, len(columns[0]), loader.as_given()
        group, whole = bs * self.world, n - n % (bs * self.world)
        first = next(copies, None)
        if first is None:
            return
        before = changes_of(first[0])
        yield first
        if not whole or changes_of(first[0]) != before:
            yield from copies
            return
        with left_as_they_are(columns):
            for start in range(group + self.rank * bs, whole, group):
                yield given([column[start : start + bs] for column in columns]), bs, self.rank * bs, group, self.world
        if whole < n:
            yield from self._left_over(loader, columns, torch.arange(whole, n))

    def _of_columns(self, loader: DataLoader, columns: tuple[Tensor, ...], drawn: Planned) -> Iterator[Step]:
        device, given = columns[0].device, loader.as_given()
        for rows, *counts in drawn:
            indices = on_device(torch.as_tensor(rows), device)
            yield given(copied(columns, indices, pin=loader.pins())), *counts

    def _share_of(self, left: Any, bs: int) -> tuple[Any, int, int]:
        """This process's part of the rows that are left at the end, how many of them count, and how many are before."""
        sizes = share_sizes(len(left), self.world, bs)
        begin = sum(sizes[: self.rank])
        own = left[begin : begin + sizes[self.rank]]
        return (own, len(own), begin) if len(own) else (left[: sizes[0]], 0, begin)

    def _by_twin(self, loader: Any, drawn: Planned, seed: int, first: int) -> Iterator[Step]:
        """Row by row: a twin of the loader reads what is this process's own, with random numbers of its own."""
        if self._twin is None:  # kept, and its batch sampler too: worker processes may live on from epoch to epoch
            self._twin = copy.copy(loader)
            planned = _Planned(torch.Generator())
            vars(self._twin).update(_iterator=None, generator=planned.generator, batch_sampler=planned)
            if isinstance(loader, DataLoader):
                vars(self._twin).update(_numbered=planned)
        for i, (rows, *_) in enumerate(drawn):
            rows.seed = (seed + first + i * self.world + self.rank) % 2**63
        self._twin.batch_sampler.steps = [rows for rows, *_ in drawn]
        self._twin.generator.manual_seed((seed + self.rank) % 2**63)
        for batch, (_, *counts) in zip(self._twin, drawn, strict=True):
            yield batch, *counts

    def _steps(self, loader: Any, first: int) -> Planned:
        """The numbers of this process's rows, step by step."""
        drawn = [list(rows) for rows in loader.batch_sampler]
        self.drawn = len(drawn) + 1
        drawn = drawn[first:]
        groups = [drawn[i : i + self.world] for i in range(0, len(drawn), self.world)]
        plain = type(loader.batch_sampler) is BatchSampler and loader.batch_size is not None
        if groups and plain and loader.drop_last and len(groups[-1]) < self.world:
            groups.pop()
        planned = []
        for group in groups:
            total, before = sum(map(len, group)), sum(map(len, group[: self.rank]))
            if plain and total < self.world * loader.batch_size:
                rows, own, before = self._share_of([row for rows in group for row in rows], loader.batch_size)
            elif self.rank < len(group):
                rows, own = group[self.rank], len(group[self.rank])
            else:
                rows, own = group[0], 0
            planned.append((Rows(rows), own, before, total, len(group)))
        return planned

    # ---- rows and batches that come ----

    def _of_rows_that_come(self, loader: Any, first: int, done: int) -> Iterator[Step]:
        if self._twin is None:
            rows = OwnRows(
                loader.dataset, loader.batch_size, self.rank, self.world, loader.collate_fn, loader.drop_last
            )
            self._twin = copy.copy(loader)
            vars(self._twin).update(
                dataset=rows, batch_size=None, batch_sampler=None, collate_fn=_same, drop_last=False, _iterator=None
            )
        self._twin.dataset.skipped = 0
        if first == done * self.world:
            return _begun(iter(self._twin), done)
        if loader.num_workers > 1:
            raise ValueError(
                f"an IterableDataset that {loader.num_workers} worker processes read cannot be gone on with in the"
                " middle of an epoch by more or fewer processes than have begun it: each worker has rows of its own"
            )
        self._twin.dataset.skipped = first * loader.batch_size
        return _begun(iter(self._twin), 0)

    def _of_own(self, given: Iterator[Any]) -> Iterator[Step]:
        """Batches that are all this process's; one that has no more goes along with its last."""
        batch = None
        while True:
            came = next(given, None)
            sizes = distributed.gathered(0 if came is None else batch_size(came))
            if not sum(sizes):
                return
            batch = batch if came is None else came
            if batch is None:
                raise ValueError(
                    f"the data set splits itself, and gave the process of rank {self.rank} no row, others {max(sizes)}"
                )
            yield batch, sizes[self.rank], sum(sizes[: self.rank]), sum(sizes), self.world

    def _of_whole_batches(self, given: Iterator[Any], first: int) -> Iterator[Step]:
        done = sum(1 for _ in islice(given, first))
        if done < first:
            raise ValueError(f"the loader cannot go on with batch {first}: it has {done} batches")
        return _begun(self._one_of_each(given), 0) if not first else self._one_of_each(given)

    def _one_of_each(self, given: Iterator[Any]) -> Iterator[Step]:
        while group := list(islice(given, self.world)):
            sizes = [batch_size(batch) for batch in group]
            mine = self.rank < len(group)
            own = sizes[self.rank] if mine else 0
            yield group[self.rank if mine else 0], own, sum(sizes[: self.rank]), sum(sizes), len(group)


def share_of(dl: Any) -> Share | None:
    """The share that a loader is, or goes through several times; None: it is a whole one."""
    if dl.__class__ is DataLoader:  # nearly always
        return None
    within = dl if isinstance(dl, Share) else getattr(dl, "loader", None)
    return within if isinstance(within, Share) else None


def steps(dl: Any, world: int | None = None) -> int | None:
    """How many steps all processes make over a loader, as many as one with larger batches; None: it does not say."""
    n = length(dl)
    if n is None or share_of(dl) is not None or splits_itself(dl):
        return n
    world = distributed.world_size() if world is None else world
    plain = type(getattr(dl, "batch_sampler", None)) is BatchSampler
    return n // world if plain and dl.drop_last else -(-n // world)


def splits_itself(dl: Any) -> bool:
    """Whether a loader's data set gives each process rows of its own."""
    return bool(getattr(getattr(dl, "dataset", None), "splits_itself", False))


class _Planned:
    """A batch sampler of batches that are known; to minilearn's loader it is a numbered one."""

    def __init__(self, generator: torch.Generator) -> None:
        self.steps: list[Rows] = []
        self.generator = generator
        self.begin: tuple[int, Then] = (0, _nothing)
        self.drawn = self.ahead = 0
        self.batches = self

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Rows]:
        return iter(self.steps)


@contextmanager
def numbers_of_main(generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """With rank 0's random numbers for the length of a ``with`` block; after it each process has its own again.

    Args:
        generators: generators that stand as rank 0's do from now on, too.
    """
    if distributed.world_size() == 1:
        yield
        return
    main = distributed.is_main()
    own = host_states()
    held = [own.clone(), *(generator.get_state() for generator in generators)]
    distributed.same_as_main(held)
    if not main:
        set_host_states(held[0])
        for generator, state in zip(generators, held[1:], strict=True):
            generator.set_state(state)
    try:
        yield
    finally:
        if not main:
            set_host_states(own)


def _order(loader: DataLoader, n: int) -> Tensor | None:
    """The rows' numbers in their order, drawn as `DataLoader` does; None where its sampler is another."""
    sampler = loader.sampler
    if loader.as_they_lie():
        return torch.arange(n)
    if type(loader.batch_sampler) is not BatchSampler or loader.batch_size is None:
        return None
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == n:
        return torch.randperm(n, generator=sampler.generator)
    return None


def _begun(all_steps: Iterator[Any], first: int) -> Iterator[Step]:
    """Steps from number `first` on; what a generator does before its first row is done at once."""
    head = list(islice(all_steps, first or 1))
    if len(head) < first:
        raise ValueError(f"the loader cannot go on with batch {first}: it has {len(head)} batches")
    return all_steps if first else chain(head, all_steps)


def _same(value: Any) -> Any:
    return value


def _nothing() -> None:
    """Nothing is done."""

"""Loaders gone through in their data set's order, whatever order they are made for; and rows drawn from one."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, IterableDataset, RandomSampler, SequentialSampler, default_collate

from minilearn.data.loader import DataLoader, used_rows
from minilearn.data.position import generators_of
from minilearn.data.shares import numbers_of_main
from minilearn.errors import describe
from minilearn.tensors import batch_size, map_tensors

TORCHS = torch.utils.data.DataLoader


def check_loader(dl: Any) -> Any:
    """`dl` itself, where it is an iterable of batches.

    Raises:
        TypeError: it is not: a data set, a tensor, a dict, a number.
    """
    if isinstance(dl, (Dataset, Tensor, Mapping, str)) or not hasattr(dl, "__iter__"):
        made = " DataLoader(dataset, bs) makes one of a data set." if isinstance(dl, (Dataset, Tensor)) else ""
        raise TypeError(f"dl must be a loader, that is an iterable of batches, got {describe(dl)}.{made}")
    return dl


def in_order(dl: Any) -> tuple[Any, Tensor | None]:
    """A loader of the same rows as `dl`, in the data set's order, none dropped.

    A loader of torch's kind that shuffles, or drops a ragged last batch, gets a twin that does not; with a sampler of
    another kind, the rows that it draws now are taken in their order. Its random numbers, and torch's, stay where they
    are. Batches that a `batch_sampler` that was given puts together stay together: then their order is told. Other
    loaders, iterable data sets among them, are themselves: nobody knows their rows' numbers.

    Args:
        dl: any loader.
    Returns:
        The loader; and, where its rows come in another order than the data set's, the places of the data set's rows
        among those that come, int64 (rows,).
    """
    if not _has_rows(dl):
        return dl, None
    # torch gives a loader that is made with a batch_sampler no batch_size, and a sampler that is never used.
    own_batches = dl.batch_sampler is not None and (type(dl.batch_sampler) is not BatchSampler or dl.batch_size is None)
    plain = isinstance(dl.sampler, SequentialSampler)
    if plain and not dl.drop_last and not own_batches:
        return dl, None
    with torch.random.fork_rng(devices=[]):
        if own_batches:
            return _in_its_batches(dl)
        shuffled = type(dl.sampler) is RandomSampler and not dl.sampler.replacement
        if plain or (shuffled and dl.sampler.num_samples == len(dl.dataset)):
            return _with_sampler(dl, SequentialSampler(dl.dataset)), None
        rows = _drawn(dl.sampler)
        return (dl if rows is None else _with_sampler(dl, sorted(rows))), None


def some_rows(dl: Any, n: int) -> Any:
    """A loader of one batch of at most `n` rows, drawn at random from torch's numbers; `dl` itself where none can be.

    Args:
        dl: any loader.
        n: how many rows.
    """
    if not _has_rows(dl) or dl.batch_sampler is None:
        return dl
    rows = torch.randperm(len(dl.dataset))[:n].tolist()
    twin = _with_sampler(dl, rows)
    vars(twin).update(batch_sampler=[rows])
    return twin


def row_numbers(dl: Any) -> Sequence[int] | None:
    """The numbers in the data set of a loader's rows, in the order of `in_order`; None where they have none."""
    if not _has_rows(dl) or dl.batch_sampler is None:
        return None
    loader, order = in_order(dl)
    if order is not None:
        return sorted(int(row) for batch in loader.batch_sampler for row in batch)
    if isinstance(loader.sampler, SequentialSampler):
        return range(len(loader.dataset))
    return [int(row) for row in loader.sampler]


def rows_at(dl: Any, numbers: Sequence[int]) -> Any:
    """One batch of the rows of these numbers, in their order, counted as `in_order` gives them; nothing else is kept.

    Where a loader fetches its rows by number only these are fetched; else it is gone through up to the last of them.

    Args:
        dl: any loader.
        numbers: from 0 on; at least one.
    Raises:
        IndexError: there is no row of a number.
    """
    if (rows := row_numbers(dl)) is not None:
        _check_numbers(numbers, len(rows))
        twin = _with_sampler(dl, [])
        vars(twin).update(batch_sampler=[[rows[i] for i in numbers]])
        return next(iter(twin))
    kept: dict[int, Any] = {}
    done = 0
    for batch in dl:
        n = batch_size(batch)
        kept |= {i: map_tensors(partial(_row, i - done), batch) for i in set(numbers) if done <= i < done + n}
        done += n
        if len(kept) == len(set(numbers)):
            break
    _check_numbers(numbers, done)
    return default_collate([kept[i] for i in numbers])


def _row(i: int, part: Tensor) -> Tensor:
    """Row `i` of a batch's tensor; a copy, so that the batch is let go."""
    return part[i].clone()


def _check_numbers(numbers: Sequence[int], n: int) -> None:
    if unknown := [i for i in numbers if not 0 <= i < n]:
        raise IndexError(f"there is no row {unknown[0]}: the loader gives {n:,}, numbered from 0")


def row_count(dl: Any) -> int | None:
    """How many rows a loader gives; None where it does not say."""
    if not _has_rows(dl) or type(dl.batch_sampler) is not BatchSampler:
        return None
    try:
        n = len(dl.sampler)
    except (TypeError, NotImplementedError):
        return None
    return used_rows(dl, n)


def _has_rows(dl: Any) -> bool:
    """Whether it fetches a data set's rows by number, in the way of torch's loader."""
    known = isinstance(dl, TORCHS) and type(dl).__iter__ in (TORCHS.__iter__, DataLoader.__iter__)
    return known and not isinstance(dl.dataset, IterableDataset)


def _with_sampler(dl: Any, sampler: Any) -> Any:
    """A loader like `dl`, data and all, that goes by another sampler; torch has no way to ask for one."""
    twin = copy.copy(dl)
    batched = None if dl.batch_sampler is None else BatchSampler(sampler, dl.batch_size or 1, drop_last=False)
    vars(twin).update(sampler=sampler, batch_sampler=batched, drop_last=False, _iterator=None)
    return twin


def _in_its_batches(dl: Any) -> tuple[Any, Tensor | None]:
    batches = _drawn(dl.batch_sampler)
    if not batches or not all(_is_numbers(batch) for batch in batches):
        return dl, None
    twin = copy.copy(dl)
    vars(twin).update(batch_sampler=batches, _iterator=None)
    return twin, torch.tensor([row for batch in batches for row in batch]).argsort(stable=True)


def _drawn(sampler: Any) -> list[Any] | None:
    """What a sampler gives, without moving its generator on; None where it is not what rows are numbered by.

    In several processes it is drawn from rank 0's random numbers, where it is not just a list.
    """
    with nullcontext() if isinstance(sampler, (list, range)) else numbers_of_main(generators_of(sampler)):
        return _drawn_here(sampler)


def _drawn_here(sampler: Any) -> list[Any] | None:
    generator = getattr(sampler, "generator", None) or getattr(getattr(sampler, "sampler", None), "generator", None)
    if isinstance(generator, torch.Generator):
        state = generator.get_state()
        try:
            drawn = list(sampler)
        finally:
            generator.set_state(state)
    else:
        drawn = list(sampler)
    drawn = [list(each) if isinstance(each, (list, tuple, Tensor)) and not _is_number(each) else each for each in drawn]
    return drawn if drawn and (_is_numbers(drawn) or isinstance(drawn[0], list)) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, Tensor) and not value.ndim)


def _is_numbers(values: list[Any]) -> bool:
    return all(map(_is_number, values))

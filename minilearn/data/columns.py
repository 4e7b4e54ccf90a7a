"""Datasets as one tensor a column: how they are told from others, copied to a device, and cut into batches."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

CHUNK_BYTES = 1 << 17
"""How much of a column is gathered at once, in the computer's memory: at least one batch.

With batches of 128 from 12,396 rows on one thread of a Xeon at 2.5 GHz, an epoch of gathering and one product took,
batch by batch and by chunks of 128 kB: rows of 1 number 2.9 and 1.7 ms, of 10 numbers 3.3 and 2.2 ms, of 50 numbers 3.8
and 2.9 ms. Larger chunks won less than a tenth more, and lost as much where other processes wanted the cache. With rows
of 784 numbers chunks of 8 MB, or an epoch at once, took half as long again as a batch at a time: rows leave the cache
before they are used. `benchmarks/loading.py` repeats this.
"""
DEVICE_CHUNK_BYTES = 1 << 24
"""The same on a GPU, where a chunk saves launches. Not measured."""
CUT_AT_ONCE = 128
"""Into how many pieces a tensor is cut by one call: each costs a microsecond less."""
FREE_FRAC = 0.5
"""The share of a GPU's free memory that the data may take; the rest is for the model and what its layers keep."""


def fit_on(columns: Sequence[Tensor], device: torch.device) -> bool:
    """Whether columns fit on a device: on CUDA within `FREE_FRAC` of what is free now; elsewhere it is taken on trust.

    Where they are on the device already, they fit.
    """
    if device.type != "cuda":
        return True
    missing = sum(column.numel() * column.element_size() for column in columns if column.device != device)
    return missing <= FREE_FRAC * torch.cuda.mem_get_info(device)[0]


def batches(
    columns: tuple[Tensor, ...], bs: int, stop: int, order: Tensor | None, *, pin: bool = False
) -> Iterator[tuple[Tensor, ...]]:
    """The batches of an epoch: rows 0 to `stop`, as they lie or as `order` has them.

    Several batches are gathered at once where they are small. Each batch is a tensor of its own all the same: it may be
    changed in place, and autograd counts such changes for it alone. What it shares with its neighbours is the block of
    memory, at most `CHUNK_BYTES`, which is free when the last of them is.

    Args:
        columns: one tensor a column, (rows, …).
        bs: rows a batch; the last one has what is left.
        stop: how many rows are used.
        order: which row comes when, int64 (rows,), on the columns' device; None for the order in which they lie.
        pin: whether copies in the computer's memory are in its pinned part.
    """
    parts = [_parts(column, bs, stop, order, pin) for column in columns]
    for _ in range(0, stop, bs):
        yield tuple(map(next, parts))  # zip would hold on to them


def _parts(column: Tensor, bs: int, stop: int, order: Tensor | None, pin: bool) -> Iterator[Tensor]:
    """A column's part of each batch; the narrower it is, the more of them are gathered at once."""
    limit = CHUNK_BYTES if column.is_cpu else DEVICE_CHUNK_BYTES
    size = bs * max(1, limit // max(1, bs * (column.numel() // len(column)) * column.element_size()))
    copy = _copier(column, as_they_lie=order is None, pin=pin and column.is_cpu)
    rows = column if order is None else order
    for start in range(0, stop, size * CUT_AT_ONCE):
        for piece in torch.split(rows[start : min(start + size * CUT_AT_ONCE, stop)], size):
            if len(piece) <= bs:
                yield copy(piece)
            else:
                # unsafe_split's parts count their changes apart; those of split share one count, and a change to one
                # batch would make autograd refuse another. It is safe as the whole is not used again.
                yield from copy(piece).unsafe_split(bs)


def copied(columns: tuple[Tensor, ...], rows: Tensor, *, pin: bool = False) -> tuple[Tensor, ...]:
    """A copy of the rows of these numbers, int64 (rows,) on the columns' device, of each column."""
    return tuple([_copier(column, as_they_lie=False, pin=pin and column.is_cpu)(rows) for column in columns])


def _copier(column: Tensor, *, as_they_lie: bool, pin: bool) -> Callable[[Tensor], Tensor]:
    """What copies rows of a column, to pinned memory if so: it is given them as they lie, or their numbers."""
    if not pin:
        return torch.clone if as_they_lie else partial(torch.index_select, column, 0)
    # Written where it is to be: a copy that is pinned afterwards is copied twice. Not all tensors can be written so.
    plain = not column.requires_grad and column.layout is torch.strided

    def clone(part: Tensor) -> Tensor:
        if not plain:
            return part.clone().pin_memory()
        return torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part)

    def select(rows: Tensor) -> Tensor:
        if not plain:
            return column.index_select(0, rows).pin_memory()
        room = torch.empty((len(rows), *column.shape[1:]), dtype=column.dtype, pin_memory=True)
        return torch.index_select(column, 0, rows, out=room)

    return clone if as_they_lie else select


def on_device(indices: Tensor, device: torch.device) -> Tensor:
    """Row numbers on the data's device. Only from pinned memory does a copy to a GPU not wait."""
    return indices.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else indices.to(device)


def as_columns(dataset: Any) -> tuple[Tensor, ...] | None:
    """The dataset as one tensor a column, or None where it has to be asked row by row.

    Raises:
        ValueError: the tensors or arrays of a tuple differ in length.
    """
    if type(dataset) is TensorDataset:
        return dataset.tensors
    if isinstance(dataset, Tensor):
        return (dataset,) if dataset.ndim else None
    if isinstance(dataset, tuple) and dataset and all(isinstance(part, (Tensor, np.ndarray)) for part in dataset):
        lengths = [len(part) for part in dataset]
        if len(set(lengths)) > 1:
            raise ValueError(f"the columns of a dataset must have the same number of rows, got {lengths}")
        return tuple(torch.as_tensor(part) for part in dataset)
    if isinstance(dataset, list) and dataset:
        if all(isinstance(row, Tensor) for row in dataset):
            return _stacked([dataset])
        if all(type(row) is tuple and len(row) == len(dataset[0]) for row in dataset) and dataset[0]:
            return _stacked(list(zip(*dataset, strict=True)))
    return None


def _stacked(columns: Sequence[Sequence[Any]]) -> tuple[Tensor, ...] | None:
    stacked = []
    for column in columns:
        first = column[0]
        if isinstance(first, Tensor):
            if any(not isinstance(p, Tensor) or p.shape != first.shape or p.dtype != first.dtype for p in column):
                return None
            stacked.append(torch.stack(list(column)))
        elif type(first) in (int, float) and all(type(part) is type(first) for part in column):
            stacked.append(default_collate(list(column)))
        else:
            return None
    return tuple(stacked)

"""What the loaders show: the order of the labels, a last batch of one row, rows that are in two sets."""

import hashlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from minilearn import distributed
from minilearn.data.loader import DataLoader
from minilearn.data.own_rows import share_sizes
from minilearn.preflight.finding import Finding
from minilearn.tensors import leaves

FEW = 8
"""Batches of fewer rows than this may well be of one class."""
MOST_LABELS = 4096
MOST_BATCHES = 32
MOST_ROWS = 20_000
MOST_BYTES = 1 << 26
MOST_S = 2.0
"""How long the rows of a data set that is read row by row are looked at, in seconds."""


def order_of(labels: list[Tensor]) -> Iterator[Finding]:
    """Warns where the labels of the first batches are of one class, or sorted.

    Args:
        labels: each batch's, int64 (batch,), as `batch.labels_in` gives them.
    """
    if not labels:
        return
    every, rows = torch.cat(labels), sum(map(len, labels))
    counts = torch.unique(every, return_counts=True)[1]
    if len(counts) == 1 and rows >= 2 * FEW:
        yield Finding(
            "labels",
            f"the labels are all of one class: the first {rows:,} in training are all {int(every[0])}.",
            "Look at how they are read; where the data is sorted by class, give the training loader shuffle=True.",
            False,
        )
        return
    alone = [part for part in labels if len(part) >= FEW and bool((part == part[0]).all())]
    in_order = bool((every.diff() >= 0).all()) or bool((every.diff() <= 0).all())
    # Eight of each of two classes are in order by chance once in 13,000 times.
    enough = int((counts >= FEW).sum()) >= 2
    if enough and in_order:
        seen = f"the labels are sorted: of the first {rows:,} in training, none is less than the one before it."
    elif len(counts) > 1 and len(alone) == len(labels) > 1:
        seen = f"the labels of each batch are of one class: of the first {len(labels)} batches, {_classes(alone)}."
    else:
        return
    yield Finding(
        "labels", seen, "Give the training loader shuffle=True: DataLoader(dataset, bs, shuffle=True).", False
    )


def _classes(batches: list[Tensor]) -> str:
    return ", ".join(str(int(part[0])) for part in batches[:8]) + (", …" if len(batches) > 8 else "")


def sorted_column(loader: Any) -> Iterator[Finding]:
    """Warns of a loader that goes through a column of sorted class labels in its order; at once, from memory."""
    if not isinstance(loader, DataLoader) or loader.columns is None or len(loader.columns) < 2:
        return
    if type(loader.sampler) is not SequentialSampler or type(loader.batch_sampler) is not BatchSampler:
        return
    column, bs = loader.columns[-1], loader.batch_size or 1
    if column.ndim != 1 or column.is_floating_point() or column.is_complex() or len(column) < 4 * bs or bs < FEW:
        return
    yield from order_of([column[: MOST_LABELS * 16].cpu().long()] if int(column[0]) != int(column[-1]) else [])


def last_batch_of_one(loader: Any) -> bool:
    """Whether a training loader's last batch, or each, has a single row, in one process if there are several."""
    bs, sampler = getattr(loader, "batch_size", None), getattr(loader, "sampler", None)
    if not isinstance(loader, torch.utils.data.DataLoader) or bs is None or loader.drop_last:
        return False
    if type(sampler) not in (SequentialSampler, RandomSampler):
        return False
    world = distributed.world_size()
    return bs == 1 or 1 in share_sizes(len(loader.sampler) % (bs * world), world, bs)  # type: ignore[arg-type]


def shared_rows(train: Any, valid: Any) -> Iterator[Finding]:
    """Warns where inputs of the validation set are in the training set too, more often than chance makes rows alike.

    Up to 20,000 rows of each are compared, evenly spread; a data set that is read row by row for two seconds.
    """
    same = getattr(train, "dataset", None)
    fix = "Split the data once, at random or by who it is from: torch.utils.data.random_split."
    if train is valid or (same is not None and same is getattr(valid, "dataset", None)):
        yield Finding("shared rows", "the validation set is the training set: all of its rows are in both.", fix, False)
        return
    in_train, in_valid = list(digests(train)), list(digests(valid))
    if not in_train or not in_valid:
        return
    known = set(in_train)
    shared = sum(one in known for one in in_valid)
    # Where rows are alike within a set too, as those of few small whole numbers are, they say nothing.
    alike = max(1 - len(set(rows)) / len(rows) for rows in (in_train, in_valid))
    if shared >= max(2, 0.01 * len(in_valid)) and shared / len(in_valid) > 3 * alike:
        yield Finding(
            "shared rows",
            f"the same rows are in training and in validation: {shared:,} of the {len(in_valid):,} validation rows that"
            f" were looked at are among {len(in_train):,} training rows.",
            fix,
            False,
        )


def digests(loader: Any) -> Iterator[bytes]:
    """A digest of each of a loader's inputs, or of some of them evenly spread; none where they cannot be had."""
    stop = time.monotonic() + MOST_S
    for row in _inputs(loader):
        parts = [_bytes(part) for part in leaves(row)]
        if not parts or any(part is None for part in parts) or time.monotonic() > stop:
            return
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            digest.update(part or b"")
        yield digest.digest()


def _inputs(loader: Any) -> Iterator[Any]:
    columns = loader.columns if isinstance(loader, DataLoader) else None
    if columns is not None:
        inputs = columns[: max(1, len(columns) - 1)]
        wide = sum(column[0].numel() * column.element_size() for column in inputs)
        rows = _spread(len(columns[0]), min(MOST_ROWS, MOST_BYTES // max(wide, 1) + 1))
        chosen = [column[torch.as_tensor(rows, device=column.device)].cpu() for column in inputs]
        yield from zip(*chosen, strict=True)
        return
    dataset: Any = getattr(loader, "dataset", None)
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        for i in _spread(len(dataset), MOST_ROWS):
            yield _input(dataset[i])
    elif isinstance(loader, (list, tuple)):
        left = MOST_ROWS
        for batch in loader:
            parts = [part for part in leaves(_input(batch)) if isinstance(part, Tensor) and part.ndim]
            if not parts or left <= 0:
                return
            left -= len(parts[0])
            yield from zip(*parts, strict=False)


def _input(row: Any) -> Any:
    if isinstance(row, (tuple, list)):
        return tuple(row[: max(1, len(row) - 1)])
    return row


def _spread(n: int, most: int) -> list[int]:
    return list(range(0, n, max(1, -(-n // max(most, 1)))))


def _bytes(part: Any) -> bytes | None:
    """A value's bytes, with its type and shape; None where it is none that is known."""
    if isinstance(part, Tensor):
        part = part.detach().cpu()
        part = part.float().numpy() if part.dtype == torch.bfloat16 else part.numpy()
    if isinstance(part, (str, bytes, int, float, bool)):
        return repr(part).encode()
    if not isinstance(part, np.ndarray) and hasattr(part, "__array_interface__"):
        part = np.asarray(part)
    if not isinstance(part, (np.ndarray, np.generic)) or part.dtype == object:
        return None
    return f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes()


def first_batches(loader: Iterable[Any]) -> Iterator[Any]:
    """The first few batches of an epoch."""
    for _, batch in zip(range(MOST_BATCHES), loader, strict=False):
        yield batch

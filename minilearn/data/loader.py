"""Loaders: batches of a dataset, and the pair of them that a Learner trains and validates on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from minilearn.errors import whole


class DataLoader(torch.utils.data.DataLoader[Any]):
    """torch's DataLoader, with all its options, that fetches a whole batch at once where the dataset is tensors.

    A `TensorDataset`, a tensor, a tuple of tensors (inputs, targets), or a list of tuples of equal-shaped tensors (the
    lessons' ``list(zip(train_x, train_y))``) is kept as one tensor a column; a batch then costs one indexing
    operation a column, not one for each row. Other datasets, worker processes and `collate_fn` go torch's way.
    A batch is always a copy: changing it in place leaves the dataset alone.

    Args:
        dataset: the rows.
        bs: rows a batch; torch's name `batch_size` is taken too.
        shuffle: a new order each epoch, drawn from torch's random numbers (`torch.manual_seed`), or `generator`'s.
        options: torch's: `drop_last`, `num_workers`, `sampler`, `batch_sampler`, `collate_fn`, `generator`, …
            `pin_memory` is on where there is a CUDA GPU.
    Raises:
        ValueError: the batch size is no whole number above 0, or is given twice; columns differ in length, or the
            dataset is empty.
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
        row_by_row = options.get("collate_fn") is not None or options.get("num_workers", 0) > 0 or whole_batches
        self.columns = None if row_by_row else as_columns(dataset)
        _check_dataset(dataset)
        super().__init__(dataset, **options)

    @property
    def bs(self) -> int | None:
        """Rows a batch."""
        return self.batch_size

    def one_batch(self) -> Any:
        """The first batch; a look at the data, not a part of training."""
        return next(iter(self))

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self.columns is None:
            return super().__iter__()
        return self._gather(self.columns)

    def _gather(self, columns: tuple[Tensor, ...]) -> Iterator[Any]:
        dataset: Any = self.dataset
        bare = isinstance(dataset, Tensor) or (isinstance(dataset, list) and isinstance(dataset[0], Tensor))
        pin = self.pin_memory and torch.accelerator.is_available()
        for rows in self._rows(len(columns[0]), columns[0].device):
            if isinstance(rows, slice):
                batch = [column[rows].clone() for column in columns]
            else:
                batch = [column.index_select(0, rows) for column in columns]
            if pin:
                batch = [column.pin_memory() if column.is_cpu else column for column in batch]
            yield batch[0] if bare else tuple(batch)

    def _rows(self, n: int, device: torch.device) -> Iterator[slice | Tensor]:
        """Which rows make up each batch: a slice where they lie in order, else their indices on the data's device."""
        sampler = self.sampler
        one_order = type(self.batch_sampler) is BatchSampler and self.batch_size is not None
        shuffled = type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == n
        in_order = type(sampler) is SequentialSampler and len(sampler) == n
        if not one_order or not (shuffled or in_order):
            for indices in self.batch_sampler or ():
                rows = torch.as_tensor(indices)
                # Only from pinned memory does a copy to the GPU not wait.
                yield rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows.to(device)
            return
        bs = self.batch_size or n
        # One permutation an epoch: index by index, as torch's sampler gives them, costs more than the batch itself.
        order = (
            torch.randperm(n, generator=sampler.generator).to(device) if isinstance(sampler, RandomSampler) else None
        )
        for start in range(0, n - bs + 1 if self.drop_last else n, bs):
            yield slice(start, start + bs) if order is None else order[start : start + bs]


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


ANEW = "Give an object whose __iter__ starts anew, a list of batches, or a DataLoader."


def length(dl: Any) -> int | None:
    """The number of batches in a loader; None where it does not say."""
    try:
        return len(dl)
    except (TypeError, NotImplementedError):
        return None


def no_batch(part: str, n: int | None) -> str:
    """The message for a loader of `n` batches that gave none."""
    if n is None:
        return f"the {part} loader gave no batch. A generator can be run through only once. {ANEW}"
    return (
        f"the {part} loader is empty: it has {n} batches."
        " Its dataset has no row, or fewer than one batch with drop_last=True."
    )


class DataLoaders:
    """The loaders of a Learner: the first trains, the second validates, further ones may be asked for by number.

    Args:
        loaders: any iterables of batches: minilearn's or torch's DataLoader, lists of batches, objects with `__iter__`.
        path: the folder of the data and of what a Learner on them saves.
        device: where batches and model go; by default the GPU where there is one.
        n_inp: how many parts of a batch are inputs; by default all but the last.
    Raises:
        TypeError: one of them is a dataset, or cannot be iterated over.
    """

    def __init__(
        self,
        *loaders: Any,
        path: str | Path = ".",
        device: torch.device | str | None = None,
        n_inp: int | None = None,
    ) -> None:
        if not loaders:
            raise TypeError("DataLoaders needs a training loader, and takes a validation loader after it")
        for i, loader in enumerate(loaders):
            if isinstance(loader, (list, tuple)) and loader and isinstance(loader[0], torch.utils.data.DataLoader):
                raise TypeError("give the loaders one by one, DataLoaders(train, valid), not in a list")
            if isinstance(loader, (Dataset, Tensor, Mapping)) or not hasattr(loader, "__iter__"):
                raise TypeError(
                    f"loader {i} is a {type(loader).__name__}, not an iterable of batches."
                    " Use DataLoaders.from_dsets(train, valid, bs=64) for datasets,"
                    " DataLoaders.from_tensors(train_x, train_y, valid_x, valid_y) for tensors."
                )
        self.loaders = list(loaders)
        self.path = Path(path)
        self.device = torch.device(device) if device is not None else None
        self.n_inp = None if n_inp is None else whole("n_inp", n_inp, 1)

    @classmethod
    def of(cls, dls: Any) -> "DataLoaders":
        """`dls` itself, or a pair of loaders as `DataLoaders`.

        Raises:
            TypeError: it is neither.
        """
        if isinstance(dls, DataLoaders):
            return dls
        if isinstance(dls, (tuple, list)) and dls and not any(isinstance(dl, (tuple, Tensor, Mapping)) for dl in dls):
            return cls(*dls)
        raise TypeError(
            f"dls must be DataLoaders(train, valid) or a pair (train, valid) of loaders, got an object of"
            f" {type(dls).__name__}. For a single loader: DataLoaders(loader)."
        )

    def __len__(self) -> int:
        return len(self.loaders)

    def __getitem__(self, i: int) -> Any:
        if not -len(self.loaders) <= i < len(self.loaders):
            raise IndexError(f"there is no loader {i}: these DataLoaders hold {len(self.loaders)}")
        return self.loaders[i]

    @property
    def train(self) -> Any:
        """The training loader."""
        return self.loaders[0]

    @property
    def valid(self) -> Any:
        """The validation loader.

        Raises:
            IndexError: there is none.
        """
        if len(self.loaders) < 2:
            raise IndexError("there is no validation loader: give one, DataLoaders(train, valid)")
        return self.loaders[1]

    @property
    def train_ds(self) -> Any:
        """The training loader's dataset."""
        return self.train.dataset

    @property
    def valid_ds(self) -> Any:
        """The validation loader's dataset."""
        return self.valid.dataset

    def check(self, epochs: int) -> None:
        """Names before a fit of so many epochs what would end it after the first of them.

        Raises:
            ValueError: a loader is empty, or can be run through only once.
        """
        for part, dl in zip(("training", "validation"), self.loaders, strict=False):
            if hasattr(dl, "__next__") and epochs > 1:
                raise ValueError(f"the {part} loader can be run through only once, not {epochs} times. {ANEW}")
            if epochs > 0 and isinstance(dl, Sized) and length(dl) == 0:
                raise ValueError(no_batch(part, 0))

    def one_batch(self) -> Any:
        """The first training batch; a look at the data, not a part of training."""
        return next(iter(self.train))

    def to(self, device: torch.device | str) -> Self:
        """Sets the device on which a Learner works with these loaders."""
        self.device = torch.device(device)
        return self

    @classmethod
    def from_dsets(
        cls,
        *dsets: Any,
        bs: int = 64,
        shuffle: bool = True,
        path: str | Path = ".",
        device: torch.device | str | None = None,
        n_inp: int | None = None,
        **options: Any,
    ) -> Self:
        """A loader for each dataset; the first, which trains, is shuffled.

        Args:
            dsets: the training set, the validation set, further ones: what `DataLoader` takes.
            bs: rows a batch, in all of them.
            shuffle: whether training draws a new order each epoch.
            path: as in `DataLoaders`.
            device: as in `DataLoaders`.
            n_inp: as in `DataLoaders`.
            options: torch's DataLoader options, for all; `drop_last` drops the training set's ragged last batch.
        """
        drop_last, bs = options.pop("drop_last", False), options.pop("batch_size", bs)
        shuffle = shuffle and "sampler" not in options and not isinstance(dsets[0], IterableDataset)
        loaders = [
            DataLoader(dset, bs, shuffle=shuffle and i == 0, drop_last=drop_last and i == 0, **options)
            for i, dset in enumerate(dsets)
        ]
        return cls(*loaders, path=path, device=device, n_inp=n_inp)

    @classmethod
    def from_tensors(
        cls,
        train_x: Tensor,
        train_y: Tensor,
        valid_x: Tensor | None = None,
        valid_y: Tensor | None = None,
        bs: int = 64,
        shuffle: bool = True,
        **options: Any,
    ) -> Self:
        """Loaders over tensors in memory.

        Args:
            train_x: training inputs, (rows, …).
            train_y: training targets, (rows, …).
            valid_x: validation inputs; None for no validation.
            valid_y: validation targets.
            bs: rows a batch.
            shuffle: whether training draws a new order each epoch.
            options: as in `from_dsets`.
        Raises:
            ValueError: inputs and targets differ in their number of rows, or only one of `valid_x`, `valid_y` is given.
        """
        named = {"train_x": train_x, "train_y": train_y, "valid_x": valid_x, "valid_y": valid_y}
        for name, value in named.items():
            if not isinstance(value, (Tensor, np.ndarray)) and not (value is None and name.startswith("valid")):
                raise TypeError(f"{name} must be a tensor or an array, got an object of {type(value).__name__}")
        if (valid_x is None) != (valid_y is None):
            raise ValueError("give both valid_x and valid_y, or neither")
        dsets = [(train_x, train_y)]
        if valid_x is not None and valid_y is not None:
            dsets.append((valid_x, valid_y))
        return cls.from_dsets(*dsets, bs=bs, shuffle=shuffle, **options)

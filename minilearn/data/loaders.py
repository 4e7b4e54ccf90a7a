"""The loaders of a Learner: one to train, one to validate, and what is done to their batches on the device."""

from collections.abc import Callable, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from minilearn.batches import split_batch
from minilearn.data.loader import ANEW, DataLoader, length, no_batch
from minilearn.errors import describe, whole
from minilearn.plots import show_batch
from minilearn.tensors import default_device, existing_device, map_tensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BatchTransform = Callable[[Tensor], Tensor]
"""Makes the input that the model gets, (batch, …), of the one that the loader gives; see `transforms`."""


class DataLoaders:
    """The loaders of a Learner: the first trains, the second validates, further ones may be asked for by number.

    Args:
        loaders: any iterables of batches: minilearn's or torch's DataLoader, lists of batches, objects with `__iter__`.
            In place of the second a dict of several by name, ``DataLoaders(train, {"valid": a, "noisy": b})``: each is
            validated after each epoch, the first with the usual columns in the table, the others with their name before
            it, `noisy_loss`.
        path: the folder of the data and of what a Learner on them saves.
        device: where batches and model go; by default the GPU where there is one.
        n_inp: how many parts of a batch are inputs; by default all but the last.
        batch_tfms: functions of a whole batch's input, (batch, …), one or several, carried out in their order when the
            batch is on the device, in training and in validation: ``[IntToFloat(), RandomShift(2)]``. One with an
            attribute ``train_only = True`` is left out in validation. The Learner's `DevicePlacement` carries them out:
            a loader, and `one_batch`, give batches as they are before.
    Raises:
        TypeError: one of them is a dataset, or cannot be iterated over; a transform is no function.
    """

    def __init__(
        self,
        *loaders: Any,
        path: str | Path = ".",
        device: torch.device | str | None = None,
        n_inp: int | None = None,
        batch_tfms: BatchTransform | Sequence[BatchTransform] | None = None,
    ) -> None:
        if not loaders:
            raise TypeError("DataLoaders needs a training loader, and takes a validation loader after it")
        self._valid_names: tuple[str, ...] = ("valid",)
        if len(loaders) > 1 and _are_named(loaders[1]):
            self._valid_names = tuple(loaders[1])
            loaders = (loaders[0], *loaders[1].values(), *loaders[2:])
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
        self.batch_tfms = _check_transforms(batch_tfms)

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
            n = len(self.loaders)
            held = "the training loader, 0, alone: give a second one to validate on" if n == 1 else f"{n}, from 0 on"
            raise IndexError(f"there is no loader {i}: these DataLoaders hold {held}")
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
    def valid_sets(self) -> dict[str, Any]:
        """The loaders that are validated after each epoch, by name: just `valid` where no names were given."""
        return dict(zip(self._valid_names, self.loaders[1:], strict=False))

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
        parts = ["training loader", *_loader_names(self.valid_sets)]
        for part, dl in zip(parts, self.loaders, strict=False):
            if hasattr(dl, "__next__") and epochs > 1:
                raise ValueError(f"the {part} can be run through only once, not {epochs} times. {ANEW}")
            if epochs > 0 and isinstance(dl, Sized) and length(dl) == 0:
                raise ValueError(no_batch(part, 0))

    def one_batch(self) -> Any:
        """The first training batch, before the transforms; a look at the data, not a part of training."""
        return next(iter(self.train))

    def transform(self, x: Tensor, *, training: bool = False) -> Tensor:
        """What `batch_tfms` make of a batch's input, (batch, …): ``dls.transform(dls.one_batch()[0])``.

        Args:
            x: the input, on any device.
            training: whether those for training alone take part.
        Raises:
            TypeError: a transform gave no tensor.
        """
        for tfm in self.batch_tfms:
            if training or not getattr(tfm, "train_only", False):
                made: Any = tfm(x)
                if not isinstance(made, Tensor):
                    name = getattr(tfm, "__name__", type(tfm).__name__)
                    raise TypeError(f"batch_tfms: {name} must return a tensor, got {describe(made)}")
                x = made
        return x

    def show_batch(self, b: Any = None, max_n: int = 9, *, unique: bool = False, **kwargs: Any) -> "Axes":
        """The first rows of a training batch, as the model gets them: after the transforms; see `plots.show_batch`.

        Args:
            b: the batch, inputs and then targets; by default `one_batch`.
            max_n: how many rows, at least 1.
            unique: one row `max_n` times over, to see what transforms that are random make of it.
            kwargs: for `plots.show_batch`: `columns`, `ax`, and `vocab`, by default these loaders' own where one was
                set, ``dls.vocab = ["three", "seven"]``.
        """
        max_n = whole("max_n", max_n, 1)
        parts = split_batch(self.one_batch() if b is None else b, self.n_inp)
        xb, yb = (map_tensors(partial(_rows, max_n, unique), part) for part in parts)
        if self.batch_tfms and isinstance(xb, tuple) and len(xb) == 1 and isinstance(xb[0], Tensor):
            xb = self.transform(xb[0], training=True)
        return show_batch(xb, yb or None, max_n=max_n, **{"vocab": getattr(self, "vocab", None), **kwargs})

    def to(self, device: torch.device | str) -> Self:
        """Sets the device on which a Learner works with these loaders, and moves data of tensors there where it fits.

        On a CUDA GPU a loader's columns may take up to half of the memory that is free then; batches are gathered
        there, and an epoch copies nothing. Else they stay in the computer's memory, from which each batch is copied.

        Raises:
            ValueError: there is no such device.
        """
        existing_device(device)
        self.device = torch.device(device)
        for loader in self.loaders:
            if isinstance(loader, DataLoader):
                loader.to(self.device)
        return self

    def cuda(self) -> Self:
        """`to` the GPU where there is one: the current CUDA GPU, else Apple's; else to the CPU."""
        return self.to(default_device())

    def cpu(self) -> Self:
        """`to` the CPU."""
        return self.to("cpu")

    @classmethod
    def from_dsets(
        cls,
        *dsets: Any,
        bs: int = 64,
        shuffle: bool = True,
        path: str | Path = ".",
        device: torch.device | str | None = None,
        n_inp: int | None = None,
        batch_tfms: BatchTransform | Sequence[BatchTransform] | None = None,
        **options: Any,
    ) -> Self:
        """A loader for each dataset; the first, which trains, is shuffled.

        Args:
            dsets: the training set, the validation set or a dict of several, further ones: what `DataLoader` takes.
            bs: rows a batch, in all of them.
            shuffle: whether training draws a new order each epoch.
            path: as in `DataLoaders`.
            device: as in `DataLoaders`.
            n_inp: as in `DataLoaders`.
            batch_tfms: as in `DataLoaders`.
            options: torch's DataLoader options, for all; `drop_last` drops the training set's ragged last batch.
        """
        drop_last, bs = options.pop("drop_last", False), options.pop("batch_size", bs)
        shuffle = shuffle and "sampler" not in options and not isinstance(dsets[0], IterableDataset)
        train = DataLoader(dsets[0], bs, shuffle=shuffle, drop_last=drop_last, **options)
        loaders = [
            {name: DataLoader(part, bs, **options) for name, part in dset.items()}
            if i == 0 and _are_named(dset)
            else DataLoader(dset, bs, **options)
            for i, dset in enumerate(dsets[1:])
        ]
        return cls(train, *loaders, path=path, device=device, n_inp=n_inp, batch_tfms=batch_tfms)

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
            train_x: training inputs, (rows, …), in any dtype: bytes stay bytes until `batch_tfms` make numbers of them.
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


def _rows(n: int, unique: bool, part: Tensor) -> Tensor:
    """The first rows of a batch's tensor, or the first one that many times."""
    if not part.ndim:
        return part
    return part[:1].expand(n, *part.shape[1:]).clone() if unique else part[:n]


def _loader_names(sets: Mapping[str, Any]) -> list[str]:
    return [f"validation loader '{name}'" if len(sets) > 1 else "validation loader" for name in sets]


def _are_named(sets: Any) -> bool:
    """Whether these are several validation sets by name, and not a dict that somebody took for one.

    Raises:
        ValueError: there is none among them, or one has a name that would make two columns alike.
    """
    if not isinstance(sets, dict) or any(isinstance(part, (Tensor, np.ndarray)) for part in sets.values()):
        return False
    if not sets or not all(isinstance(name, str) and name for name in sets):
        raise ValueError(f"validation sets in a dict need a name each, got {list(sets)}")
    if "train" in sets or "valid" in list(sets)[1:]:
        raise ValueError("no validation set can be called 'train', and only the first one 'valid'")
    return True


def _check_transforms(tfms: Any) -> list[BatchTransform]:
    """One or several transforms as a list.

    Raises:
        TypeError: one of them is no function.
    """
    listed = [] if tfms is None else list(tfms) if isinstance(tfms, (list, tuple)) else [tfms]
    for tfm in listed:
        if isinstance(tfm, type) or not callable(tfm):
            raise TypeError(f"batch_tfms must be functions of a batch's input, got {describe(tfm)}")
    return listed

"""Fits that are interrupted and gone on with, in one process or several.

python resumes.py same KIND ...: each way to train, undisturbed and interrupted; prints a digest of what each ends with.
python resumes.py rows FOLDER STEPS: goes on for so many steps (0: to the end), and notes which rows were trained on.
"""

import copy
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digests import digest
from torch import Tensor, nn
from torch.nn import functional as F

from minilearn import distributed
from minilearn.all import (
    EMA,
    SGD,
    Adam,
    Callback,
    Checkpoint,
    DataLoader,
    DataLoaders,
    GradientAccumulation,
    Learner,
    accuracy,
    partial,
    set_seed,
)
from minilearn.random_states import random_states

ROWS, BATCH, EPOCHS = 101, 3, 3


class Stopped(Exception):
    """The fit is interrupted here."""


class Stop(Callback):
    """Ends the fit with an error after a training batch, or in validation."""

    order = float("inf")

    def __init__(self, epoch: int, batch: int, valid: bool = False) -> None:
        self.at, self.valid = (epoch, batch), valid

    def after_batch(self) -> None:
        if self.training != self.valid and (self.epoch, self.iter) == self.at:
            raise Stopped


class StopAfter(Callback):
    """Ends the fit after so many steps of this process."""

    order = float("inf")

    def __init__(self, steps: int) -> None:
        self.left = steps

    def before_batch(self) -> None:
        if self.left == 0:
            raise Stopped
        self.left -= 1


class Seen(Callback):
    """Notes the rows that this process has trained on: the first number of each is its own."""

    order = 1

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_step(self) -> None:
        own = getattr(self.dl, "own", len(self.x))
        with self.file.open("a") as file:
            for row in self.x[:own, 0].tolist():
                file.write(f"{self.epoch} {round(row)}\n")


class Noisy(torch.utils.data.Dataset[Any]):
    """Rows with noise of three kinds of random numbers."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        noise = 0.01 * (torch.rand(()) + random.random() + float(np.random.rand()))
        return self.x[i] + noise, self.y[i]


class Stream(torch.utils.data.IterableDataset[Any]):
    """The same rows, as they come."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(self.x, self.y, strict=True))


def loader(kind: str, x: Tensor, y: Tensor) -> Any:
    if kind == "rows":
        return DataLoader(Noisy(x, y), BATCH, shuffle=True)
    if kind == "workers":
        return DataLoader(Noisy(x, y), BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    if kind == "torch":
        return torch.utils.data.DataLoader(Noisy(x, y), BATCH, shuffle=True)
    if kind == "stream":
        return DataLoader(Stream(x, y), BATCH)
    if kind == "batches":
        return list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    if kind == "weighted":  # an order that is drawn bit by bit
        sampler = torch.utils.data.RandomSampler(range(len(x)), replacement=True)
        return DataLoader((x, y), BATCH, sampler=sampler)
    if kind == "adding up":
        return DataLoader((x[:96], y[:96]), BATCH, shuffle=True)
    return DataLoader((x, y), BATCH, shuffle=True)


def learner(kind: str, path: Path, cbs: list[Callback]) -> Learner:
    set_seed(5)
    x = torch.randn(ROWS, 1, 4, 4)
    y = x.flatten(1)[:, :3].argmax(1)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(48, 3)
    )
    dls = DataLoaders(loader(kind, x, y), DataLoader((x[:31], y[:31]), 7))
    opt_func: Any = partial(SGD, mom=0.9) if kind == "rows" else Adam
    more: list[Callback] = [GradientAccumulation(3 * BATCH)] if kind == "adding up" else []
    if kind == "rows":
        more = [EMA(0.9)]
    learn = Learner(dls, model, F.cross_entropy, opt_func, 0.01, cbs=[*more, *cbs], metrics=accuracy, path=path)
    learn.logger = lambda text: None
    return learn


def same(kinds: list[str]) -> dict[str, Any]:
    """What each way to train ends with: undisturbed, and interrupted at some places."""
    found: dict[str, Any] = {}
    ways: dict[str, list[Stop]] = {
        "columns": [Stop(0, 0), Stop(1, 3), Stop(1, 1, valid=True), Stop(2, 6)],
        "rows": [Stop(1, 2)],
        "workers": [Stop(1, 3)],
        "torch": [Stop(1, 3)],
        "stream": [Stop(1, 2)],
        "batches": [Stop(0, 2)],
        "weighted": [Stop(1, 4)],
        "adding up": [Stop(0, 4)],
    }
    for kind in kinds or ways:
        for several in ([], ways[kind]):
            folder = distributed.from_main(tempfile.mkdtemp()) if distributed.world_size() > 1 else tempfile.mkdtemp()
            for stop in [*several, None]:
                learn = learner(kind, Path(folder), [copy.copy(stop)] if stop else [])
                kept = Checkpoint("run", every_batches=1 if kind == "adding up" else 2)
                try:
                    (learn.fit_one_cycle if kind == "columns" else learn.fit)(EPOCHS, checkpoint=kept)
                except Stopped:
                    continue
                assert stop is None, "it should have been stopped"
            recorder = learn.recorder
            found[f"{kind}, {'interrupted' if several else 'undisturbed'}"] = {
                "weights": digest(dict(learn.model.state_dict())),
                "optimizer": digest(learn.opt.state_dict()),
                "random": digest(random_states()),
                "values": repr(recorder.values),
                "losses": repr(recorder.losses),
                "lrs": repr(recorder.lrs),
                "counts": repr((recorder.iters, recorder.epochs, learn.train_iter, learn.pct_train)),
            }
    return found


def rows(folder: Path, steps: int) -> None:
    """Goes on for so many steps in each way to train."""
    for kind in ("columns", "rows", "workers", "torch", "stream", "batches"):
        x = torch.arange(float(ROWS)).unsqueeze(1)
        made = loader(kind, x, x)
        if kind in ("rows", "workers", "torch"):
            made.dataset.x = x  # their noise is less than a half
        own = folder / kind
        own.mkdir(exist_ok=True)
        learn = Learner([made], nn.Linear(1, 1), F.mse_loss, SGD, 1e-9, path=own)
        learn.logger = lambda text: None
        seen = Seen(own / f"seen.{distributed.rank()}")
        with suppress(Stopped):
            learn.fit(2, cbs=[seen, *([StopAfter(steps)] if steps else [])], checkpoint=Checkpoint("run", 1))


if __name__ == "__main__":
    if sys.argv[1] == "same":
        print(json.dumps(same(sys.argv[2:])))
    else:
        rows(Path(sys.argv[2]), int(sys.argv[3]))

"""Processes of one job that do not do the same: python parting.py FOLDER CASE …."""

import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilearn import distributed
from minilearn.all import (
    SGD,
    Callback,
    CancelFitException,
    Checkpoint,
    DataLoader,
    DataLoaders,
    Distributed,
    Divergence,
    Learner,
    TerminateOnNaN,
    set_seed,
)
from minilearn.votes import votes

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
RANK = int(os.environ.get("RANK", "0"))
LAST = int(os.environ.get("WORLD_SIZE", "1")) - 1


class At(Callback):
    """Does something in one process, at a batch of epoch 1."""

    order = -5

    def __init__(self, rank: int, batch: int, act: Any, valid: bool = False) -> None:
        self.rank, self.batch, self.act, self.valid = rank, batch, act, valid

    def before_batch(self) -> None:
        if (
            distributed.rank() == self.rank
            and self.training != self.valid
            and (self.epoch, self.iter) == (1, self.batch)
        ):
            self.act(self)


class EndTogether(Callback):
    """Ends the fit in all processes, for a reason that one has."""

    def after_batch(self) -> None:
        if votes.ask("end", self.training and RANK == LAST and self.epoch == 1 and self.iter >= 3):
            raise CancelFitException


class Rows(torch.utils.data.Dataset[Any]):
    """Rows of which one cannot be read, or is read for a long time."""

    def __init__(self, n: int, act: Any = None) -> None:
        self.n, self.act = n, act

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if i == 77 and self.act:
            self.act()
        return torch.full((3,), i / 100), torch.tensor(i % 2)


def fail() -> None:
    raise OSError("row 77 is not there")


def end_alone(cb: Callback) -> None:
    raise CancelFitException


def spoil(cb: Callback) -> None:
    cb.learn.xb = (torch.full_like(cb.x, float("nan")),)


class Slow(Callback):
    """Takes a while for each batch, so that the processes meet often."""

    def after_batch(self) -> None:
        time.sleep(0.01)


def main(case: str) -> None:
    set_seed(0)
    acts: dict[str, Any] = {"error": fail, "hang": lambda: time.sleep(100), "die": lambda: os.kill(os.getpid(), 9)}
    train = DataLoader(Rows(200, acts.get(case)), 2)
    dls = DataLoaders(train, DataLoader(Rows(40), 2))
    cbs: list[Callback] = [Distributed(timeout_s=5 if case in ("hang", "alone") else 60), Slow()]
    checkpoint = None
    if case in ("nan", "restore", "terminate"):
        cbs += [At(LAST, 4, spoil)]
    if case == "restore":
        cbs += [Divergence("restore")]
    if case == "terminate":
        cbs += [TerminateOnNaN()]
    if case == "alone":
        cbs += [At(LAST, 4, end_alone)]
    if case == "together":
        cbs += [EndTogether()]
    if case.startswith("signal"):
        number = signal.SIGINT if "int" in case else signal.SIGTERM
        cbs += [At(LAST, 1, lambda cb: signal.raise_signal(number), "valid" in case)]
        checkpoint = Checkpoint(case, every_epoch=False)
    if case == "clock":
        checkpoint = Checkpoint(case, every_s=0.2 if RANK == LAST else 1e6, every_epoch=False, keep=100)
    learn = Learner(dls, nn.Linear(3, 2), F.cross_entropy, SGD, 0.1, cbs=cbs, path=FOLDER)
    ended = "by itself"
    try:
        learn.fit(3, checkpoint=checkpoint)
    except SystemExit as told:
        ended = f"told {told.code}"
    except KeyboardInterrupt:
        ended = "told by Ctrl-C"
    weights = sum(float(p.detach().double().sum()) for p in learn.model.parameters())
    print(f"{case}: {ended}, {learn.train_iter} batches, {len(learn.recorder.values)} rows, {weights:.12f}", flush=True)


if __name__ == "__main__":
    warnings.showwarning = lambda message, *_: print(f"warned: {message}")
    warnings.simplefilter("always")
    for name in sys.argv[2:]:
        main(name)

"""Kills fits at random moments and goes on with them: `python tests/faults/kill_resume.py --kills 1000`.

Each way to train is carried out once without interruption, then again and again by processes that SIGKILL ends after a
random time, until one comes to its end by itself. That one must have, bit for bit, the weights, the optimizer's state,
the history and the random numbers of the first; nothing but checkpoints may lie in its folder. Prints the figures, and
exits with 1 where anything differs, a run cannot go on, or a stray file is left.
"""

import argparse
import collections
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from minilearn.callback import Callback
from minilearn.callbacks import EMA, Checkpoint, GradientAccumulation, MixedPrecision
from minilearn.data import DataLoader, DataLoaders
from minilearn.data.transforms import RandomShift
from minilearn.learner import Learner
from minilearn.metrics import accuracy
from minilearn.optim import SGD, Adam
from minilearn.random_states import random_states
from minilearn.states import flatten_state

ROWS, VALID, SIDE, BATCH, EPOCHS = 60, 16, 6, 7, 3
"""60 rows in batches of 7: nine a training part, the last of four."""
TOO_LONG_S = 120.0
"""A process that has not ended by then hangs."""


class Images(Dataset[Any]):
    """Small images in memory, read row by row, with noise of three kinds of random numbers, or without."""

    def __init__(self, first: int, last: int, noise: float) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.rand(ROWS + VALID, 1, SIDE, SIDE, generator=generator)[first:last]
        self.y = torch.randint(0, 3, (ROWS + VALID,), generator=generator)[first:last]
        self.noise = noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        if not self.noise:
            return self.x[i], self.y[i]
        drawn = torch.rand(SIDE, SIDE) + random.random() + float(np.random.rand())
        return self.x[i] + self.noise * drawn, self.y[i]


@dataclass(frozen=True)
class Way:
    """One way to train."""

    optimizer: str
    workers: int
    augmented: bool
    with_: str
    precision: str

    def __str__(self) -> str:
        augmented = "augmented" if self.augmented else "as it is"
        return f"{self.optimizer}, {self.workers} workers, {augmented}, {self.with_}, {self.precision}"


WAYS = [
    Way(*choice)
    for choice in itertools.product(
        ("SGD momentum", "Adam"),
        (0, 2),
        (True, False),
        ("accumulation", "EMA", "one cycle"),
        ("float32", "bf16"),
    )
]


def learner(way: Way, path: Path) -> Learner:
    """What a script makes each time anew."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    noise = 0.1 if way.augmented else 0.0
    train = DataLoader(Images(0, ROWS, noise), BATCH, shuffle=True, num_workers=way.workers, collate_fn=collate)
    valid = DataLoader(Images(ROWS, ROWS + VALID, 0.0), BATCH, num_workers=way.workers, collate_fn=collate)
    dls = DataLoaders(train, valid, device="cpu", batch_tfms=[RandomShift(1)] if way.augmented else None)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(48, 3)
    )
    cbs: list[Callback] = []
    if way.precision == "bf16":
        cbs.append(MixedPrecision("bf16"))
    if way.with_ == "accumulation":
        cbs.append(GradientAccumulation(20))  # three batches a step, but for the last ones of an epoch
    if way.with_ == "EMA":
        cbs.append(EMA(0.9))
    opt_func: Any = partial(SGD, mom=0.9) if way.optimizer == "SGD momentum" else Adam
    learn = Learner(dls, model, F.cross_entropy, opt_func, 0.01, cbs=cbs, metrics=accuracy, path=path)
    learn.logger = lambda text: None
    return learn


def collate(rows: list[Any]) -> Any:
    """Rows one by one, so that the loader reads them so."""
    return torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])


def train(way: Way, path: Path, every_batches: int) -> dict[str, Any]:
    """A fit from its beginning, or from where it stopped; gives all that it ends with."""
    learn = learner(way, path)
    kept = Checkpoint("run", every_batches=every_batches)
    if way.with_ == "one cycle":
        learn.fit_one_cycle(EPOCHS, checkpoint=kept)
    else:
        learn.fit(EPOCHS, checkpoint=kept)
    return outcome(learn)


def outcome(learn: Learner) -> dict[str, Any]:
    """A fit's weights, optimizer and random numbers as a digest each, its history as it is, but for times."""
    recorder = learn.recorder
    averages = [dict(cb.average) for cb in learn.cbs if isinstance(cb, EMA)]
    return {
        "weights": digest(dict(learn.model.state_dict())),
        "optimizer": digest(learn.opt.state_dict()),
        "averages": digest(averages),
        "random": digest(random_states()),
        "values": repr(recorder.values),
        "losses": repr(recorder.losses),
        "hps": repr(recorder.hps),
        "iters": repr((recorder.iters, recorder.epochs, learn.train_iter)),
    }


def digest(state: Any) -> str:
    """The SHA-256 of every bit of a nested state."""
    value, tensors = flatten_state(state)
    found = hashlib.sha256(json.dumps(value).encode())
    for name in sorted(tensors):
        data: Tensor = tensors[name].detach().contiguous().reshape(-1)
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        found.update(data.view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    return found.hexdigest()


def in_fork(work: Callable[[], None]) -> int:
    """Does something in a process of its own, whose memory begins as this one's; gives its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # workers whose main process is killed complain
        work()
        code = 0
    except SystemExit as told:
        code = int(told.code or 0)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as Python does where nobody catches it
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
    finally:
        os._exit(code)


def ended(process: int, seconds: float) -> int | None:
    """How a process ended within so many seconds, as `waitstatus_to_exitcode`; None where it goes on."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        left = until - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(left, 0.002))


def place(folder: Path) -> str:
    """What a run was about when it was killed, as far as its folder tells."""
    if not folder.is_dir():
        return "before its folder was there"
    if any(file.suffix == ".part" for file in folder.iterdir()):
        return "while it wrote"
    return "between checkpoints" if any(folder.glob("*.safetensors")) else "before its first checkpoint"


@dataclass
class Counts:
    """What was found."""

    kills: int = 0
    runs: int = 0
    stuck: int = 0
    different: int = 0
    stray: int = 0

    @property
    def good(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.stuck or self.different or self.stray)


def killed_until_done(
    way: Way, root: Path, draw: random.Random, counts: Counts, places: dict[str, int], kills: int
) -> None:
    """One way: the reference, then a run that is killed until there are `kills`, or it is done; told in `counts`."""
    every_batches = draw.choice((2, 3))
    folder, expected = root / "killed", root / "whole.json"
    started = time.monotonic()
    work = partial(write_outcome, way, root / "whole", every_batches, expected)
    if ended(in_fork(work), TOO_LONG_S) != 0:
        raise RuntimeError(f"{way}: the run without interruption failed")
    whole_s = time.monotonic() - started
    found, killed = root / "found.json", list[int]()
    while True:
        process = in_fork(partial(write_outcome, way, folder, every_batches, found))
        code = ended(process, draw.uniform(0, whole_s) if counts.kills < kills else TOO_LONG_S)
        if code is None and counts.kills < kills:
            os.kill(process, signal.SIGKILL)  # it alone: its workers live on for a while, as they would elsewhere
            os.waitpid(process, 0)
            killed.append(process)
            counts.kills += 1
            places[place(folder / "run")] += 1
            found.unlink(missing_ok=True)  # killed after its end: so is a process whose script goes on
            continue
        break
    for process in killed:
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)  # torch's workers may not notice at all, where it came as they started
    counts.runs += 1
    if code != 0:
        counts.stuck += 1
        print(f"{way}: cannot go on, exit code {code}")
        if code is None:
            os.killpg(process, signal.SIGKILL)
        return
    one, another = json.loads(expected.read_text()), json.loads(found.read_text())
    if differing := [name for name in one if one[name] != another[name]]:
        counts.different += 1
        print(f"{way}: another {', '.join(differing)} than without interruption")
    if others := sorted(strays(folder)):
        counts.stray += 1
        print(f"{way}: left behind {', '.join(others)}")


def strays(folder: Path) -> Iterator[str]:
    """The files of a finished run that are none of its newest two checkpoints."""
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    kept = sorted(file for file in files if file.parent.name == "run" and file.stem.isdecimal())[-2:]
    yield from (str(file) for file in files if file not in kept)


def write_outcome(way: Way, folder: Path, every_batches: int, into: Path) -> None:
    """Trains, and writes what came of it."""
    folder.mkdir(exist_ok=True)
    found = train(way, folder, every_batches)
    part = into.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.replace(into)


def warm_up() -> None:
    """Imports, here and not in each process anew, what a fit imports when it first needs it."""
    for way in (WAYS[0], WAYS[-1]):
        folder = Path(tempfile.mkdtemp(prefix="kill_resume."))
        for _ in range(2):
            train(Way(way.optimizer, 0, way.augmented, way.with_, way.precision), folder, 2)
        shutil.rmtree(folder)


def main(argv: list[str] | None = None) -> int:
    """Carries out as many kills as were asked for; gives 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="how many, at least (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which runs are killed (0)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    draw, counts, places = random.Random(args.seed), Counts(), collections.Counter[str]()
    warm_up()
    started, tried = time.monotonic(), set[Way]()
    while counts.kills < args.kills:
        for way in draw.sample(WAYS, len(WAYS)):
            root = Path(tempfile.mkdtemp(prefix="kill_resume."))
            try:
                killed_until_done(way, root, draw, counts, places, args.kills)
                tried.add(way)
            finally:
                shutil.rmtree(root, ignore_errors=True)
            if counts.kills >= args.kills:
                break
        if counts.kills < args.kills:
            print(f"so far: {counts}", flush=True)
    print(
        f"{counts.kills} kills in {counts.runs} runs of {len(tried)} of {len(WAYS)} ways to train,"
        f" {time.monotonic() - started:.0f} s: {counts.stuck} that could not go on, {counts.different} with a"
        f" difference, {counts.stray} with a stray file"
    )
    print("killed " + ", ".join(f"{times} {when}" for when, times in sorted(places.items())))
    return 0 if counts.good else 1


if __name__ == "__main__":
    sys.exit(main())

"""How the cost of a batch grows: with the length of a run, with callbacks, with parameters.

Runs and callbacks are compared by the processor's time: the differences are smaller than what else a machine does.
"""

import functools
import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from harness import (
    Case,
    Measured,
    Outcome,
    Run,
    Setting,
    compared,
    host_time,
    in_process,
    middle,
    same_sums,
    seconds_text,
)
from linear import silent
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.learner import Learner
from minilearn.optim import SGD

CHUNK, WARM_UP, CHUNKS = 1_000, 100, 20
TINY = (torch.ones(1, 1), torch.ones(1, 1))


class Batches:
    """The same tiny batch `n` times."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.n):
            yield TINY


class Short(Batches):
    """A warm-up and a chunk, which is timed."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        started = 0.0
        for i in range(self.n):
            if i == WARM_UP:
                started = time.process_time()
            yield TINY
        self.seconds = time.process_time() - started


class Long(Batches):
    """A long run. In its second half it steps aside for a short one now and then, and times itself just after that."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.late, self.early = [], []
        every = self.n // (2 * CHUNKS)
        for i in range(self.n):
            into = (i - self.n // 2) % every
            if i >= self.n // 2:
                if into == 0:
                    short = Short(WARM_UP + CHUNK)
                    tiny_learner(short).fit(1, 1e-3)
                    self.early.append(short.seconds)
                elif into == WARM_UP:
                    started = time.process_time()
                elif into == WARM_UP + CHUNK:
                    self.late.append(time.process_time() - started)
            yield TINY


def tiny_learner(batches: Batches, *cbs: Callback) -> Learner:
    learn = Learner([batches], nn.Linear(1, 1), nn.functional.mse_loss, SGD, cbs=cbs)
    learn.logger = silent
    return learn


def length(setting: Setting) -> Measured:
    long = Long(setting.of(1_000_000, 100_000))
    tiny_learner(long).fit(1, 1e-3)
    assert len(long.late) == len(long.early) == CHUNKS
    return compared(long.late, long.early, per=CHUNK, note=f"over {long.n:,} batches")


class Without(Callback):
    """Handles no event of a batch."""

    def before_fit(self) -> None:
        pass


class WithOne(Callback):
    """Handles one event of a batch, and does nothing."""

    def after_batch(self) -> None:
        pass


def callbacks(kind: type[Callback], setting: Setting) -> Measured:
    """The time of a batch with 32 of a kind, less that with none, for each; with 16 too, to see that it is linear."""
    n, several = setting.of(3_000, 1_000), (0, 16, 32)
    seconds: dict[int, list[float]] = {count: [] for count in several}
    for i in range(setting.of(31, 9) + 1):
        for count in several[:: -1 if i % 2 else 1]:
            short = Short(WARM_UP + n)
            tiny_learner(short, *(kind() for _ in range(count))).fit(1, 1e-3)
            if i:
                seconds[count].append(short.seconds / n)
    half, all_ = (
        [1e6 * (many - none) / count for none, many in zip(seconds[0], seconds[count], strict=True)]
        for count in (16, 32)
    )
    note = f"{middle(half)[0]:.2f} µs each of 16, {middle(all_)[0]:.2f} µs each of 32"
    return Measured(*middle(all_), seconds_text(seconds[32]), seconds_text(seconds[0]), note)


class Wide(nn.Module):
    """A model of `n` parameters that does next to nothing with them."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.sum() * x


FEW = 10**2
"""So few parameters that an optimizer's work on them is nothing beside its calls."""
KEEPS_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "10000000000", "MALLOC_MMAP_THRESHOLD_": "10000000000"}
"""Has the C library keep freed memory: whether it does so by itself goes by chance, and is felt by either side."""


def parameters(n: int, setting: Setting) -> Measured:
    """A batch with `n` parameters beside the same by hand, both with the same optimizer, in a process of its own.

    What a Learner's batch takes longer with `FEW` parameters is taken off: the linear model's case holds that against a
    bar of its own. What is left would be above 1 where a Learner did something of its own with each parameter.
    """
    options = ["--quick"] * setting.quick + ["--trial"] * setting.trial
    found: dict[str, Any] = in_process("growth.py", n, *options, env=KEEPS_MEMORY)
    return Measured(**found)


def in_turns(n: int, setting: Setting) -> Measured:
    """`parameters`, in this process."""
    # Whether weights are finite is looked at when a fit begins and after each epoch, not in a batch: the more of those.
    steps = setting.of(40, 20) if n >= 10**8 else setting.of(1_500, 500)
    batch = torch.full((1, 1), 1e-9), torch.ones(1, 1)

    def ours(n: int) -> Run:
        model = Wide(n)
        learn = tiny_learner(Batches(steps))
        learn.model, learn.dls = model, [[batch] * steps]

        def run() -> Outcome:
            learn.fit(1, 1e-3)
            return [model.weight.detach()[:3].clone()]

        return run

    def theirs(n: int) -> Run:
        model = Wide(n)
        opt = SGD(model.parameters(), lr=1e-3)
        x, y = batch

        def run() -> Outcome:
            for _ in range(steps):
                nn.functional.mse_loss(model(x), y).backward()
                opt.step()
                opt.zero_grad()
            return [model.weight.detach()[:3].clone()]

        return run

    sides = [(side, size) for side in (ours, theirs) for size in (FEW, n)]
    seconds: list[list[float]] = [[] for _ in sides]
    for i in range((5 if n >= 10**8 else setting.rounds(15, 5)) + 1):
        outcomes = {}
        for turn in range(len(sides))[:: -1 if i % 2 else 1]:
            side, size = sides[turn]
            run = side(size)
            gc.collect()
            outcomes[turn], took = host_time(run)
            if i:
                seconds[turn].append(took / steps)
        same_sums(outcomes[1], outcomes[3], 1e-4)
    ours_few, ours_n, theirs_few, theirs_n = seconds
    constant = statistics.median(a - b for a, b in zip(ours_few, theirs_few, strict=True))
    note = f"with {FEW} parameters {seconds_text(ours_few)} and {seconds_text(theirs_few)}"
    return compared([took - constant for took in ours_n], theirs_n, note=note)


def per_callback(name: str, kind: type[Callback], what: str, bar: float | None) -> Case:
    measure = functools.partial(callbacks, kind)
    return Case(name, "32 callbacks", "none", f"a callback {what}, a batch", measure, bar, "µs", slow=bar is None)


CASES = [
    Case("growth, batches", "late batches of a long run", "a run of 10³", "a tiny batch", length, 1.05),
    per_callback("growth, callbacks", WithOne, "with one empty event of the batch", 1.0),
    per_callback("growth, idle callbacks", Without, "without an event of the batch", None),
    *(
        Case(
            f"growth, 10^{power} parameters", "Learner.fit, less its constant", "loop by hand",
            "a step with the same optimizer", functools.partial(parameters, 10**power), 1.05, slow=power == 8,
        )
        for power in (4, 6, 8)
    ),
]  # fmt: skip


if __name__ == "__main__":  # the process of a case with parameters
    torch.set_num_threads(1)
    options = {"quick": "--quick" in sys.argv, "trial": "--trial" in sys.argv}
    print(json.dumps(asdict(in_turns(int(sys.argv[1]), Setting(**options)))))

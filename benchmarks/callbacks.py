"""What each optional callback costs a batch, beside what its docstring says: `python benchmarks/callbacks.py`.

For each callback two Learners take turns in one process on one thread, one with it and one without, each round
beginning with the other: a linear network of ten layers (20 small parameters) on 32 images of 16×16, SGD. A side's
figure is the median of its batches, in µs of the processor's time, in training or, where the callback is for that, in
validation; all threads count, a writer's too. What is printed, as a Markdown table, is the median of the rounds'
differences; with a warning for each that costs more than twice what is written. On a machine that does other things at
the same time a small difference may come out below zero.
"""

import argparse
import contextlib
import importlib.util
import inspect
import itertools
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import middle
from linear import silent
from torch import Tensor, nn

from minilearn import callbacks as c
from minilearn.callback import Callback
from minilearn.learner import DEFAULT_CALLBACKS, Learner
from minilearn.optim import SGD
from minilearn.schedule import SchedCos

WARM_UP, BATCHES, ROUNDS = 10, 150, 21
LAYERS = 10
NOISE = 3.0
"""µs: what two runs of the same differ by."""
PACKAGES = {"TensorBoard": "tensorboard", "Wandb": "wandb"}
FIGURE = re.compile(r"([\d.]+) (µs|ms)")
DEFAULT = {kind.__name__ for kind in DEFAULT_CALLBACKS}
"""In every Learner: `benchmarks/run.py` measures them together."""
ON_THEIR_OWN = {
    "LRFinder": "its fit is a search",
    "WeightAverage": "a base class",
    "Mixing": "a base class",
    "Distributed": "its fit is one of several processes: ddp_overhead.py",
}
"""Those that no fit is made with."""


@dataclass(frozen=True)
class Cost:
    """A callback, and what its docstring says that a batch costs.

    Args:
        make: gives the callback.
        says: the words of its docstring, or of a base's, in which the figures are; these are added up, none is 0.
        times: how often that comes in a batch, where the words are of a layer or of fewer parameters.
        training: whether training batches are timed; else those of validation.
    """

    make: Callable[[], Callback]
    says: str
    times: float = 1.0
    training: bool = True

    @property
    def written(self) -> float:
        """The µs that are written."""
        return self.times * sum(float(n) * (1e3 if unit == "ms" else 1) for n, unit in FIGURE.findall(self.says))


def cosine(opt: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(opt, 1000)


NOTHING = "A batch costs nothing"
COSTS: dict[str, Cost] = {
    "ActivationStats": Cost(lambda: c.ActivationStats(every=1), "a hooked batch costs about 180 µs a layer", LAYERS),
    "ActivationStats, with_hist": Cost(lambda: c.ActivationStats(True, every=1), "230 µs with a histogram", LAYERS),
    "ActivationStats, other batches": Cost(lambda: c.ActivationStats(every=10**6), "any other batch costs 12 µs"),
    "BnFreeze": Cost(c.BnFreeze, NOTHING),
    "CSVLogger": Cost(c.CSVLogger, NOTHING),
    "Cast": Cost(c.Cast, "A batch costs about 35 µs"),
    "ChannelsLast": Cost(c.ChannelsLast, "A batch costs about 13 µs"),
    "Checkpoint": Cost(lambda: c.Checkpoint("kept"), "Costs a look at the clock a batch (0.2 µs)"),
    "CollectData": Cost(lambda: c.CollectData(10), "A batch costs 30 µs"),
    "CutMix": Cost(c.CutMix, "costs 0.4 ms on a CPU; the loss is computed twice, 0.1 ms"),
    "EMA": Cost(lambda: c.EMA(warmup=False), "on a CPU 20 µs for 10 small tensors", 2),
    "EMA, in the first steps": Cost(c.EMA, "on a CPU 20 µs for 10 small tensors", 2.5),
    "EarlyStopping": Cost(lambda: c.EarlyStopping("train_loss"), "It costs nothing in a batch"),
    "FetchPreds": Cost(c.FetchPreds, "It costs a pass over the loader an epoch, and nothing else"),
    "GatherPreds": Cost(c.GatherPreds, "A batch costs about 18 µs for each tensor", 2, training=False),
    "GradientAccumulation": Cost(lambda: c.GradientAccumulation(32), "A batch costs about 11 µs"),
    "GradientClip": Cost(c.GradientClip, "a step costs about 340 µs for 20 small parameters"),
    "GradientClip, value": Cost(lambda: c.GradientClip(value=1.0), "120 µs by value"),
    "GradientClip, adaptive": Cost(lambda: c.GradientClip(adaptive=0.01), "1000 µs adaptively"),
    "HookCallback": Cost(c.HookCallback, "a batch costs about 10 µs a layer", LAYERS),
    "HookCallback, other batches": Cost(lambda: c.HookCallback(every=10**6), "any other 1 µs in all"),
    "MCDropout": Cost(c.MCDropout, NOTHING),
    "MixUp": Cost(c.MixUp, "costs 0.2 ms on a CPU; the loss is computed twice, 0.1 ms"),
    "ModelReset": Cost(c.ModelReset, NOTHING),
    "ParamScheduler": Cost(lambda: c.ParamScheduler({"lr": SchedCos(0.1, 0.01)}), "A batch costs 25 µs"),
    "Profiler": Cost(lambda: c.Profiler(skip=0, active=1), "any other costs 1 µs"),
    "ReduceLROnPlateau": Cost(lambda: c.ReduceLROnPlateau("train_loss"), "It costs nothing in a batch"),
    "SWA": Cost(c.SWA, NOTHING),
    "SWA, swa_lr": Cost(lambda: c.SWA(0.0, swa_lr=0.01), "the setting of the rate (17 µs on a CPU)"),
    "SaveModel": Cost(lambda: c.SaveModel("train_loss"), "a batch costs nothing"),
    "ShortEpoch": Cost(lambda: c.ShortEpoch(1.0), "A batch costs 1 µs"),
    "ShowGraph": Cost(c.ShowGraph, "A batch costs 2 µs"),
    "SkipToEpoch": Cost(lambda: c.SkipToEpoch(0), NOTHING),
    "TensorBoard": Cost(lambda: c.TensorBoard(trace_model=False), "costs about 300 µs of CPU time"),
    "TensorBoard, other batches": Cost(lambda: c.TensorBoard(trace_model=False, stride=10**6), "any other 20 µs"),
    "TerminateOnNaN": Cost(c.TerminateOnNaN, "A batch costs about 1 µs"),
    "TorchScheduler": Cost(lambda: c.TorchScheduler(cosine, "batch"), "by the batch 40 µs"),
    "TrackerCallback": Cost(lambda: c.TrackerCallback("train_loss"), "It costs nothing in a batch"),
    "Wandb": Cost(c.Wandb, "costs about 400 µs on a CPU"),
    "Wandb, other batches": Cost(lambda: c.Wandb(stride=10**6), "any other 15 µs"),
    "MixedPrecision": Cost(lambda: c.MixedPrecision("bf16"), "a batch of ten small layers takes 1.9 ms longer"),
    "MixedPrecision, fp16": Cost(lambda: c.MixedPrecision("fp16"), "with float16 1.2 ms"),
}


class Timed:
    """The same batch again and again; `seconds` is the processor's time of each after the first ones."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.seconds: list[float] = []
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(32, 1, 16, 16, generator=generator)
        self.batch = x, torch.randint(0, 10, (32,), generator=generator)

    def __len__(self) -> int:
        return self.n + WARM_UP

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(len(self)):
            started = time.process_time()
            yield self.batch
            if i >= WARM_UP:
                self.seconds.append(time.process_time() - started)


class Network(nn.Module):
    """Ten linear layers; and a `reset` for `ModelReset`."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [256, *[16] * (LAYERS - 1), 10]
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.Sequential(nn.Flatten(), *layers)

    def reset(self) -> None:
        """There is nothing to forget."""

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layers(x)
        return answer


def seconds(cost: Cost, path: Path, n: int, *, with_it: bool) -> float:
    """The processor's time for a batch of a fit, the median of `n`."""
    torch.manual_seed(0)
    timed, few = Timed(n), Timed(0)
    loaders = [timed] if cost.training else [few, timed]
    cbs = [cost.make()] if with_it else []
    learn = Learner(loaders, Network(), nn.CrossEntropyLoss(), SGD, cbs=cbs, path=path)
    learn.logger = silent
    learn.fit(1, 1e-3)
    return statistics.median(timed.seconds)


def measured(cost: Cost, rounds: int, n: int = BATCHES) -> tuple[float, float, float]:
    """What a batch costs in µs: the median of the rounds' differences, and their quartiles."""
    found = []
    for i in range(rounds + 1):
        took = {}
        for with_it in (True, False) if i % 2 else (False, True):
            with tempfile.TemporaryDirectory() as folder:
                took[with_it] = seconds(cost, Path(folder), n, with_it=with_it)
        if i:
            found.append(1e6 * (took[True] - took[False]))
    return middle(found)


def is_dearer(cost: Cost, low: float) -> bool:
    """Whether even the lower quartile is more than twice what is written."""
    return low > 2 * cost.written + NOISE


def kind_of(name: str) -> str:
    """The class's name, of a row's."""
    return name.partition(",")[0]


def docstring(name: str) -> str:
    """What a callback and its bases say of themselves, each run of blanks as one."""
    kind = getattr(c, kind_of(name))
    return " ".join(" ".join((base.__doc__ or "").split()) for base in inspect.getmro(kind) if base is not object)


@contextlib.contextmanager
def offline_run() -> Iterator[None]:
    """A run of Weights & Biases that goes nowhere, while `Wandb` is measured."""
    wandb: Any = importlib.import_module("wandb")
    settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True)
    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(mode="offline", dir=folder, project="costs", settings=settings)
        try:
            yield
        finally:
            run.finish()


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; gives 1 where a docstring has not the words any more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds for each (default {ROUNDS})")
    parser.add_argument("--only", default="", help="only callbacks whose name holds this text")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    drifted = [name for name, cost in COSTS.items() if cost.says not in docstring(name)]
    for name in drifted:
        print(f"{name}: its docstring does not say '{COSTS[name].says}'", file=sys.stderr)
    print("| callback | µs a batch | quartiles | written |  |\n|---|--:|--:|--:|---|")
    for name, cost in COSTS.items():
        if args.only.lower() not in name.lower():
            continue
        package = PACKAGES.get(kind_of(name))
        if package and importlib.util.find_spec(package) is None:
            print(f"{name}: left out, {package} is not installed", file=sys.stderr)
            continue
        with offline_run() if package == "wandb" else contextlib.nullcontext():
            median, low, high = measured(cost, args.rounds)
        dearer = is_dearer(cost, low)
        figures = f"{median:.1f} | {low:.1f} to {high:.1f} | {cost.written:g}"
        print(f"| {name} | {figures} | {'**more than twice**' if dearer else ''} |", flush=True)
        if dearer:
            print(f"{name}: {median:.0f} µs, and its docstring says '{cost.says}'", file=sys.stderr)
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main())

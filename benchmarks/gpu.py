"""Linear, MLP, LeNet and ResNet-18 on a CUDA GPU, beside their bars: `python benchmarks/gpu.py`, or `make bench-gpu`.

Each by a Learner and by hand, as they are and compiled, and by fastai where it is installed; on random numbers, and on
MNIST where it is at hand. The data is on the GPU. The larger two compute in bfloat16, with channels last. Both sides
take turns in one process; a time is the GPU's, from event to event, and so holds what it waits for the host. A last
case is a fit in which a batch that reads from the GPU is an error. Writes `results-gpu.md` and exits with 1 where a bar
is missed or a case fails. Without a CUDA GPU there is nothing to measure; `--device cpu` tries the code itself.
"""

import argparse
import contextlib
import functools
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import linear
import machine
import models
import peers
import table
import torch
import torch.nn.functional as F
from harness import HERE, Case, Measured, Outcome, Prepare, Run, Setting, Skip, race
from linear import Data, Source, has_mnist
from models import Job
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.callbacks import Recorder
from minilearn.learner import Learner
from minilearn.metrics import accuracy

CHANCE = 0.3
"""How far the losses of two sides may be apart, relatively, that draw their batches in orders of their own."""

ROUNDING = 5e-3
"""How far the linear model's ends may be apart, relatively: a few of 2,038 rows that lie at the threshold."""


class InBfloat16(nn.Module):
    """A model of images that computes in bfloat16, channels last: by itself, so that it does so for either side."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.body(x.to(memory_format=torch.channels_last)).float()


def device_time(run: Run) -> tuple[Outcome, float]:
    """By the GPU's clock: from an event before the first of the side's work to one after the last."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    outcome = run()
    end.record()
    end.synchronize()
    return outcome, start.elapsed_time(end) / 1_000


# ---- data and models ----


def of_mnist(source: Source) -> Data:
    """What `source` gives, where that is MNIST."""
    if not has_mnist():
        raise Skip("MNIST is not at hand: MINILEARN_DATA names the folder that holds MNIST/raw")
    return source()


def there(data: Data, device: torch.device) -> Data:
    x, y, valid_x, valid_y = (part.to(device) for part in data)
    return x, y, valid_x, valid_y


def images_of_digits(rows: int, source: Source) -> Data:
    """Digits for a model of colour images: the same grey three times."""
    x, y, valid_x, valid_y = models.rows_of_digits(rows, 1, 28, 28, source=source)
    return x.expand(-1, 3, -1, -1), y, valid_x.expand(-1, 3, -1, -1), valid_y


def jobs(device: torch.device) -> list[Job]:
    """All but the linear one; whole batches only, as a compiled loop by hand would compile a ragged one anew."""
    graphs, rounds = "reduce-overhead", (15, 1)

    def mlp() -> nn.Module:
        return models.mlp().to(device)

    def lenet() -> nn.Module:
        return InBfloat16(models.lenet()).to(device)

    def resnet18() -> nn.Module:
        return InBfloat16(models.resnet18()).to(device)

    found = []
    for name, digits in (("random", models.random_digits), ("MNIST", functools.partial(of_mnist, models.digits))):
        rows = functools.partial(models.rows_of_digits, source=digits)
        small = functools.partial(images_of_digits, source=digits)
        large = functools.partial(models.random_images, side=128)
        shape, images, n = ("3×28×28", small, 16_384) if name == "MNIST" else ("3×128×128", large, 4_096)
        found += [
            Job(
                f"MLP, {name}", mlp, lambda s, rows=rows: there(rows(s.of(58_368, 3_072), 784), device), 512,
                bar=None, rounds=rounds, compares="MLP 784–256–64–10, batch 512", mode=graphs,
            ),
            Job(
                f"LeNet, {name}", lenet, lambda s, rows=rows: there(rows(s.of(49_152, 3_072), 1, 28, 28), device), 512,
                bar=None, rounds=rounds, compares="LeNet, bfloat16, channels last, batch 512", mode=graphs,
                tolerance=0.1, eager_tolerance=0.1,
            ),
            Job(
                f"ResNet-18, {name}", resnet18, lambda s, images=images, n=n: there(images(s.of(n, 16)), device), 64,
                bar=1.02, rounds=rounds, compares=f"ResNet-18, {shape}, bfloat16, channels last, batch 64", mode=graphs,
                tolerance=0.2, eager_tolerance=0.2,
            ),
        ]  # fmt: skip
    return found


# ---- cases ----

LEARNER, COMPILED = "Learner.fit", "Learner(compile=True).fit, warm"
BY_HAND, COMPILED_BY_HAND = "loop by hand", "loop by hand, torch.compile, warm"


def linear_cases(device: torch.device) -> Iterator[Case]:
    sources: dict[str, Source] = {
        "random": linear.random_data,
        "MNIST": functools.partial(of_mnist, linear.load),
    }
    for name, given in sources.items():
        source = functools.cache(lambda given=given: there(given(), device))
        job = f"linear, {name}"
        eager = functools.partial(linear.fit, source=source, tolerance=ROUNDING)
        graphs = functools.partial(linear.fit_compiled, source=source, tolerance=ROUNDING)
        compiled = functools.partial(graphs, mode="reduce-overhead")
        peer = functools.partial(linear_beside_fastai, source=source, device=device)
        yield Case(job, LEARNER, BY_HAND, linear.JOB, eager, 1.10)
        yield Case(f"{job}, CUDA graphs", COMPILED, f"{BY_HAND}, eager", linear.JOB, graphs, 0.30)
        yield Case(f"{job}, compiled", COMPILED, COMPILED_BY_HAND, linear.JOB, compiled)
        yield Case(f"{job}, fastai", LEARNER, "fastai", linear.JOB, peer)


def job_cases(job: Job, device: torch.device) -> Iterator[Case]:
    eager, compiled = functools.partial(models.eager, job), functools.partial(models.compiled, job)
    peer = functools.partial(job_beside_fastai, job, device=device)
    yield Case(job.name, LEARNER, BY_HAND, job.compares, eager, job.bar)
    yield Case(f"{job.name}, compiled", COMPILED, COMPILED_BY_HAND, job.compares, compiled)
    yield Case(f"{job.name}, fastai", LEARNER, "fastai", job.compares, peer)


def needs_fastai() -> None:
    if importlib.util.find_spec("fastai") is None:
        raise Skip("fastai is not installed: pip install -e '.[bench]'")


def loss_of(prepare: Prepare) -> Prepare:
    """A side that ends with its loss alone: the orders of the batches differ."""

    def prepared() -> Run:
        run = prepare()
        return lambda: run()[:1]

    return prepared


def fastai_side(data: Data, model: Callable[[], nn.Module], epochs: int, **options: Any) -> Prepare:
    """fastai as its documentation has it: the rows in the computer's memory, each batch copied to the GPU."""
    rows = there(data, torch.device("cpu"))

    def prepare() -> Run:
        train = peers.fastai(rows, model(), **options)
        return lambda: train(epochs)[:1]

    return prepare


def linear_beside_fastai(setting: Setting, source: Source, device: torch.device) -> Measured:
    needs_fastai()
    epochs = setting.of(10, 4)
    ours = loss_of(linear.prepared(linear.by_learner, epochs, source))
    theirs = fastai_side(source(), lambda: nn.Linear(784, 1).to(device), epochs, device=str(device))
    return race(ours, theirs, setting.rounds(5, 1), per=epochs, tolerance=CHANCE, clock=setting.clock)


def job_beside_fastai(job: Job, setting: Setting, device: torch.device) -> Measured:
    needs_fastai()
    data = job.data(setting)
    theirs = fastai_side(
        data,
        job.model,
        1,
        bs=job.batch,
        lr=models.LR,
        mom=models.MOM,
        loss_func=F.cross_entropy,
        metric=accuracy,
        device=str(device),
    )
    ours = loss_of(models.by_learner(job, data))
    return race(ours, theirs, setting.rounds(5, 1), tolerance=CHANCE, clock=setting.clock)


# ---- nothing waits for the GPU ----


class NoReading(Callback):
    """Makes a copy from the GPU an error while batches are carried out; from the second epoch on.

    A fit's first batches are looked at closely, once. What an epoch's end reads, it reads after its last batch.
    """

    order = Recorder.order - 1  # off again before the Recorder reads what the epoch has gathered

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts = 0
        """How often batches were gone through like this."""

    def before_train(self) -> None:
        self._forbid()

    def after_train(self) -> None:
        reading(self.device, "default")

    def before_validate(self) -> None:
        self._forbid()

    def after_validate(self) -> None:
        reading(self.device, "default")

    def cleanup_fit(self) -> None:
        reading(self.device, "default")

    def _forbid(self) -> None:
        if self.epoch > 0:
            self.parts += 1
            reading(self.device, "error")


def reading(device: torch.device, mode: str) -> None:
    """Sets what is done about an operation that waits for the GPU: "error" or, as usual, "default"."""
    if device.type == "cuda":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch says that the mode does not see everything yet
            torch.cuda.set_sync_debug_mode(mode)


def no_reading(setting: Setting, device: torch.device) -> Measured:
    """Fits by Learners that hold the data on the GPU, have compiled steps, or copy each batch there."""
    assert device.type != "cuda" or is_seen(device), "the mode in which reading is an error does not see any"
    data, lenet = linear.random_data(), next(job for job in jobs(device) if job.name.startswith("LeNet"))
    here, images = there(data, device), there(lenet.data(setting), torch.device("cpu"))
    learners: list[Learner] = [
        linear.learner(here, nn.Linear(784, 1)),
        linear.learner(here, nn.Linear(784, 1).to(device), compile=True),
        models.learner(lenet, there(images, device), lenet.model()),
        models.learner(lenet, images, lenet.model()),
    ]
    for learn in learners:
        learn.dls.device = device
        watch = NoReading(device)
        learn.fit(2, models.LR, cbs=watch)
        assert watch.parts == 2, "the second epoch was not watched"
    return Measured(0.0, 0.0, 0.0)


def is_seen(device: torch.device) -> bool:
    """Whether reading is an error where it should be."""
    number = torch.ones((), device=device)
    reading(device, "error")
    try:
        with contextlib.suppress(RuntimeError):
            number.item()
            return False
        return True
    finally:
        reading(device, "default")


def cases(device: torch.device) -> list[Case]:
    what = "a fit's second epoch, batch by batch, in torch's sync_debug_mode 'error'"
    check = Case(
        "no reading",
        LEARNER,
        "none",
        what,
        functools.partial(no_reading, device=device),
        0.0,
        unit="copies",
    )
    return [*linear_cases(device), *(case for job in jobs(device) for case in job_cases(job, device)), check]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes the table; gives 1 where a bar was missed or a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a round of each case, no table")
    parser.add_argument("--only", default="", help="only cases whose name holds this text")
    parser.add_argument("--out", type=Path, help="where to write the table (by default results-gpu.md, of all cases)")
    args = parser.parse_args(argv)
    trial = args.device == "cpu"
    if not trial and not torch.cuda.is_available():
        print("there is no CUDA GPU here: nothing was measured")
        return 0
    found = [case for case in cases(torch.device(args.device)) if args.only.lower() in case.name.lower()]
    if not found:
        parser.error(f"no case's name holds {args.only!r}")
    torch.set_num_threads(1)
    started = time.perf_counter()
    if trial:
        return 0 if table.carried_out([replace(case, bar=None) for case in found], Setting(trial=True))[-1] else 1
    rows, skipped, good = table.carried_out(found, Setting(clock=device_time))
    out = args.out or (None if args.only else HERE / "results-gpu.md")
    if out is not None:
        seconds, here = time.perf_counter() - started, [*machine.gpu_described(), *machine.described(("fastai",))]
        command = "python benchmarks/gpu.py" + (f' --only "{args.only}"' if args.only else "")
        out.write_text(table.text("Benchmarks on a GPU", command, seconds, here, rows, skipped), encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

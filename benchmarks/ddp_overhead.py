"""A Learner in two processes beside a DDP script written by hand: both in the same processes, in turns.

    python benchmarks/ddp_overhead.py

Each side begins with the same weights, goes into DistributedDataParallel, trains for two epochs with validation and
accuracy, and ends with the same weights, or the benchmark fails. Prints the ratio of the times, the median over the
rounds, with the quartiles; a process has one thread.
"""

import argparse
import functools
import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from harness import Case, Measured, Outcome, Run, Setting, in_processes, leave, race
from models import LR, Data, Job, learner, lenet, mlp, outcome, rows_of_digits, torchs_sgd
from torch import Tensor, nn

EPOCHS = 2
BAR = 1.03

JOBS = {
    "MLP": Job(
        "MLP", mlp, lambda s: rows_of_digits(s.of(51_200, 10_240), 784), 256, BAR, (121, 3),
        compares="MLP 784–256–64–10, batches of 256 in each of 2 processes, DDP, gloo",
    ),
    "LeNet": Job(
        "LeNet", lenet, lambda s: rows_of_digits(s.of(6_144, 2_048), 1, 28, 28), 64, BAR, (121, 3),
        compares="LeNet, batches of 64 in each of 2 processes, DDP, gloo",
    ),
}  # fmt: skip


def hand_fit(model: nn.Module, data: Data, batch: int) -> tuple[float, float]:
    """The script that somebody writes who knows DDP; gives the last validation's loss and accuracy."""
    rank, world = dist.get_rank(), dist.get_world_size()
    x, y, valid_x, valid_y = data
    ddp = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    opt = torchs_sgd(model)
    figures = 0.0, 0.0
    for _ in range(EPOCHS):
        model.train()
        order, losses = torch.randperm(len(x)), []  # the same in all processes, which have the same seed
        for start in range(rank * batch, len(x), world * batch):
            rows = order[start : start + batch]
            loss = F.cross_entropy(ddp(x[rows]), y[rows])
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        train_loss = torch.stack(losses).mean()
        dist.all_reduce(train_loss)
        figures = hand_validation(model, valid_x, valid_y, batch, rank, world)
    return figures


def hand_validation(model: nn.Module, x: Tensor, y: Tensor, batch: int, rank: int, world: int) -> tuple[float, float]:
    model.eval()
    sums = torch.zeros(2)
    with torch.no_grad():
        for start in range(rank * batch, len(x), world * batch):
            yb = y[start : start + batch]
            pred = model(x[start : start + batch])
            sums[0] += F.cross_entropy(pred, yb) * len(yb)
            sums[1] += (pred.argmax(-1) == yb).sum()
    dist.all_reduce(sums)
    loss, right = (sums / len(x)).tolist()
    return loss, right


def together(run: Run) -> tuple[Outcome, float]:
    """The seconds from when all processes begin until the last one is done."""
    dist.barrier()
    started = time.perf_counter()
    ended = run()
    dist.barrier()
    return ended, time.perf_counter() - started


def process(job: Job, setting: Setting) -> None:
    """What each of the processes does; the first one prints what was measured, as JSON."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    data = job.data(setting)

    def ours() -> Run:
        model = job.model()
        learn = learner(job, data, model)

        def run() -> Outcome:
            learn.fit(EPOCHS, LR)
            return outcome(model, tuple(learn.recorder.values[-1][1:]))

        return run

    def theirs() -> Run:
        model = job.model()
        return lambda: outcome(model, hand_fit(model, data, job.batch))

    found = race(ours, theirs, setting.rounds(*job.rounds), per=EPOCHS, tolerance=job.eager_tolerance, clock=together)
    if dist.get_rank() == 0:
        print(json.dumps(asdict(found)))
    leave()


def measure(job: Job, setting: Setting) -> Measured:
    """Starts the processes."""
    options = ["--quick"] * setting.quick + ["--trial"] * setting.trial
    found: dict[str, Any] = in_processes(2, "ddp_overhead.py", "--job", job.name, *options)
    return Measured(**found)


CASES = [
    Case(f"{job.name}, 2 processes", "Learner.fit", "DDP script by hand", job.compares,
         functools.partial(measure, job), job.bar, slow=True)
    for job in JOBS.values()
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", choices=JOBS, help="only this one")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--trial", action="store_true", help="one round")
    args = parser.parse_args()
    setting = Setting(quick=args.quick, trial=args.trial)
    if "RANK" in os.environ:
        process(JOBS[args.job], setting)
        return
    missed = False
    for case in CASES:
        if args.job is None or case.name.startswith(args.job):
            found = case.measure(setting)
            missed |= not case.good(found)
            print(
                f"{case.compares}: {found.figure:.3f} ({found.low:.3f} to {found.high:.3f}), an epoch {found.ours}"
                f" and {found.theirs} by hand; bar {BAR}, {'kept' if case.good(found) else 'missed'}"
            )
    sys.exit(missed)


if __name__ == "__main__":
    main()

"""What the Learner costs over a loop written by hand: `python benchmarks/learner_overhead.py`.

The job is the first lesson's: a linear layer 784 → 1 on the 12,396 threes and sevens (MNIST's where they are at hand,
else random numbers of the same shape: the sums are the same), in memory, batch 128, SGD, `mnist_loss`, with validation
and `batch_accuracy`. Both sides train from the same weights, alternate within one process on one thread, and are
compared by the median time of an epoch. The lessons' `DataLoader(list(zip(x, y)), 128)` is compared with one over a
`TensorDataset` in the same way. Then each side runs alone in a process of its own, for its peak memory.

Exits with 1 where a bar is missed: the ratio of the times ≤ 1.15, the Learner's memory within 20 MB of the hand-written
loop's beyond what importing minilearn costs, and flat over epochs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

BATCH, LR = 128, 1.0
TIME_BAR, LOADER_BAR, MEMORY_BAR_MB, FLAT_BAR_MB, IMPORT_BAR_S = 1.15, 1.15, 20.0, 5.0, 0.15
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def mnist_loss(pred: Tensor, target: Tensor) -> Tensor:
    pred = pred.sigmoid()
    return torch.where(target == 1, 1 - pred, pred).mean()


def batch_accuracy(pred: Tensor, target: Tensor) -> Tensor:
    return ((pred.sigmoid() > 0.5) == target).float().mean()


def by_hand(data: Data, model: nn.Module, epochs: int) -> float:
    """The loop that somebody writes who knows torch and wants speed; gives the last accuracy."""
    x, y, valid_x, valid_y = data
    params = list(model.parameters())
    accuracy = 0.0
    for _ in range(epochs):
        order = torch.randperm(len(x))
        losses = []
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            loss = mnist_loss(model(x[rows]), y[rows])
            loss.backward()
            with torch.no_grad():
                for p in params:
                    p -= LR * p.grad  # noqa: PLW2901
                    p.grad = None
            losses.append(loss.detach())
        torch.stack(losses).mean().item()
        with torch.no_grad():
            valid_loss = right = 0.0
            for start in range(0, len(valid_x), BATCH):
                xb, yb = valid_x[start : start + BATCH], valid_y[start : start + BATCH]
                pred = model(xb)
                valid_loss += mnist_loss(pred, yb) * len(xb)
                right += batch_accuracy(pred, yb) * len(xb)
            accuracy = float(right) / len(valid_x)
    return accuracy


def by_learner(data: Data, model: nn.Module, epochs: int) -> float:
    """The same with a Learner and its default callbacks; gives the last accuracy."""
    from minilearn.data import DataLoaders
    from minilearn.learner import Learner
    from minilearn.optim import SGD

    dls = DataLoaders.from_tensors(*data, bs=BATCH, device="cpu")
    learn = Learner(dls, model, mnist_loss, SGD, metrics=batch_accuracy)
    learn.logger = lambda line: None  # the rows are made, and go nowhere: a table is not what is measured
    learn.fit(epochs, LR)
    return float(learn.recorder.values[-1][-1] or 0)


SIDES: dict[str, Callable[[Data, nn.Module, int], float]] = {"hand": by_hand, "learner": by_learner}


def load() -> Data:
    """MNIST's threes and sevens, or random numbers in their place."""
    from minilearn.data import DataError, mnist_sample
    from minilearn.data.handwritten import SHA256, data_folders

    here = any((folder / "MNIST" / "raw" / f"{name}.gz").exists() for folder in data_folders() for name in SHA256)
    if here:
        try:
            return tuple(mnist_sample())
        except DataError as error:
            print(error, file=sys.stderr)
    torch.manual_seed(0)
    x, y = torch.rand(12_396 + 2_038, 784), torch.randint(0, 2, (12_396 + 2_038, 1))
    return x[:12_396], y[:12_396], x[12_396:], y[12_396:]


def compare_times(data: Data, rounds: int, epochs: int) -> float:
    """Prints the median time of an epoch on both sides, and gives the ratio."""
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    scores: dict[str, float] = {}
    for i in range(rounds + 1):  # the first round warms up and is not counted
        for name in sorted(SIDES, reverse=bool(i % 2)):
            torch.manual_seed(0)
            model = nn.Linear(784, 1)
            started = time.perf_counter()
            scores[name] = SIDES[name](data, model, epochs)
            if i:
                seconds[name].append((time.perf_counter() - started) / epochs)
    assert abs(scores["hand"] - scores["learner"]) < 1e-6, f"the two sides did different sums: {scores}"
    steps = -(-len(data[0]) // BATCH)
    for name, times in seconds.items():
        low, middle, high = (f"{1e3 * t:.2f}" for t in (min(times), statistics.median(times), max(times)))
        per_step = 1e6 * statistics.median(times) / steps
        print(
            f"{name:8s} {middle} ms an epoch ({low} to {high}), {per_step:.0f} µs a training step with its validation"
        )
    return statistics.median(seconds["learner"]) / statistics.median(seconds["hand"])


def compare_loaders(data: Data, rounds: int) -> float:
    """The time to go through a list of rows, the lessons' form, over that of a `TensorDataset`: medians."""
    from minilearn.data import DataLoader

    x, y = data[:2]
    loaders = [DataLoader(dset, BATCH, shuffle=True) for dset in (list(zip(x, y, strict=True)), TensorDataset(x, y))]
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for loader, times in zip(loaders, seconds, strict=True):
            started = time.perf_counter()
            for _batch in loader:
                pass
            times.append(time.perf_counter() - started)
    return statistics.median(seconds[0]) / statistics.median(seconds[1])


def peak_mb(side: str, epochs: int) -> float:
    """The peak memory of a process that runs one side, or only imports minilearn ("import") or torch ("torch")."""
    command = [sys.executable, __file__, "--measure", side, "--epochs", str(epochs)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def measure(side: str, epochs: int) -> None:
    """Runs one side and prints this process's peak memory in MB."""
    torch.set_num_threads(1)
    if side == "import":
        pass
    torch.manual_seed(0)
    x, y = torch.rand(12_396 + 2_038, 784), torch.randint(0, 2, (12_396 + 2_038, 1))
    if side in SIDES:
        SIDES[side]((x[:12_396], y[:12_396], x[12_396:], y[12_396:]), nn.Linear(784, 1), epochs)
    print(json.dumps(own_peak_mb()))


def own_peak_mb() -> float:
    """This process's peak memory in MB. Not `ru_maxrss`: on Linux that begins with the peak of the process before."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))


def import_seconds() -> float:
    """What `import minilearn.all` costs over `import torch`: the median of fresh processes."""
    code = "import time, torch; t = time.perf_counter(); import minilearn.all; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(5)]
    return statistics.median(float(run.stdout) for run in runs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="how often each side is run (default 15)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs a run (default 10)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.epochs)
        return 0
    torch.set_num_threads(1)
    data = load()
    ratio = compare_times(data, args.rounds, args.epochs)
    loaders = compare_loaders(data, 4 * args.rounds)
    alone = {side: peak_mb(side, 2) for side in ("torch", "import", "hand", "learner")}
    print("peak memory of a process: " + ", ".join(f"{side} {mb:.0f} MB" for side, mb in alone.items()))
    importing = alone["import"] - alone["torch"]
    extra = alone["learner"] - alone["hand"] - importing
    growth = peak_mb("learner", 60) - alone["learner"]
    import_s = import_seconds()
    rows = [
        ("time of Learner over by hand", f"{ratio:.3f}", ratio <= TIME_BAR, f"≤ {TIME_BAR}"),
        ("loading a list of rows over tensors", f"{loaders:.3f}", loaders <= LOADER_BAR, f"≤ {LOADER_BAR}"),
        (
            "memory beyond by hand and the import",
            f"{extra:.1f} MB",
            extra <= MEMORY_BAR_MB,
            f"≤ {MEMORY_BAR_MB:.0f} MB",
        ),
        ("memory, 60 epochs over 2", f"{growth:.1f} MB", growth <= FLAT_BAR_MB, f"≤ {FLAT_BAR_MB:.0f} MB"),
        ("import minilearn.all over torch", f"{import_s:.3f} s", import_s <= IMPORT_BAR_S, f"≤ {IMPORT_BAR_S} s"),
    ]
    for what, figure, good, bar in rows:
        print(f"{what:38s} {figure:>10s}   {bar:9s} {'ok' if good else 'MISSED'}")
    return 0 if all(good for _, _, good, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Peak memory and import time, each in fresh processes; `python benchmarks/memory.py SIDE N` is one of them."""

import json
import statistics
import sys
from collections.abc import Iterator

import torch
from harness import Case, Measured, Setting, in_process, middle, own_peak_mb, seconds_of
from torch import Tensor, nn


class Endless:
    """A loader of `n` batches that come from nowhere and have no length."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.n):
            yield torch.ones(1, 1), torch.ones(1, 1)


def main(side: str, n: int) -> None:
    """Runs one side over `n` epochs or batches, and prints this process's peak memory in MB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if side in ("hand", "learner", "minilearn"):
        import linear

        if side != "minilearn":
            linear.SIDES[side](linear.random_data(), nn.Linear(784, 1), n)
    elif side == "generator":
        from minilearn.learner import Learner
        from minilearn.optim import SGD

        learn = Learner([Endless(n), Endless(n // 10)], nn.Linear(1, 1), nn.functional.mse_loss, SGD)
        with learn.no_logging():
            learn.fit(1, 1e-3)
        assert learn.train_iter == n
    elif side == "predictions":
        import predictions

        predictions.saved(n)
    print(json.dumps(own_peak_mb()))


def peaks(setting: Setting, *processes: tuple[str, int]) -> list[list[float]]:
    """The peaks of these processes, which take turns."""
    found: list[list[float]] = [[] for _ in processes]
    for _ in range(setting.of(3, 1)):
        for peak, (side, n) in zip(found, processes, strict=True):
            peak.append(in_process("memory.py", side, n))
    return found


def difference(ours: list[float], theirs: list[float]) -> Measured:
    spread = middle([a - b for a, b in zip(ours, theirs, strict=True)])
    return Measured(*spread, *(f"{statistics.median(peak):.0f} MB" for peak in (ours, theirs)))


def over_epochs(setting: Setting) -> Measured:
    return difference(*peaks(setting, ("learner", 200), ("learner", 1)))


def over_batches(setting: Setting) -> Measured:
    return difference(*peaks(Setting(quick=True), ("generator", 1_000_000), ("generator", 1_000)))


def over_predictions(setting: Setting) -> Measured:
    return difference(*peaks(Setting(quick=True), ("predictions", 1_000_000), ("predictions", 10_000)))


def beyond_hand(setting: Setting) -> Measured:
    """Both sides have imported minilearn, which costs what it costs."""
    return difference(*peaks(setting, ("learner", 2), ("hand", 2)))


def import_seconds(module: str, setting: Setting) -> Measured:
    """In fresh processes that have imported torch already."""
    code = f"import time, torch; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    seconds_of(code)  # the bytecode is written
    seconds = [seconds_of(code) for _ in range(setting.of(9, 3))]
    return Measured(*middle(seconds), ours=f"{1e3 * statistics.median(seconds):.1f} ms")


def import_minilearn(setting: Setting) -> Measured:
    return import_seconds("minilearn", setting)


def import_all(setting: Setting) -> Measured:
    return import_seconds("minilearn.all", setting)


PEAK, IMPORT = "peak memory of a process", "seconds in a fresh process"
CASES = [
    Case("memory, epochs", "200 epochs", "1 epoch", f"linear, {PEAK}", over_epochs, 5.0, "MB"),
    Case("memory, batches", "1,000,000 batches", "1,000", f"generator, {PEAK}", over_batches, 5.0, "MB", slow=True),
    Case(
        "memory, save_preds", "1,000,000 rows", "10,000", f"get_preds, {PEAK}", over_predictions, 5.0, "MB", slow=True
    ),
    Case("memory, beyond", "Learner.fit", "loop by hand", f"linear, {PEAK}", beyond_hand, 20.0, "MB"),
    Case("import minilearn", "import torch, minilearn", "import torch", IMPORT, import_minilearn, 0.02, "s"),
    Case("import minilearn.all", "import torch, minilearn.all", "import torch", IMPORT, import_all, 0.15, "s"),
]

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

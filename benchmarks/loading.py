"""What a batch costs to load over a gather written by hand: `python benchmarks/loading.py`.

12,396 rows in batches of 128, on one thread, each batch used once in a product, as by a linear layer. By hand, each
batch is one `index_select` a column, or one `clone` of a slice where the rows come in order. Both sides alternate
within one process and are compared by the median processor time of an epoch, which other processes disturb little.
Exits with 1 where a ratio is above 1.15.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from minilearn.data import DataLoader

ROWS, BATCH, BAR = 12_396, 128, 1.15


def by_hand(x: Tensor, y: Tensor, shuffle: bool) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(ROWS) if shuffle else None
    for start in range(0, ROWS, BATCH):
        if order is None:
            yield x[start : start + BATCH].clone(), y[start : start + BATCH].clone()
        else:
            rows = order[start : start + BATCH]
            yield x.index_select(0, rows), y.index_select(0, rows)


def epoch_s(loader: Iterable[tuple[Tensor, Tensor]], weight: Tensor) -> float:
    started = time.thread_time()
    for x, _ in loader:
        x.to(weight.dtype) @ weight
    return time.thread_time() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="how often each side is run (default 30)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    kinds = {
        "784 floats": torch.rand(ROWS, 784),
        "784 bytes": torch.randint(256, (ROWS, 784), dtype=torch.uint8),
        "50 floats": torch.rand(ROWS, 50),
        "1 float": torch.rand(ROWS, 1),
    }
    good, y = True, torch.randint(2, (ROWS, 1))
    for kind, x in kinds.items():
        weight = torch.rand(x.shape[1], 1)
        for shuffle in (True, False):
            loader = DataLoader((x, y), BATCH, shuffle=shuffle, pin_memory=False)
            hand: list[float] = []
            ours: list[float] = []
            for _ in range(rounds + 1):
                hand.append(epoch_s(by_hand(x, y, shuffle), weight))
                ours.append(epoch_s(loader, weight))
            by, of = (statistics.median(times[1:]) for times in (hand, ours))  # the first round warms up
            good &= of <= BAR * by
            what = f"{kind}, {'shuffled' if shuffle else 'in order'}"
            print(f"{what:22s} by hand {1e3 * by:6.2f} ms, loader {1e3 * of:6.2f} ms, ratio {of / by:.2f}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

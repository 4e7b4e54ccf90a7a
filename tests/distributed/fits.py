"""Fits of a small model, with figures printed as JSON: alone, or as one of several processes.

python fits.py GLOBAL_BATCH ROWS KIND ...
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset, Sampler

from minilearn.all import SGD, DataLoader, DataLoaders, Learner, accuracy, set_seed


def main() -> None:
    torch.set_default_dtype(torch.float64)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    batch, cases = int(sys.argv[1]), sys.argv[2:]
    found = {}
    for case in cases:
        rows, kind = case.split(":")
        found[case] = figures(int(rows), batch // world, kind)
    print(json.dumps(found))


def figures(rows: int, bs: int, kind: str) -> dict[str, Any]:
    set_seed(3)
    x = torch.randn(rows, 5)
    y = (x @ torch.randn(5, 3)).argmax(1)
    valid_x = torch.randn(rows // 2 + 1, 5)
    valid_y = valid_x[:, :3].argmax(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    if kind == "rows":
        train = DataLoader(list(zip(x.tolist(), y.tolist(), strict=True)), bs, shuffle=True, collate_fn=collate)
    elif kind == "torch":
        train = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), bs, shuffle=True)
    elif kind == "numpy":
        train = DataLoader((x, y), bs, sampler=Shuffled(rows))
    elif kind in {"stream", "splits"}:
        train = DataLoader(Stream(x, y, bs if kind == "splits" else 0), bs)
    elif kind == "drop":
        train = DataLoader((x, y), bs, shuffle=True, drop_last=True)
    else:
        train = DataLoader((x, y), bs, shuffle=True)
    dls = DataLoaders(train, DataLoader((valid_x, valid_y), bs))
    loss_func = nn.CrossEntropyLoss(reduction="sum") if kind == "sum" else F.cross_entropy
    learn = Learner(dls, model, loss_func, opt_func=SGD, metrics=accuracy)
    with learn.no_logging():
        learn.fit(2, 0.001 if kind == "sum" else 0.1)
    return {
        "values": learn.recorder.values,
        "losses": learn.recorder.losses,
        "weights": [p.tolist() for p in learn.model.parameters()],
        "again": learn.validate(),
        "iters": learn.recorder.iters,
    }


class Shuffled(Sampler[int]):
    """An order from NumPy's random numbers, which are each process's own."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.permutation(self.n).tolist())


class Stream(IterableDataset[Any]):
    """Rows that come: all of them, or with `bs` this process's own, in blocks of so many."""

    def __init__(self, x: Tensor, y: Tensor, bs: int) -> None:
        self.x, self.y, self.bs, self.splits_itself = x, y, bs, bs > 0

    def __iter__(self) -> Iterator[Any]:
        world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        for i in range(len(self.x)):
            if not self.bs or i // self.bs % world == rank:
                yield self.x[i], self.y[i]


def collate(rows: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.tensor([x for x, _ in rows]), torch.tensor([y for _, y in rows])


if __name__ == "__main__":
    main()

"""Fits of a sharded model, their figures printed as JSON: in a process alone, or as one of several.

python sharded_fits.py FOLDER
"""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilearn.all import (
    EMA,
    Adam,
    DataLoaders,
    Distributed,
    GradientAccumulation,
    GradientClip,
    Learner,
    SaveModel,
    accuracy,
    set_seed,
)

CASES: dict[str, Any] = {
    "plain": {},
    "clipped": {"cbs": lambda: GradientClip(0.5)},
    "averaged": {"cbs": lambda: EMA(0.5)},
    "adding up": {"cbs": lambda: GradientAccumulation(32)},
    "best": {"cbs": lambda: SaveModel("valid_loss", fname="best")},
    "torch": {"opt_func": torch.optim.AdamW},
    "twice": {"twice": nn.Tanh},
    "meta": {"device": "meta"},
}


def main() -> None:
    torch.set_default_dtype(torch.float64)
    folder = Path(sys.argv[1])
    print(json.dumps({f"{rows}, {name}": figures(rows, name, folder) for rows in (64, 61) for name in CASES}))


def figures(rows: int, name: str, folder: Path) -> dict[str, Any]:
    case = CASES[name]
    learn = learner(rows, case, folder)
    learn.fit_one_cycle(2, 0.05, cbs=[case["cbs"]()] if "cbs" in case else [])
    found = {"values": learn.recorder.values, "weights": weights(learn.model), "again": learn.validate()}
    learn.save(name)
    other = learner(rows, case, folder)
    other.load(name)
    found["loaded"] = weights(other.model)
    other.fit(1, 0.01)
    found["gone on"] = weights(other.model)
    return found


def learner(rows: int, case: dict[str, Any], folder: Path) -> Learner:
    set_seed(3)
    x = torch.randn(rows, 5)
    y = (x @ torch.randn(5, 3)).argmax(1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    with torch.device(case.get("device", "cpu") if world > 1 else "cpu"):
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    dls = DataLoaders.from_tensors(x, y, x[: rows // 2 + 1], y[: rows // 2 + 1], bs=16 // world)
    cb = Distributed("fsdp", checkpoint_activations=case.get("twice", ())) if world > 1 else None
    opt_func = case.get("opt_func", partial(Adam, wd=0.01))
    learn = Learner(dls, model, F.cross_entropy, opt_func=opt_func, metrics=accuracy, cbs=cb, path=folder)
    learn.logger, learn.show_bar = lambda text: None, False
    return learn


def weights(model: nn.Module) -> list[Any]:
    return [whole(p).tolist() for p in model.parameters()]


def whole(p: Tensor) -> Tensor:
    return p.full_tensor() if hasattr(p, "full_tensor") else p


if __name__ == "__main__":
    main()

"""Records what fastai's MixUp and CutMix make of fixed batches, into mixup.json: run it where fastai 2.8.12 is.

python tests/fastai_reference/record_mixup.py
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

if __name__ == "__main__":  # the tests walk over this file where there is no fastai
    import fastai
    from fastai.basics import Learner
    from fastai.callback.mixup import CutMix, MixUp
    from fastai.data.core import DataLoaders
    from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat


def batch(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight images of 2 x 5 x 6 numbers with a class each, or with three answers each."""
    x = torch.arange(8 * 60, dtype=torch.float32).reshape(8, 2, 5, 6).mul(0.37).sin()
    return x, (torch.arange(24).reshape(8, 3) % 2).float() if kind == "bce" else torch.arange(8) % 3


def model() -> nn.Module:
    """A linear model with fixed weights."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(60, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.arange(180.0).reshape(3, 60).mul(0.11).cos() / 8)
        net[1].bias.zero_()
    return net


def record(mix: Any, loss_func: Any, kind: str) -> dict[str, Any]:
    """One batch through fastai's callback, as its Learner would do it."""
    learn = Learner(DataLoaders(), model(), loss_func=loss_func)
    learn.add_cb(mix)
    x, y = batch(kind)
    learn.xb, learn.yb, learn.training = (x.clone(),), (y,), True
    torch.manual_seed(7)
    mix.before_train()
    mix.before_batch()
    pred = learn.model(learn.xb[0])
    loss = learn.loss_func(pred, *learn.yb)
    mix.after_train()
    return {
        "loss": loss.item(),
        "inputs": learn.xb[0].double().mul(torch.arange(480.0).reshape(8, 2, 5, 6)).sum().item(),
    }


if __name__ == "__main__":
    assert fastai.__version__ == "2.8.12"
    figures = {
        "fastai": fastai.__version__,
        "mixup, cross-entropy": record(MixUp(0.4), CrossEntropyLossFlat(), "classes"),
        "mixup, label smoothing": record(MixUp(0.4), LabelSmoothingCrossEntropyFlat(eps=0.1), "classes"),
        "mixup, sum": record(MixUp(1.5), CrossEntropyLossFlat(reduction="sum"), "classes"),
        "mixup, bce": record(MixUp(0.4), BCEWithLogitsLossFlat(), "bce"),
        "cutmix, cross-entropy": record(CutMix(1.0), CrossEntropyLossFlat(), "classes"),
        "cutmix, bce": record(CutMix(1.0), BCEWithLogitsLossFlat(), "bce"),
    }
    Path(__file__).with_name("mixup.json").write_text(json.dumps(figures, indent=2) + "\n")

"""Weights after fits with callbacks that change the step, against those that fastai was recorded with."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.callbacks import GradientAccumulation, GradientClip
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD

RECORDED = json.loads((Path(__file__).parent / "steps.json").read_text())["weights"]


def numbers(*shape: int, start: int) -> Tensor:
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 1.7 + start).float().reshape(shape)


def weights(rows: int, bs: int, cbs: list[Callback], epochs: int = 2) -> Tensor:
    """What record_steps.py does with fastai."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(numbers(*p.shape, start=i) / 2)
    x, y = numbers(rows, 4, start=9), torch.arange(rows) % 3
    dls = DataLoaders.from_tensors(x, y, x, y, bs=bs, shuffle=False, device="cpu")
    learn = Learner(dls, model, nn.CrossEntropyLoss(), lambda p, lr: SGD(p, lr, mom=0.9), cbs=cbs)
    with learn.no_logging():
        learn.fit(epochs, 0.1)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


FITS = {
    "plain": lambda: weights(24, 4, []),
    "clip": lambda: weights(24, 4, [GradientClip(0.1)]),
    "clip_inf": lambda: weights(24, 4, [GradientClip(0.05, norm_type=math.inf)]),
    "accumulate_8": lambda: weights(24, 4, [GradientAccumulation(8)]),
    "accumulate_8_and_clip": lambda: weights(24, 4, [GradientAccumulation(8), GradientClip(0.1)]),
}


@pytest.mark.parametrize("name", FITS)
def test_weights_are_fastais(name: str) -> None:
    torch.testing.assert_close(FITS[name](), torch.tensor(RECORDED[name]), rtol=1e-4, atol=1e-6)


def test_the_recorded_callbacks_each_change_the_weights() -> None:
    plain = torch.tensor(RECORDED["plain"])
    assert all(not torch.allclose(torch.tensor(RECORDED[name]), plain, rtol=1e-2) for name in FITS if name != "plain")


LARGE = {
    # Steps of 9 samples where fastai takes 9/8 of their mean.
    "accumulate_8_in_batches_of_3": lambda: (weights(27, 3, [GradientAccumulation(8)]), weights(27, 9, [])),
    # A last step of 4 samples, which fastai leaves to the next epoch.
    "accumulate_8_of_20_rows": lambda: (weights(20, 4, [GradientAccumulation(8)]), weights(20, 8, [])),
}


@pytest.mark.parametrize("name", LARGE)
def test_where_fastai_differs_the_weights_are_those_of_large_batches(name: str) -> None:
    accumulated, large = LARGE[name]()
    torch.testing.assert_close(accumulated, large, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(torch.tensor(RECORDED[name]), large, rtol=1e-2)

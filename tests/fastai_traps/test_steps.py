"""fastai's traps about how a step is carried out, each gone. Its weights are those of tests/fastai_reference."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.callbacks import GradientAccumulation
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD

RECORDED = json.loads((Path(__file__).parents[1] / "fastai_reference" / "steps.json").read_text())["weights"]


class Dtypes(Callback):
    """Keeps the dtype in which the model's layers answer."""

    def __init__(self) -> None:
        self.seen: set[torch.dtype] = set()

    def before_fit(self) -> None:
        def keep(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            self.seen.add(out.dtype)

        self.handle = self.model.register_forward_hook(keep)

    def cleanup_fit(self) -> None:
        self.handle.remove()


def test_to_bf16_on_a_cpu_trains_in_bf16() -> None:
    dtypes = Dtypes()
    learn = Learner(line_dls(), nn.Linear(3, 1), F.mse_loss, cbs=dtypes).to_bf16()
    with learn.no_logging():
        learn.fit(1)
    assert dtypes.seen == {torch.bfloat16}


def test_fastais_to_bf16_on_a_cpu_was_float32() -> None:
    assert RECORDED["bf16_on_a_cpu"] == RECORDED["plain"]


def tanh_net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def trained(dls: DataLoaders, fits: list[int], cbs: list[Callback]) -> Tensor:
    learn = Learner(dls, tanh_net(), F.mse_loss, SGD, cbs=cbs)
    with learn.no_logging():
        for epochs in fits:
            learn.fit(epochs, 0.1)
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def test_accumulated_gradients_left_over_are_not_carried_into_the_next_fit() -> None:
    # Of 12 rows 8 make a step, and 4 are left; as large batches, a ragged last one.
    small = trained(line_dls(12, 4, bs=4), [1, 1], [GradientAccumulation(8)])
    large = trained(line_dls(12, 4, bs=8), [1, 1], [])
    torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-6)


def test_accumulated_gradients_left_over_are_not_carried_into_the_next_epoch() -> None:
    small = trained(line_dls(12, 4, bs=4), [3], [GradientAccumulation(8)])
    large = trained(line_dls(12, 4, bs=8), [3], [])
    torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-6)


def test_gradients_of_more_samples_than_asked_for_are_their_mean() -> None:
    # Three batches of 3 rows make a step of 9 where 8 were asked for: fastai takes 9/8 of the mean.
    small = trained(line_dls(27, 4, bs=3), [2], [GradientAccumulation(8)])
    large = trained(line_dls(27, 4, bs=9), [2], [])
    torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-6)

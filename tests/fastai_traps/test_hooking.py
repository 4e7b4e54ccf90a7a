"""What goes wrong with fastai's hooks, and does not here."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.callbacks import ActivationStats, HookCallback
from minilearn.learner import Learner
from minilearn.optim import SGD


def learner(*cbs: Callback, model: nn.Module | None = None) -> Learner:
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    learn = Learner(line_dls(24), model, F.mse_loss, SGD, cbs=cbs)
    learn.logger = lambda text: None
    return learn


def test_every_nth_batch_hooks_every_nth_batch_only() -> None:
    seen = []

    class See(HookCallback):
        def hook(self, module: nn.Module, inputs: object, output: Tensor) -> None:
            seen.append((self.training, self.train_iter))

    learner(See(every=4)).fit(2)
    assert seen == [(True, 0), (True, 0), (True, 4), (True, 4), (True, 8), (True, 8)]


def test_no_hook_is_left_on_the_model_after_an_error() -> None:
    class Fails(Callback):
        def after_pred(self) -> None:
            raise RuntimeError("out of memory, say")

    learn = learner(HookCallback(), ActivationStats(), Fails())
    with pytest.raises(RuntimeError):
        learn.fit(1)
    assert not any(module._forward_hooks for module in learn.model.modules())


def test_a_large_negative_activation_is_not_near_zero() -> None:
    model = nn.Sequential(nn.Linear(3, 1))
    nn.init.zeros_(model[0].weight)
    nn.init.constant_(model[0].bias, -5.0)
    ours, fastais = ActivationStats(), ActivationStats(near_zero=(-math.inf, 0.05))
    learner(ours, fastais, model=model).fit(1, lr=1e-9)
    assert ours.layer_stats(0)[2][0] == 0
    assert fastais.layer_stats(0)[2][0] == 1


def test_a_parameter_of_the_models_own_does_not_break_the_statistics() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.layer = nn.Parameter(torch.ones(1)), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.layer(x)

    cb = ActivationStats()
    learner(cb, model=Scaled()).fit(1)
    assert [type(module).__name__ for module in cb.modules] == ["Scaled", "Linear"]
    assert cb.layer_stats(0)[0][0] == pytest.approx(cb.layer_stats(1)[0][0])  # scaled by 1 in the first batch

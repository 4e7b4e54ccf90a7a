"""`BnFreeze`, `MCDropout` and `ModelReset`."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilearn.callback import Callback
from minilearn.callbacks import BnFreeze, MCDropout, ModelReset, ProgressCallback, set_bn_eval
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD


def learner(model: nn.Module, **options: Any) -> Learner:
    torch.manual_seed(0)
    x, y = torch.randn(64, 4), torch.randint(0, 2, (64,))
    learn = Learner(DataLoaders.from_tensors(x, y, x, y, bs=16), model, F.cross_entropy, SGD, 0.1, **options)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda text: None
    return learn


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def layers(model: Any) -> list[list[nn.Parameter]]:
    return [[*model[0].parameters(), *model[1].parameters()], [p for m in model[2:] for p in m.parameters()]]


def frozen(compile: bool = False, **options: Any) -> Learner:
    torch.manual_seed(1)
    learn = learner(normed(), splitter=layers, train_bn=False, compile=compile, **options)
    learn.freeze()
    return learn


def test_statistics_of_frozen_layers_stay_and_others_go_on() -> None:
    learn = frozen(cbs=BnFreeze())
    learn.fit(2)
    assert torch.equal(learn.model[1].running_mean, torch.zeros(4))
    assert not torch.equal(learn.model[3].running_mean, torch.zeros(4))


def test_without_it_they_go_on() -> None:
    learn = frozen()
    learn.fit(1)
    assert not torch.equal(learn.model[1].running_mean, torch.zeros(4))


def test_unfrozen_they_go_on_again() -> None:
    learn = frozen(cbs=BnFreeze())
    learn.fit(1)
    learn.unfreeze()
    learn.fit(1)
    assert not torch.equal(learn.model[1].running_mean, torch.zeros(4))


def test_set_bn_eval_works_on_the_module_itself_and_both_ways() -> None:
    layer = nn.BatchNorm2d(3).requires_grad_(False)
    set_bn_eval(layer)
    assert not layer.training
    nested = nn.Sequential(nn.Sequential(nn.BatchNorm2d(3).requires_grad_(False))).eval()
    set_bn_eval(nested, use_eval=False)
    assert nested[0][0].training


def test_set_bn_eval_takes_layers_without_parameters() -> None:
    layer = nn.Sequential(nn.BatchNorm2d(3, affine=False))
    set_bn_eval(layer)
    assert layer[0].training


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_frozen_statistics_in_a_compiled_step() -> None:
    def go(compile: bool) -> Learner:
        learn = frozen(compile, cbs=BnFreeze())
        torch.manual_seed(2)
        learn.fit(1)
        learn.unfreeze()
        learn.fit(1)
        return learn

    torch._dynamo.reset()
    torch.testing.assert_close(go(True).model.state_dict(), go(False).model.state_dict())


class Modes(Callback):
    order = 50
    acts_in_step = False

    def __init__(self) -> None:
        self.seen: list[tuple[bool, ...]] = []

    def before_batch(self) -> None:
        self.seen.append((self.training, *[m.training for m in self.model]))


def test_dropout_is_on_in_validation_and_off_after_it() -> None:
    learn, modes = learner(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5))), Modes()
    learn.validate(cbs=[MCDropout(), modes])
    assert set(modes.seen) == {(False, False, True)}
    assert [m.training for m in learn.model] == [False, False]
    assert learn.validate() == learn.validate()
    assert learn.validate(cbs=MCDropout()) != learn.validate(cbs=MCDropout())


def test_after_an_error_dropout_has_its_mode_again() -> None:
    class Fails(Callback):
        def before_batch(self) -> None:
            raise ZeroDivisionError

    learn = learner(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)))
    with pytest.raises(ZeroDivisionError):
        learn.validate(cbs=[MCDropout(), Fails()])
    assert not learn.model[1].training


def test_training_goes_on_with_dropout_in_its_own_mode() -> None:
    learn, modes = learner(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5))), Modes()
    learn.model[1].train(False)

    class Look(Callback):
        def after_batch(self) -> None:
            if self.training and self.iter == 1:
                self.learn.validate(cbs=MCDropout())

    learn.fit(1, cbs=[modes, Look()])
    assert {seen for seen in modes.seen if seen[0]} == {(True, True, True)}


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 2)
        self.batches, self.resets = 0, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.batches += 1
        return self.lin(x)

    def reset(self) -> None:
        self.resets.append(self.batches)


def test_the_model_is_reset_before_each_part_and_after_the_fit() -> None:
    learn = learner(Remembers())
    learn.fit(2, cbs=ModelReset())
    assert learn.model.resets == [0, 0, 4, 8, 12, 16]


def test_it_is_reset_after_an_error_too() -> None:
    class Fails(Callback):
        def after_step(self) -> None:
            raise ZeroDivisionError

    learn = learner(Remembers())
    with pytest.raises(ZeroDivisionError):
        learn.fit(1, cbs=[ModelReset(), Fails()])
    assert learn.model.resets == [0, 0, 1]


def test_a_model_without_reset_is_refused() -> None:
    learn = learner(nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="ModelReset needs a model with a method reset, got Sequential"):
        learn.fit(1, cbs=ModelReset())
    with pytest.raises(ValueError, match="ModelReset needs a model with a method reset, got Sequential"):
        learn.validate(cbs=ModelReset())

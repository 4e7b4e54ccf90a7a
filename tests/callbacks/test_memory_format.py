"""Channels last: where the model and its inputs lie, and the same numbers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.callbacks import ChannelsLast, ChannelsLastCallback
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD, Adam


def learner(cbs: Any = (), opt_func: Any = SGD, **options: Any) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    x, y = torch.randn(24, 3, 6, 6), torch.arange(24) % 2
    dls = DataLoaders.from_tensors(x[:16], y[:16], x[16:], y[16:], bs=4, shuffle=False, device="cpu")
    return Learner(dls, model, F.cross_entropy, opt_func, cbs=cbs, lr=0.1, **options)


def fit(learn: Learner, n_epoch: int = 1) -> Learner:
    with learn.no_logging():
        learn.fit(n_epoch)
    return learn


def weights(learn: Learner) -> Tensor:
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def is_channels_last(value: Tensor) -> bool:
    return value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()


class Look(Callback):
    """Keeps whether the inputs are channels last."""

    order = ChannelsLast.order + 1

    def __init__(self) -> None:
        self.seen: set[bool] = set()

    def before_batch(self) -> None:
        self.seen.add(is_channels_last(self.x))


def test_model_and_inputs_are_channels_last_in_a_fit() -> None:
    look = Look()
    learn = fit(learner([look, ChannelsLast]))
    assert look.seen == {True}
    assert is_channels_last(learn.model[0].weight)


def test_in_validate_alone_too() -> None:
    look = Look()
    learn = learner([look, ChannelsLast])
    learn.validate()
    assert look.seen == {True}
    assert is_channels_last(learn.model[0].weight)


OPT_FUNCS = [SGD, Adam, torch.optim.AdamW, lambda p, lr: torch.optim.AdamW(p, lr, fused=True)]


@pytest.mark.parametrize("opt_func", OPT_FUNCS, ids=["SGD", "Adam", "AdamW", "fused"])
def test_numbers_stay_the_same_when_the_layout_changes_between_fits(opt_func: Any) -> None:
    learn, plain = learner(opt_func=opt_func), fit(learner(opt_func=opt_func), 1)
    fit(learn).to_channelslast(use_amp=False)
    fit(learn).to_contiguous()
    fit(learn)
    fit(fit(plain))
    torch.testing.assert_close(weights(learn), weights(plain), rtol=1e-4, atol=1e-5)


def test_the_optimizers_averages_lie_as_their_parameters_do() -> None:
    learn = fit(learner(opt_func=torch.optim.AdamW)).to_channelslast(use_amp=False)
    fit(learn)
    p = learn.model[0].weight
    assert {learn.opt.state[p][name].stride() for name in ("exp_avg", "exp_avg_sq")} == {p.stride()}


def test_inputs_of_other_dimensions_stay_as_they_are() -> None:
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    learn = Learner(DataLoaders.from_tensors(x, y, bs=4), nn.Linear(3, 1), F.mse_loss, SGD, cbs=ChannelsLast)
    fit(learn)


def test_it_goes_into_a_compiled_step() -> None:
    assert not ChannelsLast.acts_in_step


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_with_compile_the_whole_step_is_compiled_and_the_numbers_are_eagers() -> None:
    eager, compiled = fit(learner(ChannelsLast)), fit(learner(ChannelsLast, compile=True))
    assert compiled.compiled is not None
    assert {key[0] for key in compiled.compiled._graphs} == {"step", "validation"}
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=1e-4, atol=1e-5)


def test_it_leaves_nothing_on_after_an_error() -> None:
    class Broken(Callback):
        def after_pred(self) -> None:
            raise ValueError("broken")

    learn = learner([ChannelsLast, Broken])
    with pytest.raises(ValueError, match="broken"):
        fit(learn)
    learn.remove_cb(Broken)
    torch.testing.assert_close(weights(fit(learn)), weights(fit(learner())), rtol=1e-4, atol=1e-5)


def test_it_has_one_alias() -> None:
    assert ChannelsLastCallback is ChannelsLast

"""What used to bite in optimizers and schedules, and no longer does."""

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import nn

from minilearn.learner import Learner
from minilearn.optim import SGD, Adam, RMSProp
from minilearn.schedule import SchedNo, combine_scheds


def learner(opt_func: Any = SGD, **kwargs: Any) -> Learner:
    torch.manual_seed(0)
    learn = Learner(line_dls(), nn.Linear(3, 1), F.mse_loss, opt_func, **kwargs)
    learn.logger = lambda line: None
    return learn


def test_torchs_own_optimizer_is_an_opt_func() -> None:
    ours, theirs = learner(SGD), learner(torch.optim.SGD)
    for learn in (ours, theirs):
        learn.fit(2, 0.1)
    torch.testing.assert_close(ours.model.weight, theirs.model.weight)


@pytest.mark.parametrize("opt_func", [SGD, torch.optim.SGD])
def test_one_cycle_leaves_an_optimizer_without_momentum_without(opt_func: Any) -> None:
    learn = learner(opt_func)
    learn.fit_one_cycle(2, 0.1)
    assert set(learn.recorder.hps.get("mom", [0.0])) == {0.0}
    assert all(not state for state in learn.opt.state.values()) or opt_func is SGD


@pytest.mark.parametrize("opt_func", [SGD, torch.optim.SGD, torch.optim.AdamW])
def test_weight_decay_spares_the_bias_with_any_optimizer(opt_func: Any) -> None:
    learn = learner(opt_func, wd=0.1)
    learn.fit(1, 0.0)
    decays = {
        id(p): group.get("wd", group.get("weight_decay")) for group in learn.opt.param_groups for p in group["params"]
    }
    assert decays[id(learn.model.bias)] == 0
    assert decays[id(learn.model.weight)] == pytest.approx(0.1)


def test_loaded_state_shares_no_tensor_with_its_source() -> None:
    learn = learner(Adam)
    learn.fit(1, 0.1)
    other = learner(Adam)
    other.create_opt()
    other.opt.load_state_dict(learn.opt.state_dict())
    before = [
        value.clone()
        for state in learn.opt.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    other.fit(1, 0.1)
    after = [value for state in learn.opt.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert len(before) > 0
    for one, another in zip(before, after, strict=True):
        torch.testing.assert_close(one, another, rtol=0, atol=0)


def test_rmsprop_heeds_eps() -> None:
    weights = []
    for eps in (1e-8, 10.0):
        learn = learner(partial(RMSProp, eps=eps))
        learn.fit(1, 0.1)
        weights.append(learn.model.weight.detach())
    assert (weights[0] - weights[1]).abs().max() > 0.1


def test_restarts_begin_with_the_first_batch_of_their_cycle() -> None:
    learn = learner()
    learn.fit_sgdr(2, 1, 0.1, cycle_mult=2)
    assert len(learn.recorder.lrs) == 6, "cycles of one and of two epochs, of two batches each"
    assert [i for i, lr in enumerate(learn.recorder.lrs) if lr == 0.1] == [0, 2]


def test_restarts_of_equal_cycles_divide_by_nothing() -> None:
    learn = learner()
    learn.fit_sgdr(3, 1, 0.1, cycle_mult=1)
    assert [i for i, lr in enumerate(learn.recorder.lrs) if lr == 0.1] == [0, 2, 4]


def test_shares_that_add_up_to_one_but_for_rounding_are_taken() -> None:
    assert math.fsum([0.7, 0.2, 0.1]) == 1.0
    assert 0.7 + 0.2 + 0.1 != 1.0
    schedule = combine_scheds([0.7, 0.2, 0.1], [SchedNo(1, 1), SchedNo(2, 2), SchedNo(3, 3)])
    assert [schedule(t) for t in (0.0, 0.69, 0.71, 0.89, 0.91, 1.0)] == [1, 1, 2, 2, 3, 3]

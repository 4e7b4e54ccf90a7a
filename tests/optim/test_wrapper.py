"""OptimWrapper: torch's optimizers with fastai's names and methods."""

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from minilearn.optim import Adam, OptimWrapper
from minilearn.optim.groups import GroupMethods, param_groups

T = torch.optim


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2))]


def stepped(opt: torch.optim.Optimizer, params: list[nn.Parameter]) -> list[torch.Tensor]:
    for i in range(3):
        for p in params:
            p.grad = torch.full_like(p, i - 0.5)
        opt.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize(
    ("opt", "kwargs", "torchs"),
    [
        (T.AdamW, {}, {}),
        (T.AdamW, {"mom": 0.8, "wd": 0.1}, {"betas": (0.8, 0.999), "weight_decay": 0.1}),
        (T.AdamW, {"mom": 0.8, "sqr_mom": 0.9}, {"betas": (0.8, 0.9)}),
        (T.AdamW, {"betas": (0.8, 0.9)}, {"betas": (0.8, 0.9)}),
        (T.SGD, {"mom": 0.9, "nesterov": True}, {"momentum": 0.9, "nesterov": True}),
        (T.RMSprop, {"mom": 0.5, "sqr_mom": 0.9}, {"momentum": 0.5, "alpha": 0.9}),
        (T.Adadelta, {"sqr_mom": 0.8}, {"rho": 0.8}),
        (T.Adagrad, {"wd": 0.5}, {"weight_decay": 0.5}),
    ],
)
def test_steps_are_torchs_own(opt: type[torch.optim.Optimizer], kwargs: dict[str, Any], torchs: dict[str, Any]) -> None:
    mine, theirs = parameters(), parameters()
    wrapped = OptimWrapper(mine, opt, lr=0.1, **kwargs)
    plain = opt(theirs, lr=0.1, **torchs)
    for a, b in zip(stepped(wrapped, mine), stepped(plain, theirs), strict=True):
        assert torch.equal(a, b)
    assert wrapped.state_dict()["param_groups"] == plain.state_dict()["param_groups"]


def test_default_is_adamw_and_it_stays_torchs_class() -> None:
    opt = OptimWrapper(parameters())
    assert isinstance(opt, T.AdamW)
    assert isinstance(opt, GroupMethods)
    assert type(opt).__name__ == "AdamW"


def test_methods_are_there() -> None:
    first, last = parameters()
    opt = OptimWrapper([[first], [last]], T.SGD, lr=0.1, mom=0.9)
    opt.set_hyper("lr", slice(1e-3, 1e-1))
    opt.set_hypers(mom=0.5)
    assert [(h["lr"], h["mom"]) for h in opt.hypers] == [(1e-3, 0.5), (1e-1, 0.5)]
    opt.freeze()
    assert (first.requires_grad, last.requires_grad) == (False, True)
    opt.unfreeze()
    assert first.requires_grad
    stepped(opt, [first, last])
    opt.clear_state()
    assert len(opt.state) == 0


def test_partial_with_more_arguments_is_a_class_too() -> None:
    opt = OptimWrapper(parameters(), partial(T.SGD, momentum=0.9), lr=0.1, wd=0.5)
    assert (opt.param_groups[0]["momentum"], opt.param_groups[0]["weight_decay"]) == (0.9, 0.5)


def test_fastais_names_are_translated_in_groups_too() -> None:
    first, last = parameters()
    groups = [{"params": [first], "mom": 0.5, "wd": 0.2}, {"params": [last]}]
    opt = OptimWrapper(groups, T.AdamW, lr=0.1, sqr_mom=0.9)
    assert [group["betas"] for group in opt.param_groups] == [(0.5, 0.9), (0.9, 0.9)]
    assert [group["weight_decay"] for group in opt.param_groups] == [0.2, 0.01]
    assert "mom" not in opt.param_groups[0]


def test_named_parameters_are_taken() -> None:
    opt = OptimWrapper(nn.Linear(2, 1).named_parameters(), T.SGD, lr=0.1)
    assert opt.param_groups[0]["param_names"] == ["weight", "bias"]


def test_optimizer_that_is_made_already_is_given_back_itself() -> None:
    made = T.SGD(parameters(), lr=0.1)
    opt = OptimWrapper(opt=made)
    assert opt is made
    assert isinstance(opt, T.SGD)
    opt.set_hyper("mom", 0.5)
    assert made.param_groups[0]["momentum"] == 0.5


def test_minilearns_optimizers_have_the_methods_already() -> None:
    opt = OptimWrapper(parameters(), Adam, lr=0.1, mom=0.5)
    assert type(opt) is Adam
    assert opt.hypers[0]["mom"] == 0.5


@pytest.mark.parametrize("again", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["copy", "pickle"])
def test_copies_keep_class_methods_and_state(again: Any) -> None:
    params = parameters()
    opt = OptimWrapper(params, T.AdamW, lr=0.1)
    stepped(opt, params)
    twin = again(opt)
    assert type(twin) is type(opt)
    twin.set_hyper("lr", 0.5)
    assert (opt.hypers[0]["lr"], twin.hypers[0]["lr"]) == (0.1, 0.5)
    for mine, other in zip(opt.state.values(), twin.state.values(), strict=True):
        assert torch.equal(mine["exp_avg"], other["exp_avg"])


def test_state_goes_from_torchs_and_back() -> None:
    params, others = parameters(), parameters()
    opt, plain = OptimWrapper(params, T.AdamW, lr=0.1), T.AdamW(others, lr=0.1)
    stepped(opt, params)
    plain.load_state_dict(opt.state_dict())
    opt.load_state_dict(plain.state_dict())
    assert plain.state[others[0]]["step"] == 3


def test_schedulers_of_torch_work_on_it() -> None:
    params = parameters()
    opt = OptimWrapper(params, T.AdamW, lr=1.0)
    schedule = T.lr_scheduler.OneCycleLR(opt, max_lr=1.0, total_steps=10)
    stepped(opt, params)
    schedule.step()
    assert 0.85 < opt.hypers[0]["mom"] < 0.95


def test_layers_come_through() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    groups = param_groups(model, [layer.parameters() for layer in model], wd_bn_bias=False)
    opt = OptimWrapper(groups, T.AdamW, lr=0.1)
    opt.set_hypers(lr=[1, 2], wd=0.5)
    assert [(h["lr"], h["wd"]) for h in opt.hypers] == [(1, 0.5), (1, 0), (2, 0.5), (2, 0)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: OptimWrapper(p, T.SGD, mom=1.5), "SGD: mom must be in [0, 1), got 1.5"),
        (lambda p: OptimWrapper(p, T.AdamW, wd=-1), "AdamW: wd must be a finite number of at least 0, got -1"),
        (
            lambda p: OptimWrapper(p, T.Adagrad, mom=0.9),
            "OptimWrapper: Adagrad has no mom; of fastai's names it has lr, wd",
        ),
        (
            lambda p: OptimWrapper([{"params": p, "sqr_mom": 0.9}], T.SGD),
            "OptimWrapper: SGD has no sqr_mom; of fastai's names it has lr, mom, wd",
        ),
        (
            lambda p: OptimWrapper(p, T.AdamW, mom=0.9, betas=(0.9, 0.9)),
            "OptimWrapper: mom is betas in AdamW: give one of the two",
        ),
        (
            lambda p: OptimWrapper(p, T.SGD, nesterof=True),
            "OptimWrapper: SGD takes no 'nesterof'; did you mean 'nesterov'? It takes lr, momentum, dampening, weight_",
        ),
        (
            lambda p: OptimWrapper(p, opt=T.SGD(p, 0.1)),
            "OptimWrapper: opt is an optimizer already, which has its own: leave out params",
        ),
        (
            lambda p: OptimWrapper(opt=T.SGD(p, 0.1), lr=0.1),
            "OptimWrapper: opt is an optimizer already, which has its own: leave out lr",
        ),
        (
            lambda p: OptimWrapper(opt=T.SGD),
            "OptimWrapper: params must be given, or an optimizer that is made already, opt=…",
        ),
        (
            lambda p: OptimWrapper(p, "adam"),
            "opt must be an optimizer or its class, such as torch.optim.AdamW, got 'adam'",
        ),
        (lambda p: OptimWrapper(p, lambda params: None), "opt must give a torch.optim.Optimizer, got None"),
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        make(parameters())
    assert str(caught.value).startswith(message)

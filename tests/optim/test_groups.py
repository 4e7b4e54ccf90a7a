"""Groups of any optimizer: layers, hyperparameters by name over them, freezing, forgetting."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fastcore.foundation import L
from torch import nn

from minilearn.optim import SGD, Adagrad, Adam, Lion, NAdam
from minilearn.optim.groups import (
    GroupMethods,
    clear_state,
    freeze,
    freeze_to,
    has_momentum,
    hypers,
    layer_count,
    norm_and_bias_params,
    param_groups,
    set_hyper,
    set_hypers,
    spread,
    unfreeze,
)

T = torch.optim
Make = Callable[..., torch.optim.Optimizer]
BOTH = [SGD, Adam, T.SGD, T.AdamW, T.RMSprop, T.Adadelta]
ids = [f"{make.__module__.split('.')[0]}.{make.__name__}" for make in BOTH]


def three_layers() -> nn.Sequential:
    """Three layers: a weight, a bias and a norm's two; a weight and a bias; a weight alone."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return nn.Sequential(first, nn.Linear(4, 4), nn.Linear(4, 1, bias=False))


def layered(make: Make, **kwargs: Any) -> torch.optim.Optimizer:
    """An optimizer over `three_layers`: groups of layers 0, 0, 1, 1, 2, the second and fourth spared decay."""
    return over(three_layers(), make, **kwargs)


def over(model: nn.Sequential, make: Make, **kwargs: Any) -> torch.optim.Optimizer:
    groups = param_groups(model, [layer.parameters() for layer in model], wd_bn_bias=False)
    return make(groups, **({"lr": 0.1} | kwargs))


def column(opt: torch.optim.Optimizer, name: str) -> list[float]:
    return [group[name] for group in hypers(opt)]


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        model(torch.randn(8, 3)).square().mean().backward()
        opt.step()
        opt.zero_grad()


# ---- groups and layers ----


def test_param_groups_spare_norms_and_biases() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.LayerNorm(3))
    groups = param_groups(model, model.parameters(), wd_bn_bias=False)
    assert [len(group["params"]) for group in groups] == [1, 5]
    assert set(groups[1]["params"]) == norm_and_bias_params(model)
    assert [group["no_wd"] for group in groups] == [False, True]


def test_param_groups_keep_the_splitters_groups() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    split = [list(model[0].parameters()), list(model[1].parameters())]
    assert [len(g["params"]) for g in param_groups(model, split, wd_bn_bias=True)] == [2, 2]
    assert [len(g["params"]) for g in param_groups(model, split, wd_bn_bias=False)] == [1, 1, 1, 1]


def test_set_hypers_sets_torchs_names_too_and_keeps_spared_groups_at_zero() -> None:
    model = nn.Linear(2, 1)
    opt = torch.optim.AdamW(param_groups(model, model.parameters(), wd_bn_bias=False), lr=0.1)  # type: ignore[arg-type]
    set_hypers(opt, lr=0.3, wd=0.2)
    assert [(g["lr"], g["weight_decay"]) for g in opt.param_groups] == [(0.3, 0.2), (0.3, 0.0)]


def test_splitter_may_give_generators() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    split = (layer.parameters() for layer in model)
    assert [len(g["params"]) for g in param_groups(model, split, wd_bn_bias=True)] == [2, 2]


def test_biases_of_every_name_are_spared_decay() -> None:
    attention, recurrent = nn.MultiheadAttention(4, 2), nn.LSTM(2, 2)
    assert attention.in_proj_bias in norm_and_bias_params(attention)
    assert recurrent.bias_ih_l0 in norm_and_bias_params(recurrent)
    assert recurrent.weight_ih_l0 not in norm_and_bias_params(recurrent)


def test_groups_carry_their_layer_and_where_their_norms_are() -> None:
    groups = layered(T.SGD).param_groups
    assert [group["layer"] for group in groups] == [0, 0, 1, 1, 2]
    assert [group["no_wd"] for group in groups] == [False, True, False, True, False]
    assert [group.get("norms") for group in groups] == [None, [1, 2], None, None, None]


def test_layer_without_parameters_keeps_its_number() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    groups = param_groups(model, [layer.parameters() for layer in model], wd_bn_bias=False)
    assert [group["layer"] for group in groups] == [0, 2]


def test_flat_parameters_are_one_layer() -> None:
    model = three_layers()
    assert layer_count(T.SGD(param_groups(model, model.parameters(), wd_bn_bias=False), 0.1)) == 1


def test_layers_are_counted_by_their_numbers_else_by_groups() -> None:
    assert layer_count(layered(Adam)) == 3
    assert layer_count(T.SGD([{"params": [p]} for p in nn.Linear(2, 1).parameters()], 0.1)) == 2


def test_group_that_was_added_without_a_layer_is_one_of_its_own() -> None:
    opt = layered(T.SGD)
    opt.add_param_group({"params": [torch.ones(1, requires_grad=True)]})
    assert layer_count(opt) == 4
    set_hyper(opt, "lr", [1, 2, 3, 4])
    assert column(opt, "lr") == [1, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("make", [SGD, Adam, T.SGD, T.AdamW, T.RMSprop, T.Adadelta, T.Adagrad, T.NAdam, T.ASGD])
def test_optimizers_train_with_the_groups_own_keys(make: Make) -> None:
    model = three_layers()
    before = copy.deepcopy(list(model.parameters()))
    train(model, over(model, make))
    assert not any(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True) if p.ndim == 2)


# ---- one value a layer ----


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, [0.5, 0.5, 0.5]),
        (1, [1.0, 1.0, 1.0]),
        (np.float32(0.5), [0.5, 0.5, 0.5]),
        (np.array(0.5), [0.5, 0.5, 0.5]),
        (torch.tensor(0.5), [0.5, 0.5, 0.5]),
        ([1, 2, 3], [1.0, 2.0, 3.0]),
        ((1, 2, 3), [1.0, 2.0, 3.0]),
        (L(1, 2, 3), [1.0, 2.0, 3.0]),
        (np.array([1, 2, 3]), [1.0, 2.0, 3.0]),
        (torch.tensor([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]),
        ([5], [5.0, 5.0, 5.0]),
        (slice(1e-4, 1e-2), [1e-4, 1e-3, 1e-2]),
        (slice(1e-2, 1e-4), [1e-2, 1e-3, 1e-4]),
        (slice(0.1), [0.01, 0.01, 0.1]),
    ],
    ids=repr,
)
def test_spread_over_three_layers(value: Any, expected: list[float]) -> None:
    assert spread(value, 3, "lr") == pytest.approx(expected, rel=1e-12)


def test_spread_begins_and_ends_exactly_at_the_ends() -> None:
    for n in range(2, 50):
        values = spread(slice(3e-5, 0.7), n, "lr")
        assert (values[0], values[-1], len(values)) == (3e-5, 0.7, n)


def test_spread_goes_up_by_equal_factors_as_fastcores_even_mults() -> None:
    from fastcore.basics import even_mults

    assert spread(slice(1e-5, 3e-2), 7, "lr") == pytest.approx(even_mults(1e-5, 3e-2, 7), rel=1e-12)


def test_single_layer_has_the_last_of_a_slice() -> None:
    assert spread(slice(1e-5, 1e-3), 1, "lr") == [1e-3]
    assert spread(slice(1e-3), 1, "lr") == [1e-3]


@pytest.mark.parametrize(
    ("value", "n", "message"),
    [
        ([1, 2], 3, "lr must be one number, or one for each of the 3 layers, got 2 numbers"),
        ([1, 2], 1, "lr must be one number, as there is one layer, got 2 numbers"),
        ([], 3, "lr must be one number, or one for each of the 3 layers, got 0 numbers"),
        (slice(None), 3, "lr must be slice(last) or slice(first, last), got slice(None, None, None)"),
        (slice(0.1, None), 3, "lr must be slice(last) or slice(first, last), got slice(0.1, None, None)"),
        (slice(0.1, 0.2, 3), 3, "lr must be slice(last) or slice(first, last), got slice(0.1, 0.2, 3)"),
        (
            slice(0, 0.1),
            3,
            "lr must be a slice between numbers greater than 0, as it goes by equal factors, got slice(0, 0.1, None)",
        ),
        (
            slice(0.1, 0),
            3,
            "lr must be a slice between numbers greater than 0, as it goes by equal factors, got slice(0.1, 0, None)",
        ),
        (slice(-0.1, 0.1), 3, "lr must be a finite number of at least 0, got -0.1"),
        ([0.1, -0.1, 0.1], 3, "lr must be a finite number of at least 0, got -0.1"),
        ("fast", 3, "lr must be a number, got 'fast'"),
        ([0.1, None, 0.1], 3, "lr must be a number, got None"),
        (slice("a", 0.1), 3, "lr must be a number, got 'a'"),
        (None, 3, "lr must be a number, got None"),
    ],
    ids=repr,
)
def test_spread_refuses_what_has_no_meaning(value: Any, n: int, message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        spread(value, n, "lr")
    assert str(caught.value) == message


# ---- hyperparameters by name ----


@pytest.mark.parametrize("make", BOTH, ids=ids)
def test_slice_of_rates_goes_over_layers_not_over_groups(make: Make) -> None:
    opt = layered(make)
    set_hyper(opt, "lr", slice(1e-4, 1e-2))
    assert column(opt, "lr") == pytest.approx([1e-4, 1e-4, 1e-3, 1e-3, 1e-2])


@pytest.mark.parametrize("make", BOTH, ids=ids)
def test_list_of_rates_is_one_a_layer(make: Make) -> None:
    opt = layered(make)
    set_hyper(opt, "lr", [1, 2, 3])
    assert column(opt, "lr") == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("make", BOTH, ids=ids)
def test_spared_groups_keep_no_decay(make: Make) -> None:
    opt = layered(make)
    set_hyper(opt, "wd", [0.1, 0.2, 0.3])
    assert column(opt, "wd") == [0.1, 0, 0.2, 0, 0.3]
    set_hyper(opt, "wd", 0.4)
    assert column(opt, "wd") == [0.4, 0, 0.4, 0, 0.4]


@pytest.mark.parametrize("make", [Adam, T.AdamW])
def test_set_hypers_takes_the_default_decay_off_spared_groups_and_none_leaves_the_rest(make: Make) -> None:
    opt = layered(make)
    set_hypers(opt, lr=0.3, wd=None)
    assert column(opt, "lr") == [0.3] * 5
    assert column(opt, "wd") == [0.01, 0, 0.01, 0, 0.01]


@pytest.mark.parametrize(
    ("make", "key"), [(T.SGD, "momentum"), (T.RMSprop, "momentum"), (SGD, "mom"), (Adam, "mom")], ids=str
)
def test_mom_is_momentum(make: Make, key: str) -> None:
    opt = layered(make)
    set_hyper(opt, "mom", [0.1, 0.2, 0.3])
    assert [group[key] for group in opt.param_groups] == [0.1, 0.1, 0.2, 0.2, 0.3]


def test_mom_and_sqr_mom_are_the_betas_of_torchs_adam() -> None:
    opt = layered(T.AdamW)
    set_hypers(opt, mom=slice(0.8), sqr_mom=[0.5, 0.6, 0.7])
    betas = [group["betas"] for group in opt.param_groups]
    assert betas == [(0.08, 0.5), (0.08, 0.5), (0.08, 0.6), (0.08, 0.6), (0.8, 0.7)]


@pytest.mark.parametrize(("make", "key"), [(T.RMSprop, "alpha"), (T.Adadelta, "rho"), (Adam, "sqr_mom")], ids=str)
def test_sqr_mom_is_the_squares_average(make: Make, key: str) -> None:
    opt = layered(make)
    set_hyper(opt, "sqr_mom", [0.1, 0.2, 0.3])
    assert [group[key] for group in opt.param_groups] == [0.1, 0.1, 0.2, 0.2, 0.3]
    assert column(opt, "sqr_mom") == [0.1, 0.1, 0.2, 0.2, 0.3]


def test_torchs_names_are_taken_too() -> None:
    opt, ours = layered(T.RMSprop), layered(SGD)
    set_hypers(opt, momentum=0.5, alpha=0.6, weight_decay=0.7)
    set_hypers(ours, momentum=0.5, weight_decay=0.7)
    assert hypers(opt)[0] == {"lr": 0.1, "mom": 0.5, "sqr_mom": 0.6, "eps": 1e-8, "wd": 0.7}
    assert hypers(ours)[0] == {"lr": 0.1, "mom": 0.5, "wd": 0.7, "dampening": 0, "l1": 0}


def test_numbers_of_one_optimizer_alone_have_their_own_name() -> None:
    opt = layered(NAdam)
    set_hyper(opt, "mom_decay", 0.5)
    assert column(opt, "mom_decay") == [0.5] * 5


def test_hypers_are_copies() -> None:
    opt = layered(SGD)
    hypers(opt)[0]["lr"] = 7.0
    assert column(opt, "lr") == [0.1] * 5


def test_rate_that_is_a_tensor_stays_the_same_tensor() -> None:
    rate = torch.tensor(0.5)
    opt = T.Adam([torch.ones(1, requires_grad=True)], lr=rate)
    set_hyper(opt, "lr", 0.25)
    assert opt.param_groups[0]["lr"] is rate
    assert rate.item() == 0.25


def test_tensor_that_torch_put_into_all_groups_is_parted_where_layers_differ() -> None:
    opt = layered(T.Adam, lr=torch.tensor(0.5))
    set_hyper(opt, "lr", [1, 2, 3])
    assert all(isinstance(group["lr"], torch.Tensor) for group in opt.param_groups)
    assert column(opt, "lr") == [1, 1, 2, 2, 3]
    set_hyper(opt, "lr", 0.5)
    assert column(opt, "lr") == [0.5] * 5


def test_spared_group_has_no_decay_though_torch_gave_all_one_tensor() -> None:
    opt = layered(T.SGD, weight_decay=0.5)
    for group in opt.param_groups:
        group["weight_decay"] = opt.defaults.setdefault("shared", torch.tensor(0.5))
    set_hypers(opt, lr=0.1)
    assert column(opt, "wd") == [0.5, 0, 0.5, 0, 0.5]


@pytest.mark.parametrize(
    ("make", "name", "value", "message"),
    [
        (SGD, "mom", 1.5, "SGD: mom must be in [0, 1), got 1.5"),
        (T.SGD, "mom", 1.5, "SGD: mom must be in [0, 1), got 1.5"),
        (T.SGD, "momentum", 1.5, "SGD: mom must be in [0, 1), got 1.5"),
        (T.AdamW, "mom", [0.9, 0.9, 1], "AdamW: mom must be in [0, 1), got 1.0"),
        (T.AdamW, "sqr_mom", -1, "AdamW: sqr_mom must be in [0, 1), got -1.0"),
        (T.RMSprop, "alpha", 2.0, "RMSprop: sqr_mom must be in [0, 1), got 2.0"),
        (T.AdamW, "eps", 0.0, "AdamW: eps must be a finite number greater than 0, got 0.0"),
        (T.AdamW, "lr", math.nan, "AdamW: lr must be a finite number of at least 0, got nan"),
        (Adam, "lr", "fast", "Adam: lr must be a number, got 'fast'"),
        (Adam, "lr", [1, 2], "Adam: lr must be one number, or one for each of the 3 layers, got 2 numbers"),
        (
            T.SGD,
            "sqr_mom",
            0.9,
            "SGD has no hyperparameter 'sqr_mom'; did you mean 'mom'? It has lr, mom, dampening, wd",
        ),
        (T.Adagrad, "mom", 0.9, "Adagrad has no hyperparameter 'mom'. It has lr, lr_decay, eps, wd, initial_accumul"),
        (
            SGD,
            "momemtum",
            0.9,
            "SGD has no hyperparameter 'momemtum'; did you mean 'momentum'? It has lr, mom, wd, damp",
        ),
        (T.AdamW, "rho", 0.9, "AdamW has no hyperparameter 'rho'. It has lr, mom, sqr_mom, eps, wd"),
        (T.AdamW, "betas", (0.9, 0.99), "AdamW: set betas by the names of its numbers, mom and sqr_mom"),
        (T.AdamW, "layer", 1, "AdamW has no hyperparameter 'layer'"),
        (T.AdamW, "amsgrad", 1, "AdamW has no hyperparameter 'amsgrad'"),
    ],
)
def test_bad_hyperparameter_is_refused_and_nothing_is_changed(make: Make, name: str, value: Any, message: str) -> None:
    opt = layered(make)
    before = hypers(opt)
    with pytest.raises((ValueError, TypeError)) as caught:
        set_hypers(opt, lr=0.7, **{name: value}) if name != "lr" else set_hyper(opt, name, value)
    assert str(caught.value).startswith(message)
    assert hypers(opt) == before


def test_hyperparameter_that_the_rule_was_made_without_is_refused() -> None:
    opt = layered(SGD, mom=0.9)
    message = "SGD: dampening has no effect, as it was made without it: make it with dampening=…"
    with pytest.raises(ValueError, match=message):
        set_hyper(opt, "dampening", 0.5)
    with_dampening = layered(SGD, mom=0.9, dampening=0.5)
    set_hyper(with_dampening, "dampening", 0.25)
    assert column(with_dampening, "dampening") == [0.25] * 5


@pytest.mark.parametrize(
    ("make", "kwargs", "expected"),
    [
        (Adam, {}, True),
        (T.AdamW, {}, True),
        (T.AdamW, {"betas": (0.0, 0.9)}, False),
        (SGD, {"mom": 0.9}, True),
        (SGD, {}, False),
        (T.SGD, {"momentum": 0.9}, True),
        (T.SGD, {}, False),
        (Lion, {}, True),
        (Adagrad, {}, False),
        (T.Adagrad, {}, False),
        (T.Adadelta, {}, False),
    ],
)
def test_has_momentum(make: Make, kwargs: dict[str, Any], expected: bool) -> None:
    assert has_momentum(layered(make, **kwargs)) is expected


def test_momentum_in_one_group_is_momentum() -> None:
    opt = layered(SGD)
    opt.param_groups[-1]["mom"] = 0.9
    assert has_momentum(opt)


# ---- freezing ----


def trained(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


NORM = ["0.1.weight", "0.1.bias"]


@pytest.mark.parametrize("make", BOTH, ids=ids)
@pytest.mark.parametrize("train_bn", [True, False])
@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, ["0.0.weight", "0.0.bias", *NORM, "1.weight", "1.bias", "2.weight"]),
        (1, ["1.weight", "1.bias", "2.weight"]),
        (2, ["2.weight"]),
        (-1, ["2.weight"]),
        (-2, ["1.weight", "1.bias", "2.weight"]),
        (-3, ["0.0.weight", "0.0.bias", *NORM, "1.weight", "1.bias", "2.weight"]),
    ],
)
def test_layers_before_n_are_frozen_but_for_norms(make: Make, n: int, train_bn: bool, expected: list[str]) -> None:
    model = three_layers()
    freeze_to(over(model, make), n, train_bn=train_bn)
    norms = NORM if train_bn and NORM[0] not in expected else []
    assert trained(model) == [*norms, *expected]


@pytest.mark.parametrize("make", [Adam, T.AdamW, SGD, T.SGD])
def test_frozen_parameters_do_not_move_by_a_bit(make: Make) -> None:
    model = three_layers()
    opt = over(model, make)
    set_hyper(opt, "wd", 0.5)
    train(model, opt)
    model(torch.randn(8, 3)).square().mean().backward()  # gradients that are there already
    freeze_to(opt, 1, train_bn=False)
    before = copy.deepcopy(list(model.parameters()))
    opt.step()
    train(model, opt)
    same = [torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True)]
    assert same == [True, True, True, True, False, False, False]


def test_running_averages_of_a_frozen_norm_go_on() -> None:
    model = three_layers()
    opt = over(model, SGD)
    freeze_to(opt, 1, train_bn=False)
    before = model[0][1].running_mean.clone()
    train(model, opt)
    assert not torch.equal(model[0][1].running_mean, before)


def test_groups_hold_their_norms_also_where_decay_is_for_all() -> None:
    model = three_layers()
    opt = SGD(param_groups(model, [layer.parameters() for layer in model], wd_bn_bias=True), 0.1)
    freeze(opt)
    assert trained(model) == [*NORM, "2.weight"]
    freeze(opt, train_bn=False)
    assert trained(model) == ["2.weight"]
    unfreeze(opt)
    assert len(trained(model)) == 7


@pytest.mark.parametrize("make", [Adam, T.AdamW])
def test_averages_are_kept_over_freezing(make: Make) -> None:
    model = three_layers()
    opt = over(model, make)
    train(model, opt)
    before = copy.deepcopy(opt.state_dict()["state"])
    freeze(opt)
    unfreeze(opt)
    after = opt.state_dict()["state"]
    assert before.keys() == after.keys()
    assert all(
        torch.equal(torch.as_tensor(before[p][k]), torch.as_tensor(after[p][k])) for p in after for k in after[p]
    )


def test_groups_of_a_foreign_optimizer_are_its_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    opt = T.SGD([{"params": layer.parameters()} for layer in model], 0.1)
    freeze(opt)
    assert trained(model) == ["1.weight", "1.bias"]


@pytest.mark.parametrize(
    ("n", "train_bn", "message"),
    [
        (
            3,
            True,
            r"freeze_to\(3\): there are 3 layers, so all of them are frozen: only normalisation layers are trained",
        ),
        (3, False, r"freeze_to\(3\): there are 3 layers, so all of them are frozen: nothing is trained"),
        (9, False, r"freeze_to\(9\): there are 3 layers, so all of them are frozen: nothing is trained"),
    ],
)
def test_freezing_everything_warns(n: int, train_bn: bool, message: str) -> None:
    model = three_layers()
    opt = over(model, SGD)
    with pytest.warns(RuntimeWarning, match=message):
        freeze_to(opt, n, train_bn=train_bn)
    assert trained(model) == (NORM if train_bn else [])


@pytest.mark.parametrize(
    ("n", "message"),
    [(-4, "n must be a whole number of at least -3, got -4"), (0.5, "n must be a whole number, got 0.5")],
)
def test_layer_that_is_not_there_is_refused(n: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        freeze_to(layered(SGD), n)
    assert str(caught.value) == message


# ---- forgetting ----


@pytest.mark.parametrize("make", [SGD, Adam, T.SGD, T.AdamW, T.RMSprop, T.Adadelta, T.Adagrad, T.ASGD])
def test_cleared_optimizer_steps_like_a_new_one(make: Make) -> None:
    model = three_layers()
    used = over(model, make)
    train(model, used, steps=2)
    clear_state(used)
    twin = copy.deepcopy(model)
    fresh = over(twin, make)
    for trainee, opt in ((model, used), (twin, fresh)):
        torch.manual_seed(1)
        train(trainee, opt)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


# ---- as methods ----


def test_minilearns_optimizers_have_the_functions_as_methods() -> None:
    model = three_layers()
    opt = over(model, Adam)
    assert isinstance(opt, GroupMethods)
    opt.set_hypers(lr=slice(1e-4, 1e-2), mom=0.5)
    opt.set_hyper("wd", 0.3)
    assert [(h["lr"], h["mom"], h["wd"]) for h in opt.hypers][::2] == [
        (1e-4, 0.5, 0.3),
        (pytest.approx(1e-3), 0.5, 0.3),
        (1e-2, 0.5, 0.3),
    ]
    opt.freeze()
    assert trained(model) == [*NORM, "2.weight"]
    opt.freeze_to(1, train_bn=False)
    assert trained(model) == ["1.weight", "1.bias", "2.weight"]
    opt.unfreeze()
    train(model, opt)
    opt.clear_state()
    assert len(opt.state) == 0


def test_layers_survive_a_copy_and_a_saved_state() -> None:
    model = three_layers()
    opt = over(model, Adam)
    twin = over(three_layers(), Adam)
    twin.load_state_dict(opt.state_dict())
    assert layer_count(twin) == layer_count(copy.deepcopy(opt)) == 3

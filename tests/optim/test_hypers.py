"""Where groups keep hyperparameters: every optimizer of torch's, by fastai's names."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from minilearn.optim import SGD, Adadelta, Adam, Lion, RMSProp
from minilearn.optim.groups import hypers, set_hyper
from minilearn.optim.hypers import HYPERS, Setter, name_of, named, place, read, write

T = torch.optim
Make = Callable[..., torch.optim.Optimizer]


def parameters() -> list[torch.Tensor]:
    return [torch.ones(2, 2, requires_grad=True)]


def group_of(make: Make, **kwargs: Any) -> dict[str, Any]:
    return make([torch.ones(2, 2, requires_grad=True)], lr=0.1, **kwargs).param_groups[0]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (T.SGD, {"lr": 0.1, "mom": 0, "dampening": 0, "wd": 0}),
        (T.AdamW, {"lr": 0.1, "mom": 0.9, "sqr_mom": 0.999, "eps": 1e-8, "wd": 0.01}),
        (T.RMSprop, {"lr": 0.1, "mom": 0, "sqr_mom": 0.99, "eps": 1e-8, "wd": 0}),
        (T.Adadelta, {"lr": 0.1, "sqr_mom": 0.9, "eps": 1e-6, "wd": 0}),
        (T.Adagrad, {"lr": 0.1, "lr_decay": 0, "eps": 1e-10, "wd": 0, "initial_accumulator_value": 0}),
        (T.NAdam, {"lr": 0.1, "mom": 0.9, "sqr_mom": 0.999, "eps": 1e-8, "wd": 0, "momentum_decay": 0.004}),
        (T.ASGD, {"lr": 0.1, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "wd": 0}),
        (T.SparseAdam, {"lr": 0.1, "mom": 0.9, "sqr_mom": 0.999, "eps": 1e-8}),
        (T.Rprop, {"lr": 0.1}),
        (Adam, {"lr": 0.1, "mom": 0.9, "sqr_mom": 0.99, "eps": 1e-5, "wd": 0.01, "l1": 0}),
        (RMSProp, {"lr": 0.1, "mom": 0, "sqr_mom": 0.99, "eps": 1e-8, "wd": 0, "l1": 0}),
        (Adadelta, {"lr": 0.1, "sqr_mom": 0.9, "eps": 1e-6, "wd": 0, "l1": 0}),
        (Lion, {"lr": 0.1, "mom": 0.9, "avg_mom": 0.99, "wd": 0, "l1": 0}),
    ],
    ids=lambda value: f"{value.__module__}.{value.__name__}" if isinstance(value, type) else "",
)
def test_hyperparameters_have_fastais_names(make: Make, expected: dict[str, float]) -> None:
    group = group_of(make)
    assert {name: read(group, spot) for name, spot in named(group).items()} == expected


def test_flags_layers_and_what_is_no_number_are_no_hyperparameters() -> None:
    group = {"params": [], "layer": 2, "no_wd": True, "norms": [0], "fused": None, "eps": (None, 1e-3), "lr": 0.1}
    assert named(group) == {"lr": ("lr", None)}


def test_alpha_is_the_squares_average_only_where_it_is_rmsprops() -> None:
    assert place(group_of(T.RMSprop), "sqr_mom") == ("alpha", None)
    assert place(group_of(T.ASGD), "sqr_mom") is None
    assert place(group_of(T.ASGD), "alpha") == ("alpha", None)


def test_rho_is_the_squares_average_only_where_it_is_adadeltas() -> None:
    sharpness_aware = {"rho": 0.05, "lr": 0.1, "momentum": 0.9, "eps": 1e-8}
    assert place(group_of(T.Adadelta), "sqr_mom") == ("rho", None)
    assert place(sharpness_aware, "sqr_mom") is None
    assert name_of(sharpness_aware, ("rho", None)) == "rho"


def test_second_of_three_betas_is_not_the_squares_average() -> None:
    assert named({"lr": 0.1, "betas": (0.98, 0.92, 0.99)}) == {"lr": ("lr", None), "mom": ("betas", 0)}


def test_torchs_names_find_the_same_place() -> None:
    assert place({"mom": 0.9}, "momentum") == place({"mom": 0.9}, "mom")
    assert place({"wd": 0.1}, "weight_decay") == ("wd", None)
    assert place(group_of(T.AdamW), "momentum") == ("betas", 0)


def test_pair_is_replaced_and_the_other_number_stays() -> None:
    before = (0.9, 0.999)
    group: dict[str, Any] = {"betas": before}
    write(group, ("betas", 0), 0.5)
    write(group, ("betas", 1), 0.7)
    assert group["betas"] == (0.5, 0.7)
    assert before == (0.9, 0.999)


def test_tensor_is_filled_in_place_unless_a_fresh_one_is_asked_for() -> None:
    rate = torch.tensor(0.1)
    group: dict[str, Any] = {"lr": rate}
    write(group, ("lr", None), 0.25)
    assert group["lr"] is rate
    assert rate.item() == 0.25
    write(group, ("lr", None), 0.5, fresh=True)
    assert (rate.item(), group["lr"].item()) == (0.25, 0.5)


def test_count_stays_a_whole_number_and_a_decay_of_zero_need_not() -> None:
    group: dict[str, Any] = {"ns_steps": 5, "weight_decay": 0}
    write(group, ("ns_steps", None), 6.0)
    write(group, ("weight_decay", None), 0.5)
    assert type(group["ns_steps"]) is int
    assert group == {"ns_steps": 6, "weight_decay": 0.5}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lr", -1, "lr must be a finite number of at least 0, got -1"),
        ("mom", 1, "mom must be in [0, 1), got 1"),
        ("sqr_mom", -0.1, "sqr_mom must be in [0, 1), got -0.1"),
        ("eps", 0, "eps must be a finite number greater than 0, got 0"),
        ("wd", "much", "wd must be a number, got 'much'"),
    ],
)
def test_ranges(name: str, value: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        HYPERS[name](name, value)
    assert str(caught.value) == message


def test_what_is_set_again_and_again_is_what_set_hyper_sets() -> None:
    def opts() -> list[torch.optim.Optimizer]:
        return [
            Adam(parameters(), 0.1),
            SGD(parameters(), 0.1, mom=0.9),
            torch.optim.Adam(parameters(), lr=0.1),
            torch.optim.SGD(parameters(), lr=torch.tensor(0.1)),
        ]

    for name, values in {"lr": (0.2, [0.3], 0.4, 0.5), "mom": (0.5, 0.6, 0.7), "wd": (0.1, 0.2)}.items():
        for quick, careful in zip(opts(), opts(), strict=True):
            if name == "mom" and isinstance(careful, torch.optim.SGD):
                continue
            setter = Setter(quick, name, set_hyper)
            for value in values:
                setter(value)
                set_hyper(careful, name, value)
                assert hypers(quick) == hypers(careful)


def test_a_setter_sees_groups_that_come_and_numbers_that_become_tensors() -> None:
    opt = SGD(parameters(), 0.1)
    setter = Setter(opt, "lr", set_hyper)
    setter(0.2)
    setter(0.3)
    opt.add_param_group({"params": parameters()})
    setter(0.4)
    assert [group["lr"] for group in opt.param_groups] == [0.4, 0.4]
    opt.param_groups[1]["lr"] = rate = torch.tensor(0.0)
    setter(0.5)
    assert opt.param_groups[1]["lr"] is rate
    assert (opt.param_groups[0]["lr"], rate.item()) == (0.5, 0.5)
    opt.param_groups[:] = [SGD(parameters(), 0.7).param_groups[0]]
    setter(0.6)
    assert [group["lr"] for group in opt.param_groups] == [0.6]


def test_a_setter_refuses_what_set_hyper_refuses() -> None:
    setter = Setter(Adam(parameters(), 0.1), "lr", set_hyper)
    setter(0.2)
    setter(0.2)
    with pytest.raises(ValueError, match=r"Adam: lr must be a finite number of at least 0, got -1\.0"):
        setter(-1.0)
    setter = Setter(SGD(parameters(), 0.1, mom=0.9), "dampening", set_hyper)
    setter(0.0)
    with pytest.raises(ValueError, match="dampening has no effect"):
        setter(0.5)

"""Lookahead against its formula written out, and as a torch.optim.Optimizer in every respect that users meet."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import line_dls
from torch import Tensor, nn

from minilearn.learner import Learner
from minilearn.optim import SGD, Adam, Lookahead, RAdam, ranger
from minilearn.optim.groups import set_hypers

Params = list[Tensor]
Make = Callable[[Params], torch.optim.Optimizer]
SHAPES = [(5,), (4, 3), (2, 3, 4, 5)]


def parameters(dtype: torch.dtype = torch.float64) -> Params:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in SHAPES]


def give_gradients(params: Params, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)


def steps(opt: torch.optim.Optimizer, params: Params, first: int, last: int) -> None:
    for i in range(first, last):
        give_gradients(params, i)
        opt.step()
        opt.zero_grad()


def values(params: Params) -> Params:
    return [p.detach().clone() for p in params]


def naive(make: Make, n: int, k: int, alpha: float) -> Params:
    """Algorithm 1 of the paper, over each parameter."""
    params = parameters()
    opt, slow = make(params), values(params)
    for i in range(n):
        steps(opt, params, i, i + 1)
        if (i + 1) % k == 0:
            for p, s in zip(params, slow, strict=True):
                s.add_(p.detach() - s, alpha=alpha)
                p.data.copy_(s)
    return values(params)


INNER: dict[str, Make] = {
    "SGD": lambda p: SGD(p, 0.1),
    "SGD momentum": lambda p: SGD(p, 0.1, mom=0.9),
    "Adam": lambda p: Adam(p, 0.01),
    "torch SGD": lambda p: torch.optim.SGD(p, 0.1),
    "torch Adam": lambda p: torch.optim.Adam(p, 0.01),
    "torch Adam fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "torch Adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "torch RMSprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "torch ASGD": lambda p: torch.optim.ASGD(p, 0.01),
    "torch Adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
}


@pytest.mark.parametrize("name", INNER)
def test_every_kth_step_goes_alpha_of_the_way_from_the_slow_weights(name: str) -> None:
    params = parameters()
    steps(Lookahead(INNER[name](params), k=4, alpha=0.3), params, 0, 22)
    torch.testing.assert_close(values(params), naive(INNER[name], 22, 4, 0.3), rtol=1e-12, atol=1e-12)


def test_alpha_of_1_changes_nothing() -> None:
    mine, plain = parameters(), parameters()
    steps(Lookahead(SGD(mine, 0.1), alpha=1), mine, 0, 20)
    steps(SGD(plain, 0.1), plain, 0, 20)
    torch.testing.assert_close(values(mine), values(plain), rtol=1e-12, atol=1e-12)


def test_ranger_is_lookahead_around_radam_with_fastais_defaults() -> None:
    mine, plain = parameters(), parameters()
    steps(ranger(mine, 0.01), mine, 0, 20)
    steps(Lookahead(RAdam(plain, 0.01, mom=0.95, wd=0.01, eps=1e-6), k=6, alpha=0.5), plain, 0, 20)
    assert all(torch.equal(p, q) for p, q in zip(mine, plain, strict=True))


def test_rangers_other_hyperparameters_are_radams() -> None:
    opt = ranger(parameters(), 0.01, k=3, alpha=0.8, sqr_mom=0.9)
    assert (opt.k, opt.alpha, opt.param_groups[0]["sqr_mom"]) == (3, 0.8, 0.9)


def test_groups_and_state_are_the_inner_optimizers_own() -> None:
    inner = Adam(parameters(), 0.01)
    opt = Lookahead(inner)
    assert opt.param_groups is inner.param_groups
    assert opt.state is inner.state
    set_hypers(opt, lr=0.5)
    assert inner.param_groups[0]["lr"] == 0.5


def test_groups_are_still_the_inner_optimizers_after_loading() -> None:
    params = parameters()
    opt = Lookahead(Adam(params, 0.01))
    steps(opt, params, 0, 3)
    opt.load_state_dict(opt.state_dict())
    assert opt.param_groups is opt.opt.param_groups
    assert opt.state is opt.opt.state


@pytest.mark.parametrize("name", INNER)
def test_state_saved_between_two_looks_back_goes_on_bit_for_bit(name: str) -> None:
    whole, halved = parameters(), parameters()
    steps(Lookahead(INNER[name](whole)), whole, 0, 25)
    first = Lookahead(INNER[name](halved))
    steps(first, halved, 0, 10)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Lookahead(INNER[name](halved))
    second.load_state_dict(torch.load(file, weights_only=True))
    steps(second, halved, 10, 25)
    assert all(torch.equal(p, q) for p, q in zip(whole, halved, strict=True))


def test_loaded_slow_weights_are_copies() -> None:
    params, others = parameters(), parameters()
    opt, other = Lookahead(torch.optim.SGD(params, 0.1)), Lookahead(torch.optim.SGD(others, 0.1))
    steps(opt, params, 0, 2)
    other.load_state_dict(opt.state_dict())
    assert other.state[others[0]]["slow"].data_ptr() != opt.state[params[0]]["slow"].data_ptr()


def test_state_of_the_inner_optimizer_alone_is_taken() -> None:
    params = parameters()
    plain = Adam(params, 0.01)
    steps(plain, params, 0, 4)
    opt = Lookahead(Adam(params, 0.01), k=2)
    opt.load_state_dict(plain.state_dict())
    before = values(params)
    steps(opt, params, 4, 5)
    assert all(torch.equal(opt.state[p]["slow"], b) for p, b in zip(params, before, strict=True))
    assert opt.state[params[0]]["step"] == 5


@pytest.mark.parametrize("through", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copy_goes_on_by_itself_just_like_the_original(through: Callable[[Any], Any]) -> None:
    params = parameters()
    opt = Lookahead(Adam(params, 0.01), k=4)
    steps(opt, params, 0, 6)
    other, others = through((opt, params))
    before = values(params)
    steps(other, others, 6, 15)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    steps(opt, params, 6, 15)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_parameter_without_a_gradient_stays_and_has_no_state() -> None:
    params = parameters()
    opt = Lookahead(torch.optim.Adam(params, 0.01), k=2)
    before = values(params)
    for i in range(4):
        give_gradients(params, i)
        params[0].grad = None
        opt.step()
    assert torch.equal(params[0], before[0])
    assert params[0] not in opt.state


def test_parameter_whose_gradient_comes_late_has_its_weights_of_then_as_slow_ones() -> None:
    params = parameters()
    opt = Lookahead(torch.optim.Adam(params, 0.01), k=3)
    give_gradients(params[1:], 0)
    opt.step()
    before = values(params)
    give_gradients(params, 1)
    opt.step()
    assert torch.equal(opt.state[params[0]]["slow"], before[0])


def test_group_that_is_added_later_counts_its_own_steps() -> None:
    params = parameters()
    opt = Lookahead(SGD(params[:2], 1.0), k=3, alpha=0.5)
    steps(opt, params[:2], 0, 2)
    opt.add_param_group({"params": params[2:]})
    start = values(params)[2]
    for _ in range(3):
        params[2].grad = torch.ones_like(params[2])
        opt.step()
    torch.testing.assert_close(params[2].detach(), start - 1.5)


def test_torchs_scheduler_drives_it_without_a_warning() -> None:
    params = parameters()
    opt = Lookahead(SGD(params, 1.0))
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    for i in range(3):
        give_gradients(params, i)
        opt.step()
        scheduler.step()
    assert opt.opt.param_groups[0]["lr"] == 0.125


def test_one_cycle_of_torchs_cycles_the_inner_optimizers_momentum() -> None:
    params = parameters()
    opt = Lookahead(torch.optim.SGD(params, 0.1, momentum=0.9))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, 1.0, total_steps=10)
    assert opt.param_groups[0]["momentum"] == 0.95
    steps(opt, params, 0, 1)
    scheduler.step()
    assert opt.param_groups[0]["momentum"] < 0.95


def test_closure_is_handed_on_and_its_loss_comes_back() -> None:
    p = torch.tensor([4.0], requires_grad=True)
    opt = Lookahead(SGD([p], 0.25), k=2, alpha=0.5)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert [opt.step(closure).item() for _ in range(3)] == [16.0, 4.0, 6.25]  # 4 → 2 → 1 ⇢ 2.5


def test_lbfgs_within_it_starts_from_its_slow_weights() -> None:
    p = torch.tensor([4.0], requires_grad=True)
    opt = Lookahead(torch.optim.LBFGS([p], line_search_fn="strong_wolfe"), k=1, alpha=0.5)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    opt.step(closure)
    torch.testing.assert_close(p.detach(), torch.tensor([2.0]))  # half of the way from 4 to the minimum


def test_step_hooks_are_called_around_its_step() -> None:
    params, seen = parameters(), []
    opt = Lookahead(SGD(params, 0.1), k=1, alpha=0.5)
    opt.register_step_pre_hook(lambda *args: seen.append(("before", params[0].detach().clone())))
    opt.register_step_post_hook(lambda *args: seen.append(("after", params[0].detach().clone())))
    steps(opt, params, 0, 1)
    assert [name for name, _ in seen] == ["before", "after"]
    assert torch.equal(seen[1][1], params[0])


def test_state_dict_hooks_act() -> None:
    opt = Lookahead(SGD(parameters(), 0.1))
    opt.register_state_dict_post_hook(lambda _, state: state.update(note=1))
    assert opt.state_dict()["note"] == 1


def test_grad_scaler_leaves_a_step_with_infinite_gradients_out() -> None:
    p = torch.ones(1, requires_grad=True)
    opt = Lookahead(SGD([p], 0.5), k=1, alpha=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (float("inf"), 1.0):
        scaler.scale((p * factor).sum()).backward()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
    assert p.item() == 0.75
    assert opt.param_groups[0]["lookahead_step"] == 1


def test_model_made_double_between_two_steps_takes_its_slow_weights_with_it() -> None:
    model = nn.Linear(2, 1)
    opt = Lookahead(torch.optim.SGD(model.parameters(), 0.1), k=2)
    give_gradients(list(model.parameters()), 0)
    opt.step()
    model.double()
    give_gradients(list(model.parameters()), 1)
    opt.step()
    assert opt.state[model.weight]["slow"].dtype == torch.float64
    assert torch.equal(opt.state[model.weight]["slow"], model.weight)


@pytest.mark.parametrize(
    "opt_func", [ranger, lambda p, lr: Lookahead(Adam(p, lr)), lambda p, lr: Lookahead(torch.optim.AdamW(p, lr), k=3)]
)
def test_learner_trains_with_it_as_a_hand_written_loop_does(opt_func: Callable[..., Lookahead]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    by_hand = copy.deepcopy(model)
    learn = Learner(line_dls(), model, nn.functional.mse_loss, opt_func)
    with learn.no_logging():
        learn.fit(4, 0.1, wd=0.0)
        learn.fit(1, 0.1, wd=0.0)
    opt = opt_func(list(by_hand.parameters()), lr=0.1)
    set_hypers(opt, wd=0.0)
    for _ in range(5):
        for x, y in line_dls().train:
            nn.functional.mse_loss(by_hand(x), y).backward()
            opt.step()
            opt.zero_grad()
    torch.testing.assert_close(list(model.parameters()), list(by_hand.parameters()))


def test_model_of_another_precision_goes_on_with_its_lookahead() -> None:
    learn = Learner(line_dls(), nn.Linear(3, 1), nn.functional.mse_loss, ranger)
    with learn.no_logging():
        learn.fit(1)
        learn.model.double()
        learn.dls = [[(x.double(), y.double()) for x, y in dl] for dl in learn.dls]
        learn.fit(3)
    assert {value.dtype for value in learn.opt.state[learn.model.weight].values() if isinstance(value, Tensor)} == {
        torch.float64
    }


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: Lookahead(SGD(p, 0.1), k=0), ValueError, "Lookahead: k must be a whole number of at least 1, got 0"),
        (lambda p: Lookahead(SGD(p, 0.1), k=2.5), TypeError, r"Lookahead: k must be a whole number, got 2\.5"),
        (lambda p: Lookahead(SGD(p, 0.1), alpha=1.5), ValueError, r"Lookahead: alpha must be in \[0, 1\], got 1\.5"),
        (lambda p: Lookahead(SGD), TypeError, "Lookahead: opt must be a torch.optim.Optimizer, got the class SGD"),
        (partial(Lookahead), TypeError, "Lookahead: opt must be a torch.optim.Optimizer, got an object of list"),
    ],
)
def test_argument_out_of_its_range_is_named(make: Make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(parameters())


def test_hyperparameters_and_freezing_go_by_fastais_names() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    opt = ranger([{"params": list(part.parameters())} for part in model], lr=0.1)
    opt.set_hyper("lr", slice(1e-4, 1e-2))
    assert [hyper["lr"] for hyper in opt.hypers] == [1e-4, 1e-2]
    assert opt.opt.param_groups[0]["lr"] == 1e-4
    opt.freeze()
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_hyperparameter_that_the_inner_rule_was_made_without_is_refused() -> None:
    opt = Lookahead(SGD(parameters(), lr=0.1, mom=0.9))
    with pytest.raises(ValueError, match="dampening has no effect, as it was made without it"):
        opt.set_hyper("dampening", 0.5)
    Lookahead(torch.optim.SGD(parameters(), lr=0.1, momentum=0.9)).set_hyper("dampening", 0.5)


def test_count_of_steps_is_no_hyperparameter() -> None:
    params = parameters()
    opt = ranger(params, lr=0.1)
    steps(opt, params, 0, 1)
    assert set(opt.hypers[0]) == {"lr", "mom", "sqr_mom", "eps", "wd", "l1"}


@pytest.mark.parametrize("inner", [partial(Adam, lr=0.1), partial(torch.optim.Adagrad, lr=0.1)])
def test_cleared_lookahead_steps_like_a_new_one(inner: Callable[..., torch.optim.Optimizer]) -> None:
    params = parameters()
    opt = Lookahead(inner(params), k=3)
    steps(opt, params, 0, 4)
    opt.clear_state()
    copies = [p.detach().clone().requires_grad_() for p in params]
    new = Lookahead(inner(copies), k=3)
    steps(opt, params, 4, 9)
    steps(new, copies, 4, 9)
    assert all(torch.equal(p, copy) for p, copy in zip(params, copies, strict=True))

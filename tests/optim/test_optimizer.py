"""SGD and Adam against torch's, and the engine as a torch.optim.Optimizer."""

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minilearn.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Lamb,
    Larc,
    Lion,
    NAdam,
    Optimizer,
    QHAdam,
    RAdam,
    RMSProp,
    blocks,
    optimizer,
)
from minilearn.optim.steppers import sgd_step

SHAPES = [(), (0,), (5,), (4, 3), (2, 3, 4, 5)]
Make = Callable[[list[Tensor]], torch.optim.Optimizer]


def parameters(dtype: torch.dtype) -> list[Tensor]:
    """Parameters of every kind: a scalar, an empty one, several ranks, one that is not contiguous."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    made.append(torch.randn(3, 4, generator=generator, dtype=torch.float64).T)
    return [p.to(dtype).requires_grad_() for p in made]


def run(make: Make, dtype: torch.dtype, steps: int = 100) -> list[Tensor]:
    """The parameters after some steps; the last one has no gradient every third time."""
    params = parameters(dtype)
    opt = make(params)
    generator = torch.Generator().manual_seed(1)
    for i in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
        if i % 3 == 0:
            params[-1].grad = None
        opt.step()
        opt.zero_grad()
    return [p.detach() for p in params]


T = torch.optim
BETAS = {"betas": (0.9, 0.99), "eps": 1e-5}
PAIRS: dict[str, tuple[Make, Make]] = {
    "SGD": (lambda p: SGD(p, 0.1), lambda p: T.SGD(p, 0.1)),
    "SGD momentum": (lambda p: SGD(p, 0.1, mom=0.9), lambda p: T.SGD(p, 0.1, momentum=0.9)),
    "SGD L2": (
        lambda p: SGD(p, 0.1, mom=0.9, wd=0.1, decouple_wd=False),
        lambda p: T.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    ),
    "SGD Nesterov": (
        lambda p: SGD(p, 0.1, mom=0.9, wd=0.1, decouple_wd=False, nesterov=True),
        lambda p: T.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    ),
    "SGD dampening": (
        lambda p: SGD(p, 0.1, mom=0.9, dampening=0.3),
        lambda p: T.SGD(p, 0.1, momentum=0.9, dampening=0.3),
    ),
    "Adam": (lambda p: Adam(p, 0.01), lambda p: T.AdamW(p, 0.01, **BETAS, weight_decay=0.01)),
    "Adam other": (
        lambda p: Adam(p, 0.01, mom=0.8, sqr_mom=0.999, eps=1e-8, wd=0.1),
        lambda p: T.AdamW(p, 0.01, betas=(0.8, 0.999), eps=1e-8, weight_decay=0.1),
    ),
    "Adam L2": (
        lambda p: Adam(p, 0.01, wd=0.1, decouple_wd=False),
        lambda p: T.Adam(p, 0.01, **BETAS, weight_decay=0.1),
    ),
    "Adam without decay": (lambda p: Adam(p, 0.01, wd=0.0), lambda p: T.Adam(p, 0.01, **BETAS)),
    "RMSProp": (lambda p: RMSProp(p, 0.01), lambda p: T.RMSprop(p, 0.01)),
    "RMSProp eps": (lambda p: RMSProp(p, 0.01, eps=0.1), lambda p: T.RMSprop(p, 0.01, eps=0.1)),
    "RMSProp centred momentum L2": (
        lambda p: RMSProp(p, 0.01, mom=0.9, sqr_mom=0.9, wd=0.1, decouple_wd=False, centered=True),
        lambda p: T.RMSprop(p, 0.01, momentum=0.9, alpha=0.9, weight_decay=0.1, centered=True),
    ),
    "Adagrad": (lambda p: Adagrad(p, 0.1), lambda p: T.Adagrad(p, 0.1)),
    "Adagrad L2": (
        lambda p: Adagrad(p, 0.1, wd=0.1, decouple_wd=False),
        lambda p: T.Adagrad(p, 0.1, weight_decay=0.1),
    ),
    "Adadelta": (lambda p: Adadelta(p, 1.0), lambda p: T.Adadelta(p, 1.0)),
    "Adadelta L2": (
        lambda p: Adadelta(p, 0.5, sqr_mom=0.95, eps=1e-5, wd=0.1, decouple_wd=False),
        lambda p: T.Adadelta(p, 0.5, rho=0.95, eps=1e-5, weight_decay=0.1),
    ),
    "RAdam": (lambda p: RAdam(p, 0.01), lambda p: T.RAdam(p, 0.01, **BETAS)),
    "RAdam decay": (
        lambda p: RAdam(p, 0.01, sqr_mom=0.999, eps=1e-8, wd=0.1),
        lambda p: T.RAdam(p, 0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, decoupled_weight_decay=True),
    ),
    "NAdam": (lambda p: NAdam(p, 0.01), lambda p: T.NAdam(p, 0.01, **BETAS)),
    "NAdam decay": (
        lambda p: NAdam(p, 0.01, mom_decay=0.01, wd=0.1),
        lambda p: T.NAdam(p, 0.01, **BETAS, momentum_decay=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    ),
}


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", PAIRS)
def test_rule_equals_torchs_over_100_steps(name: str, dtype: torch.dtype, rtol: float) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # torch's NAdam keeps its product of momenta in the default precision
    try:
        mine, theirs = (run(make, dtype) for make in PAIRS[name])
    finally:
        torch.set_default_dtype(before)
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", PAIRS)
def test_rule_equals_torchs_in_bfloat16_to_its_precision(name: str) -> None:
    mine, theirs = (run(make, torch.bfloat16, steps=10) for make in PAIRS[name])
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0.05, atol=0.05)


def test_decoupled_decay_of_sgd_is_its_formula() -> None:
    p = torch.tensor([2.0, -4.0], requires_grad=True)
    p.grad = torch.tensor([1.0, 1.0])
    SGD([p], 0.5, wd=0.1).step()
    torch.testing.assert_close(p.detach(), torch.tensor([2.0, -4.0]) * (1 - 0.5 * 0.1) - 0.5)


def test_groups_have_hyperparameters_of_their_own() -> None:
    def grads(params: list[Tensor]) -> None:
        for p in params:
            p.grad = torch.ones_like(p)

    mine, theirs = (
        [torch.ones(3, requires_grad=True) for _ in range(2)],
        [torch.ones(3, requires_grad=True) for _ in range(2)],
    )
    ours = SGD([{"params": [mine[0]], "lr": 0.5, "mom": 0.5}, {"params": [mine[1]]}], 0.1)
    torchs = torch.optim.SGD([{"params": [theirs[0]], "lr": 0.5, "momentum": 0.5}, {"params": [theirs[1]]}], 0.1)
    for _ in range(5):
        grads(mine)
        grads(theirs)
        ours.step()
        torchs.step()
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))


def test_generator_in_a_group_gives_its_parameters() -> None:
    opt = SGD([{"params": nn.Linear(2, 3).parameters()}], 0.1)
    assert [tuple(p.shape) for p in opt.param_groups[0]["params"]] == [(3, 2), (3,)]


def test_parameters_of_different_dtypes_in_one_group() -> None:
    params = [torch.ones(3, dtype=dtype, requires_grad=True) for dtype in (torch.float32, torch.float64)]
    for p in params:
        p.grad = torch.ones_like(p)
    Adam(params, 0.1).step()
    assert [p.dtype for p in params] == [torch.float32, torch.float64]
    assert all(float(p[0].detach()) < 1 for p in params)


def trained(
    opt_func: Callable[..., torch.optim.Optimizer], steps: int, opt_state: Any = None, start: Any = None
) -> Any:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    if start is not None:
        model.load_state_dict(start)
    opt = opt_func(model.parameters(), 0.1)
    if opt_state is not None:
        opt.load_state_dict(opt_state)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        model(x).square().mean().backward()
        opt.step()
        opt.zero_grad()
    return model, opt


@pytest.mark.parametrize("opt_func", [Adam, lambda p, lr: SGD(p, lr, mom=0.9)])
def test_state_goes_through_a_file_exactly(opt_func: Callable[..., torch.optim.Optimizer]) -> None:
    model, opt = trained(opt_func, 5)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed, _ = trained(opt_func, 5, opt_state=state, start=model.state_dict())
    straight, _ = trained(opt_func, 10)
    assert torch.equal(resumed.weight, straight.weight)


def test_loaded_state_shares_no_tensor_with_its_source() -> None:
    _, opt = trained(Adam, 2)
    _, other = trained(Adam, 1)
    other.load_state_dict(opt.state_dict())
    for mine, theirs in zip(opt.state.values(), other.state.values(), strict=True):
        assert torch.equal(mine["grad_avg"], theirs["grad_avg"])
        assert mine["grad_avg"].data_ptr() != theirs["grad_avg"].data_ptr()


def test_copy_of_an_optimizer_steps_like_it() -> None:
    model, opt = trained(Adam, 2)
    twin_model, twin = copy.deepcopy((model, opt))
    for m, o in ((model, opt), (twin_model, twin)):
        m(torch.ones(1, 3)).sum().backward()
        o.step()
    assert torch.equal(model.weight, twin_model.weight)


def test_closure_is_called_with_gradients_on_and_its_loss_returned() -> None:
    p = torch.tensor([3.0], requires_grad=True)
    opt = SGD([p], 0.1)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert opt.step(closure).item() == 9.0
    assert p.item() == pytest.approx(3.0 - 0.1 * 6.0)


def test_step_hooks_are_called() -> None:
    calls: list[str] = []
    p = torch.ones(1, requires_grad=True)
    opt = SGD([p], 0.1)
    opt.register_step_pre_hook(lambda *args: calls.append("before"))
    opt.register_step_post_hook(lambda *args: calls.append("after"))
    opt.step()
    assert calls == ["before", "after"]


def test_schedulers_of_torch_work() -> None:
    opt = SGD([torch.ones(1, requires_grad=True)], 1.0)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    opt.step()
    schedule.step()
    assert opt.param_groups[0]["lr"] == 0.5


def test_zero_grad_lets_go_or_fills_with_zeros() -> None:
    p = torch.ones(2, requires_grad=True)
    p.grad = torch.ones(2)
    opt = SGD([p], 0.1)
    opt.zero_grad(set_to_none=False)
    assert p.grad.tolist() == [0, 0]
    opt.zero_grad()
    assert p.grad is None


def test_user_writes_an_optimizer_by_writing_a_stepper() -> None:
    def sign(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """g' = sign(g)."""
        return [g.sign() for g in grads]

    p = torch.tensor([1.0, 1.0], requires_grad=True)
    p.grad = torch.tensor([5.0, -0.1])
    Optimizer([p], [sign, sgd_step], lr=0.5).step()
    assert p.tolist() == [0.5, 1.5]


def test_stepper_whose_hyperparameter_is_not_given_is_refused() -> None:
    with pytest.raises(TypeError, match="sgd_step takes the hyperparameter 'lr', which the recipe does not give"):
        Optimizer([torch.ones(1, requires_grad=True)], [sgd_step])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: SGD(p, 0.1, mom=1.5), "SGD: mom must be in [0, 1), got 1.5"),
        (lambda p: SGD(p, -0.1), "SGD: lr must be a finite number of at least 0, got -0.1"),
        (lambda p: SGD(p, 0.1, wd=-1), "SGD: wd must be a finite number of at least 0, got -1"),
        (lambda p: Adam(p, 0.1, sqr_mom=1), "Adam: sqr_mom must be in [0, 1), got 1"),
        (lambda p: Adam(p, 0.1, eps=0), "Adam: eps must be a finite number greater than 0, got 0"),
        (lambda p: Adam(p, float("nan")), "Adam: lr must be a finite number of at least 0, got nan"),
        (lambda p: Adam(p, "fast"), "Adam: lr must be a number, got 'fast'"),
        (lambda p: SGD([{"params": p, "mom": 2}], 0.1), "SGD: mom must be in [0, 1), got 2"),
        (lambda p: SGD([], 0.1), "there are no parameters to train: the model has none, or all of them are frozen"),
    ],
)
def test_bad_hyperparameters_are_refused(make: Callable[[list[Tensor]], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        make([torch.ones(1, requires_grad=True)])
    assert str(caught.value) == message


def test_sparse_gradient_is_refused() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="Adam does not take sparse gradients"):
        Adam(embedding.parameters(), 0.1).step()


def test_state_of_another_rule_is_refused() -> None:
    p = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="this state is not of Adam: it has no sqr_mom, but lr, mom, wd"):
        Adam([p], 0.1).load_state_dict(SGD([p], 0.1).state_dict())


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(TypeError, match="Adam does not take complex parameters"):
        Adam([torch.ones(2, dtype=torch.complex64, requires_grad=True)], 0.1)


Rule = Callable[[Tensor, Tensor, dict[str, Tensor], int], Tensor]


def naive_qhadam(p: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    s["m"], s["v"] = 0.9 * s.get("m", 0 * p) + 0.1 * g, 0.99 * s.get("v", 0 * p) + 0.01 * g * g
    m, v = s["m"] / (1 - 0.9**t), s["v"] / (1 - 0.99**t)
    return p - 0.01 * (0.3 * g + 0.7 * m) / ((0.2 * g * g + 0.8 * v).sqrt() + 1e-8)


def naive_qhadam_with_nu_2_of_one(p: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    s["m"], s["v"] = 0.999 * s.get("m", 0 * p) + 0.001 * g, 0.999 * s.get("v", 0 * p) + 0.001 * g * g
    m, v = s["m"] / (1 - 0.999**t), s["v"] / (1 - 0.999**t)
    return p - 0.01 * (0.3 * g + 0.7 * m) / (v.sqrt() + 1e-8)


def naive_lion(p: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    m = s.get("m", 0 * p)
    s["m"] = 0.99 * m + 0.01 * g
    return p * (1 - 0.01 * 0.1) - 0.01 * (0.9 * m + 0.1 * g).sign()


def naive_lamb(p: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    s["m"], s["v"] = 0.9 * s.get("m", 0 * p) + 0.1 * g, 0.99 * s.get("v", 0 * p) + 0.01 * g * g
    d = (s["m"] / (1 - 0.9**t)) / ((s["v"] / (1 - 0.99**t)).sqrt() + 1e-5)
    q = min(float(p.norm() / d.norm()), 10.0) if float(p.norm()) and float(d.norm()) else 1.0
    return p - 0.01 * q * d


def naive_larc(p: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    r = float(0.02 * p.norm() / (g.norm() + 1e-8)) if float(p.norm()) and float(g.norm()) else 1.0
    s["m"] = 0.9 * s.get("m", 0 * p) + min(r, 1.0) * g
    return p - 0.1 * s["m"]


def naive_lars(p: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    r = float(5.0 * p.norm() / (g.norm() + 1e-8)) if float(p.norm()) and float(g.norm()) else 1.0
    s["m"] = 0.9 * s.get("m", 0 * p) + r * g
    return p - 0.01 * s["m"]


def naive_l1(p: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    s["m"] = 0.9 * s.get("m", 0 * p) + g + 0.05 * p.sign()
    return p - 0.1 * s["m"]


NAIVE: dict[str, tuple[Make, Rule]] = {
    "QHAdam": (lambda p: QHAdam(p, 0.01, 0.9, 0.99, 0.7, 0.8), naive_qhadam),
    "QHAdam default": (lambda p: QHAdam(p, 0.01), naive_qhadam_with_nu_2_of_one),
    "Lion": (lambda p: Lion(p, 0.01, wd=0.1), naive_lion),
    "Lamb": (lambda p: Lamb(p, 0.01), naive_lamb),
    "Larc": (lambda p: Larc(p, 0.1), naive_larc),
    "LARS": (lambda p: Larc(p, 0.01, clip=False, trust=5.0), naive_lars),
    "SGD l1": (lambda p: SGD(p, 0.1, mom=0.9, l1=0.05), naive_l1),
}


@pytest.mark.parametrize("name", NAIVE)
def test_rule_that_torch_lacks_equals_its_naive_version(name: str) -> None:
    make, rule = NAIVE[name]
    mine = run(make, torch.float64)
    theirs = [p.detach().clone() for p in parameters(torch.float64)]
    states: list[dict[str, Tensor]] = [{} for _ in theirs]
    made = [0] * len(theirs)
    generator = torch.Generator().manual_seed(1)
    for i in range(100):
        grads = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in theirs]
        for j, g in enumerate(grads):
            if j < len(theirs) - 1 or i % 3:
                made[j] += 1
                theirs[j] = rule(theirs[j], g, states[j], made[j])
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


EVERY = {**{name: mine for name, (mine, _) in PAIRS.items()}, **{name: mine for name, (mine, _) in NAIVE.items()}}


@pytest.mark.parametrize("name", EVERY)
def test_all_forms_of_a_rule_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = run(EVERY[name], torch.float64, steps=20)
    monkeypatch.setattr(optimizer, "fits_fused", lambda p: False)
    by_steppers = run(EVERY[name], torch.float64, steps=20)
    monkeypatch.setattr(blocks, "SMALL", 6)
    monkeypatch.setattr(blocks, "BLOCK", 7)  # cuts the larger parameters, puts the smaller ones together
    in_blocks = run(EVERY[name], torch.float64, steps=20)
    for p, q, r in zip(usual, by_steppers, in_blocks, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(q, r, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", EVERY)
def test_state_of_every_rule_goes_through_a_file_exactly(name: str) -> None:
    def go(params: list[Tensor], opt: torch.optim.Optimizer, steps: range) -> None:
        for i in steps:
            generator = torch.Generator().manual_seed(i)
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            opt.step()

    straight = parameters(torch.float32)
    go(straight, EVERY[name](straight), range(6))
    first = parameters(torch.float32)
    opt = EVERY[name](first)
    go(first, opt, range(3))
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    second = [p.detach().clone().requires_grad_() for p in first]
    resumed = EVERY[name](second)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    go(second, resumed, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(straight, second, strict=True))


def test_nesterov_with_dampening_is_refused() -> None:
    with pytest.raises(ValueError, match="give it without dampening"):
        SGD([torch.ones(1, requires_grad=True)], 0.1, mom=0.9, nesterov=True, dampening=0.1)


def test_pickled_optimizer_steps_like_the_original() -> None:
    import pickle

    model, opt = trained(Adam, 2)
    twin_model, twin = pickle.loads(pickle.dumps((model, opt)))
    for m, o in ((model, opt), (twin_model, twin)):
        m(torch.ones(1, 3)).sum().backward()
        o.step()
    assert torch.equal(model.weight, twin_model.weight)


def test_momentum_of_a_group_counts_in_rmsprop_too() -> None:
    mine, theirs = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    ours = RMSProp([{"params": [mine], "mom": 0.9}], 0.01)
    torchs = T.RMSprop([{"params": [theirs], "momentum": 0.9}], 0.01)
    for _ in range(5):
        mine.grad = theirs.grad = torch.ones(3)
        ours.step()
        torchs.step()
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("change", ["model", "state"])
@pytest.mark.parametrize("opt_func", [Adam, lambda p, lr: SGD(p, lr, mom=0.9), Adagrad])
def test_state_of_another_memory_layout_is_laid_out_like_its_parameter(
    opt_func: Callable[..., torch.optim.Optimizer], change: str
) -> None:
    def go(changed: bool) -> Tensor:
        p = torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
        opt = opt_func([p], lr=0.1)
        for i in range(4):
            if changed and i == 2 and change == "model":
                p.data = p.data.to(memory_format=torch.channels_last)
            if changed and i == 2 and change == "state":
                for name, value in opt.state[p].items():
                    if isinstance(value, Tensor):
                        opt.state[p][name] = value.to(memory_format=torch.channels_last)
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
            p.grad = p.grad.to(memory_format=torch.channels_last) if not p.is_contiguous() else p.grad
            opt.step()
        return p.detach().contiguous()

    torch.testing.assert_close(go(changed=True), go(changed=False), rtol=1e-6, atol=1e-7)


def test_momentum_products_of_nadam_do_not_depend_on_who_asked_before() -> None:
    from minilearn.optim.steppers import _momentum_product, _products

    def naive(step: int) -> float:
        return math.prod(0.9 * (1 - 0.5 * 0.96 ** (t * 0.004)) for t in range(1, step + 1))

    _products.clear()
    for step in (5, 6, 2, 3, 6, 7, 1):
        assert _momentum_product(0.9, 0.004, step) == pytest.approx(naive(step), rel=1e-12)


# ---- what is kept from step to step ----


def change_rate(opt: Optimizer, params: list[Tensor]) -> None:
    opt.param_groups[0]["lr"] = 0.5


def change_momentum(opt: Optimizer, params: list[Tensor]) -> None:
    opt.param_groups[1]["mom"] = 0.0


def rate_as_a_tensor(opt: Optimizer, params: list[Tensor]) -> None:
    opt.param_groups[0]["lr"] = torch.tensor(0.1)
    opt.param_groups[1]["lr"] = torch.tensor(0.1)


def fill_the_rate(opt: Optimizer, params: list[Tensor]) -> None:
    if isinstance(opt.param_groups[0]["lr"], Tensor):
        opt.param_groups[0]["lr"].fill_(0.3)


def move_over(opt: Optimizer, params: list[Tensor]) -> None:
    """The last parameter of the first group is the first of the second: in all they are the same ones."""
    opt.param_groups[1]["params"].insert(0, opt.param_groups[0]["params"].pop())


def take_out(opt: Optimizer, params: list[Tensor]) -> None:
    opt.param_groups[0]["params"].pop(0)


def exchange(opt: Optimizer, params: list[Tensor]) -> None:
    """A parameter in place of another."""
    params[0] = params[0].detach().clone().requires_grad_()
    opt.param_groups[0]["params"][0] = params[0]


def other_precision(opt: Optimizer, params: list[Tensor]) -> None:
    for p in params:
        p.data = p.data.double()
        p.grad = None


def another_group(opt: Optimizer, params: list[Tensor]) -> None:
    params.append(torch.ones(3, requires_grad=True))
    opt.add_param_group({"params": [params[-1]], "lr": 0.2})


CHANGES = [
    [change_rate],
    [change_momentum],
    [rate_as_a_tensor, fill_the_rate, fill_the_rate],
    [move_over, change_rate],
    [take_out],
    [exchange],
    [other_precision],
    [another_group],
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: changes[0].__name__)
def test_changes_between_steps_count_at_once(changes: list[Callable[..., None]]) -> None:
    def trained(*, kept: bool) -> list[Tensor]:
        params = [torch.ones(2, 3), torch.ones(4), torch.ones(5)]
        params = [p.requires_grad_() for p in params]
        groups = [{"params": params[:2], "wd": 0.1}, {"params": params[2:], "wd": 0.1}]
        opt = SGD(groups, 0.1, mom=0.9)
        for i in range(2 * len(changes) + 3):
            if i % 2 and i // 2 < len(changes):
                changes[i // 2](opt, params)
            for p in params:
                p.grad = torch.full_like(p, 0.1 * (i + 1))
            if not kept:
                opt._held = None
            opt.step()
        return [p.detach() for p in params]

    assert all(map(torch.equal, trained(kept=True), trained(kept=False)))


def test_group_that_changes_is_another_step() -> None:
    """The test above would pass if nothing changed anything."""

    def trained(changes: list[Callable[..., None]]) -> Tensor:
        params = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
        opt = SGD([{"params": params[:1]}, {"params": params[1:]}], 0.1, mom=0.9)
        for change in [*changes, lambda *_: None]:
            for p in params:
                p.grad = torch.ones_like(p)
            opt.step()
            change(opt, params)
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
        return torch.cat([p.detach() for p in params])

    plain = trained([])
    assert not torch.equal(trained([change_rate])[:2], plain[:2])
    assert not torch.equal(trained([change_momentum])[2:], plain[2:])

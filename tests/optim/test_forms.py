"""Wherever and however a rule runs, it gives the same numbers: in blocks, compiled, sparse, at the edges."""

import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
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
    Lookahead,
    NAdam,
    Optimizer,
    QHAdam,
    RAdam,
    RMSProp,
    compiled,
    optimizer,
)
from minilearn.optim.apart import apart
from minilearn.optim.blocks import BLOCK
from minilearn.optim.calls import rules_of
from minilearn.optim.steppers import only_with, sgd_step, whole

Make = Callable[..., torch.optim.Optimizer]
SHAPES: tuple[tuple[int, ...], ...] = ((5,), (4, 3), (), (0,))

# Each by steppers, as no kernel does their work.
COMPILED: dict[str, Callable[..., Optimizer]] = {
    "SGD dampening": lambda p, **kw: SGD(p, 0.1, mom=0.9, dampening=0.3, **kw),
    "RMSProp centred": lambda p, **kw: RMSProp(p, 0.01, mom=0.9, centered=True, l1=0.01, **kw),
    "Adadelta": lambda p, **kw: Adadelta(p, wd=0.01, **kw),
    "QHAdam": lambda p, **kw: QHAdam(p, 0.01, nu_2=0.8, wd=0.1, decouple_wd=False, **kw),
}


@pytest.fixture
def compiler() -> Iterator[None]:
    """torch's compiler with its own deprecation warnings silenced; none where there is no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        pytest.skip(f"needs a C++ compiler: {error}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def trained(make: Make, steps: int = 5, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> list[Tensor]:
    """Parameters of several shapes after a few steps with the same random gradients."""
    params = [nn.Parameter(random_of(shape, 100 + i, dtype)) for i, shape in enumerate(SHAPES)]
    opt = make(params)
    for i in range(steps):
        for j, p in enumerate(params):
            p.grad = random_of(p.shape, 10 * i + j, dtype) * scale
        opt.step()
    return [p.detach() for p in params]


def random_of(shape: Any, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(mine: list[Tensor], wanted: list[Tensor], rtol: float = 1e-12) -> None:
    torch.testing.assert_close(mine, wanted, rtol=rtol, atol=rtol)


# ---- compiled ----


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_rule_gives_the_numbers_of_its_steppers(name: str) -> None:
    made: list[Optimizer] = []

    def compiling(params: list[Tensor]) -> Optimizer:
        made.append(COMPILED[name](params, compile=True))
        return made[-1]

    close(trained(compiling), trained(COMPILED[name]))
    assert not made[0]._compiler.failed


@pytest.mark.usefixtures("compiler")
def test_second_optimizer_of_a_rule_compiles_nothing() -> None:
    trained(lambda p: COMPILED["Adadelta"](p, compile=True))
    before = set(compiled._compiled)
    trained(lambda p: COMPILED["Adadelta"](p, compile=True), steps=7)
    assert set(compiled._compiled) == before


WHOLE: dict[str, Callable[..., Optimizer]] = {
    "Lamb": lambda p, **kw: Lamb(p, 0.01, wd=0.1, **kw),
    "Lamb L2": lambda p, **kw: Lamb(p, 0.01, wd=0.1, decouple_wd=False, **kw),
    "Larc": lambda p, **kw: Larc(p, 0.1, wd=0.1, **kw),
    "LARS": lambda p, **kw: Larc(p, 0.01, clip=False, trust=5.0, l1=0.01, **kw),
}


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", WHOLE)
def test_compiled_rule_that_measures_parameters_gives_the_numbers_of_its_steppers(
    name: str, dtype: torch.dtype, rtol: float
) -> None:
    """Of large parameters, one of zeros with zeros for its first gradients, small ones of one shape, and odd ones."""

    def go(compiles: bool) -> list[Tensor]:
        shapes = ((150_001,), (130, 129), (17_000,), (4, 3), (4, 3), *SHAPES)
        params = [nn.Parameter(random_of(shape, i, dtype) * (i != 1)) for i, shape in enumerate(shapes)]
        opt = WHOLE[name](params, compile=compiles)
        for step in range(4):
            for i, p in enumerate(params):
                p.grad = random_of(p.shape, 10 * step + i, dtype) * (i != 1 or step > 1)
            opt.step()
        return [p.detach() for p in params]

    before = len(compiled._compiled)
    mine = go(compiles=True)  # a warning of the compiler's would be an error
    assert len(compiled._compiled) == before + 1  # whatever the length
    close(mine, go(compiles=False), rtol)


def with_assignments(params: list[Tensor], grads: list[Tensor], avg: list[Tensor], *, lr: float, step: int) -> Any:
    """avg ← 0.9·avg + g/t, p ← (p - lr·avg)·0.99, written as one writes Python."""
    for p, g, a in zip(params, grads, avg, strict=True):
        a *= 0.9  # noqa: PLW2901 -- it changes the tensor
        a += g / step  # noqa: PLW2901
        p -= lr * a  # noqa: PLW2901
        p *= 0.99  # noqa: PLW2901
    return grads


@pytest.mark.usefixtures("compiler")
def test_compiled_stepper_may_be_written_with_assignments_and_whole_numbers() -> None:
    before = len(compiled._compiled)
    mine = trained(lambda p: Optimizer(p, [with_assignments], compile=True, lr=0.1))
    close(mine, trained(lambda p: Optimizer(p, [with_assignments], lr=0.1)))
    assert len(compiled._compiled) == before + 1  # not one for each step's number


def shrunk_and_moved(params: list[Tensor], grads: list[Tensor], avg: list[Tensor], *, lr: float, wd: float) -> Any:
    """p ← p·(1 - lr·wd)·0.999 - lr·avg², by operators, of which the last alone looks at the direction."""
    for p, g, a in zip(params, grads, avg, strict=True):
        a.mul_(0.9).add_(g)
        p *= 1 - lr * wd  # noqa: PLW2901 -- it changes the tensor
        p.mul_(0.999)
        p.sub_(a * a, alpha=lr)
    return grads


def along_the_average(params: list[Tensor], grads: list[Tensor], avg: list[Tensor], *, lr: float) -> list[Tensor]:
    """Each parameter moves along what is kept as its state too, which must still be there in the next step."""
    for p, g, a in zip(params, grads, avg, strict=True):
        a.mul_(0.9).add_(g)
        p.add_(a, alpha=-lr)
    return grads


def by_itself(params: list[Tensor], grads: list[Tensor], *, lr: float) -> list[Tensor]:
    """The direction depends on the parameter."""
    for p, g in zip(params, grads, strict=True):
        p.sub_(g * p.abs(), alpha=lr)
    return grads


def twice(params: list[Tensor], grads: list[Tensor], *, lr: float) -> list[Tensor]:
    """The parameter is moved, and looked at once more."""
    for p, g in zip(params, grads, strict=True):
        p.add_(g, alpha=-lr)
        p.mul_(0.9)
    return grads


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("lr", [0.1, 0.0, 1e-40])
@pytest.mark.parametrize(
    ("stepper", "in_two"), [(shrunk_and_moved, True), (along_the_average, True), (by_itself, False), (twice, False)]
)
def test_small_parameters_stay_where_they_are_if_a_rule_only_moves_them(stepper: Any, in_two: bool, lr: float) -> None:
    made: list[Optimizer] = []
    hypers = {"lr": lr, "wd": 0.5} if stepper is shrunk_and_moved else {"lr": lr}

    def compiling(params: list[Tensor]) -> Optimizer:
        made.append(Optimizer(params, [stepper], compile=True, **hypers))
        return made[-1]

    close(trained(compiling), trained(lambda p: Optimizer(p, [stepper], **hypers)))
    opt = made[0]
    rules, names = rules_of(opt._calls, opt.param_groups[0], 1)
    prepared = opt._prepared(names, rules)
    assert prepared is not None
    assert (apart(prepared) is not None) is in_two
    assert not opt._compiler.failed


@pytest.mark.usefixtures("compiler")
def test_compiled_stepper_that_counts_for_itself_is_heeded_in_each_step() -> None:
    class Warms:
        """A rate that grows, kept by the stepper alone."""

        __name__ = "warms"

        def __init__(self) -> None:
            self.steps = 0.0

        def __call__(self, params: list[Tensor], grads: list[Tensor], *, lr: float) -> list[Tensor]:
            self.steps += 1
            for p, g in zip(params, grads, strict=True):
                p.add_(g, alpha=-lr * self.steps)
            return grads

    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    opt, moved = Optimizer([p], [Warms()], compile=True, lr=0.1), []  # type: ignore[list-item]
    for _ in range(4):
        before = p.detach().clone()
        p.grad = torch.ones_like(p)
        opt.step()
        moved.append(float((before - p.detach())[0]))
    assert not opt._compiler.failed
    assert moved[0] < moved[1] < moved[2] < moved[3]


@pytest.mark.usefixtures("compiler")
def test_compiled_step_leaves_the_gradients_as_they_are() -> None:
    p = nn.Parameter(random_of((5, 3), 0))
    p.grad = random_of(p.shape, 1)
    wanted = p.grad.clone()
    Adadelta([p], compile=True).step()
    assert torch.equal(p.grad, wanted)


def by_length(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    return [g / g.norm().clamp(min=1e-3) for g in grads]


def by_number(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    return [g / max(g.numel(), 1) for g in grads]


def by_number_of_its_own(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    return [g * g.numel() for g in grads]


def through_a_view(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    for p in params:
        p.view(p.shape).mul_(0.5)
    return grads


def through_detach(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    for p, g in zip(params, grads, strict=True):
        p.detach().add_(g)
    return grads


def of_several(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    return [torch.stack((g, g)).mean(0) for g in grads]


def by_value(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    return [g if g.sum() > 0 else -g for g in grads]


CANNOT = [by_length, by_number, by_number_of_its_own, through_a_view, through_detach, of_several, by_value]


@pytest.mark.parametrize("stepper", CANNOT)
def test_stepper_that_cannot_be_compiled_runs_as_it_is_with_one_warning(stepper: Any) -> None:
    with pytest.warns(RuntimeWarning, match="compile=True has no effect") as caught:
        mine = trained(lambda p: Optimizer(p, [stepper, sgd_step], compile=True, lr=0.1))
    assert len(caught) == 1
    close(mine, trained(lambda p: Optimizer(p, [stepper, sgd_step], lr=0.1)))


@whole
def of_one_axis(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    return [g / g.norm(dim=-1, keepdim=True).clamp(min=1e-3) for g in grads]


@whole
def along_an_axis(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    return [g.cumsum(-1) for g in grads]


@pytest.mark.parametrize("stepper", [of_one_axis, along_an_axis])
def test_stepper_that_depends_on_a_parameters_shape_is_not_compiled(stepper: Any) -> None:
    p, q = (nn.Parameter(torch.ones(130, 129)) for _ in range(2))
    p.grad = q.grad = random_of(p.shape, 0)
    with pytest.warns(RuntimeWarning, match="gives something else for a matrix than for its numbers in a line"):
        Optimizer([p], [stepper, sgd_step], compile=True, lr=0.1).step()
    Optimizer([q], [stepper, sgd_step], lr=0.1).step()
    assert torch.equal(p, q)


def test_loading_a_state_does_not_warn_of_the_compiler_again() -> None:
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    opt = Optimizer([p], [by_length, sgd_step], compile=True, lr=0.1)
    with pytest.warns(RuntimeWarning, match="norm looks at a whole parameter: mark its stepper as `whole`"):
        opt.step()
    opt.load_state_dict(opt.state_dict())
    opt.step()


def test_without_a_compiler_there_is_one_warning_and_the_same_numbers(tmp_path: Path) -> None:
    code = """
import warnings, torch
from minilearn.optim import RMSProp
p, q = torch.ones(5, requires_grad=True), torch.ones(5, requires_grad=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", RuntimeWarning)
    mine, plain = RMSProp([p], 0.1, centered=True, compile=True), RMSProp([q], 0.1, centered=True)
    for i in range(3):
        p.grad, q.grad = torch.full((5,), i + 1.0), torch.full((5,), i + 1.0)
        mine.step(), plain.step()
texts = [str(one.message) for one in caught if one.category is RuntimeWarning]
assert len(texts) == 1 and "compile=True has no effect" in texts[0], texts
assert torch.equal(p, q)
"""
    nowhere = {"CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **nowhere})


@pytest.mark.parametrize("make", [Adam, Lion, lambda p, lr: Lookahead(Adam(p, lr), k=2)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_training_step_with_the_optimizers_step_in_it_may_be_compiled(make: Make) -> None:
    def go(compiles: bool) -> list[Tensor]:
        weight = nn.Parameter(random_of((2, 3), 0))
        opt = make([weight], 0.1)

        def step(x: Tensor) -> None:
            (weight @ x).square().mean().backward()
            opt.step()
            opt.zero_grad()

        run = torch.compile(step, backend="eager") if compiles else step
        for i in range(5):
            run(random_of((3, 4), i))
        return [weight.detach()]

    close(go(compiles=True), go(compiles=False), rtol=1e-6)


# ---- kernels beside steppers ----


@pytest.mark.parametrize("make", [SGD, Adam, RAdam, NAdam, QHAdam, Lion])
def test_momentum_that_is_0_for_a_while_gives_the_same_in_all_forms(make: Make, monkeypatch: Any) -> None:
    def go() -> list[Tensor]:
        p = nn.Parameter(random_of((7,), 0, torch.float64))
        opt = make([p], 0.01, mom=0.9)
        for i in range(9):
            opt.param_groups[0]["mom"] = 0.0 if 3 <= i < 6 else 0.9
            p.grad = random_of((7,), i, torch.float64)
            opt.step()
        return [p.detach(), *(value for value in opt.state[p].values() if isinstance(value, Tensor))]

    usual = go()
    monkeypatch.setattr(optimizer, "fits_fused", lambda p: False)
    close(usual, go())


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("make", [Adam, RAdam, NAdam, QHAdam, Lion, RMSProp])
def test_kernels_agree_with_steppers_on_tiny_and_huge_gradients(make: Make, scale: float, monkeypatch: Any) -> None:
    usual = trained(lambda p: make(p, 0.01), dtype=torch.float32, scale=scale, steps=12)
    monkeypatch.setattr(optimizer, "fits_fused", lambda p: False)
    wanted = trained(lambda p: make(p, 0.01), dtype=torch.float32, scale=scale, steps=12)
    for p, q in zip(usual, wanted, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_rmsprop_leaves_the_gradient_as_it_was() -> None:
    p = nn.Parameter(torch.ones(37))
    p.grad = random_of((37,), 0) * 10.0 ** torch.arange(-37.0, 0.0)
    before = p.grad.clone()
    RMSProp([p], 0.1).step()
    assert torch.equal(p.grad, before)


def test_nadam_knows_its_product_after_ten_million_steps_at_once() -> None:
    from minilearn.optim.steppers import _momentum_product

    assert _momentum_product(0.9, 0.004, 10_000_000) < 1e-20


# ---- sparse ----


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own Adagrad makes some without
@pytest.mark.parametrize("sparse_dim", [1, 2])
@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize(("ours", "torchs"), [(SGD, torch.optim.SGD), (Adagrad, torch.optim.Adagrad)])
def test_sparse_gradients_beside_dense_ones_as_in_torch(
    ours: Make, torchs: Make, coalesced: bool, sparse_dim: int
) -> None:
    def go(make: Make) -> list[Tensor]:
        p, q = nn.Parameter(random_of((6, 5, 4), 0, torch.float64)), nn.Parameter(random_of((3,), 1, torch.float64))
        opt = make([p, q], 0.1)
        for i, rows in enumerate((7, 2, 0, 9)):
            generator = torch.Generator().manual_seed(i)
            at = torch.stack([torch.randint(0, n, (rows,), generator=generator) for n in p.shape[:sparse_dim]])
            values = random_of((rows, *p.shape[sparse_dim:]), i, torch.float64)
            grad = torch.sparse_coo_tensor(at, values, p.shape, check_invariants=True)
            p.grad, q.grad = grad.coalesce() if coalesced else grad, random_of((3,), i, torch.float64)
            opt.step()
        return [p.detach(), q.detach()]

    close(go(ours), go(torchs))


# ---- parameters and groups that change ----


STEPPERS: dict[str, Make] = {
    "Adam": lambda p: Adam(p, 0.1),
    "RMSProp centred": lambda p: RMSProp(p, 0.1, mom=0.5, centered=True),
    "Lion": lambda p: Lion(p, 0.1),
}


@pytest.mark.parametrize("shapes", [[(5,), (4, 3)], [(150_000,), (3,)]], ids=str)
@pytest.mark.parametrize("name", STEPPERS)
def test_model_may_become_double_and_go_back(name: str, shapes: list[tuple[int, ...]]) -> None:
    def go(changes: bool) -> list[Tensor]:
        params = [nn.Parameter(random_of(shape, 0)) for shape in shapes]
        opt = STEPPERS[name](params)
        for i in range(6):
            for p in params:
                if changes and i in (2, 4):
                    p.grad, p.data = None, p.data.double() if i == 2 else p.data.float()
                p.grad = random_of(p.shape, i, p.dtype)
            opt.step()
        return [p.detach() for p in params]

    close(go(changes=True), go(changes=False), rtol=1e-5)


@pytest.mark.parametrize("size", [7, 150_000])
@pytest.mark.parametrize("name", STEPPERS)
def test_parameter_may_change_its_size_where_the_state_is_cleared(name: str, size: int) -> None:
    p = nn.Parameter(torch.zeros(size))
    opt = STEPPERS[name]([p])
    for n in (size, 3):
        p.grad, p.data = None, p.data[:n]
        opt.state.clear()
        p.grad = torch.ones(n)
        opt.step()
    assert (p != 0).all()


def test_memory_does_not_grow_where_other_parameters_have_gradients_in_each_step() -> None:
    chance = random.Random(0)
    params = [nn.Parameter(torch.zeros(10)) for _ in range(20)]
    opt = Lion(params, 0.1)
    for _ in range(50):
        for p in params:
            p.grad = torch.ones(10) if chance.random() < 0.8 else None
        opt.step()
    held = [len(bundle.params) for plan in opt._blocks._plans.values() for bundle in plan.bundles]
    assert sum(held) <= len(params)


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0,), ()])
@pytest.mark.parametrize("name", STEPPERS)
def test_parameter_without_numbers_or_without_axes_is_taken_alone(name: str, shape: tuple[int, ...]) -> None:
    p = nn.Parameter(torch.ones(shape))
    p.grad = torch.ones(shape)
    STEPPERS[name]([p]).step()
    assert (p != 1).all()


@pytest.mark.parametrize("name", STEPPERS)
def test_default_device_does_not_matter(name: str) -> None:
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    with torch.device("meta"):
        STEPPERS[name]([p]).step()
    assert (p != 1).all()


def test_optimizer_whose_steppers_are_all_off_does_nothing() -> None:
    @only_with("strength")
    def shrink(params: list[Tensor], grads: list[Tensor], *, strength: float) -> list[Tensor]:
        for p in params:
            p.mul_(1 - strength)
        return grads

    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    opt = Optimizer([p], [shrink], strength=0.0)
    opt.step()
    assert p.tolist() == [1, 1]


def test_group_knows_torchs_names_in_every_way_of_asking() -> None:
    group = SGD([torch.ones(1, requires_grad=True)], 0.1, mom=0.8).param_groups[0]
    assert group.get("momentum") == group.setdefault("momentum", 0.1) == group["momentum"] == 0.8
    group.update({"momentum": 0.7}, weight_decay=0.2)
    assert (group["mom"], group["wd"]) == (0.7, 0.2)
    assert "momentum" in group
    assert "momentum" not in dict(group)
    assert group.get("betas", 3) == 3
    assert group.pop("momentum") == 0.7
    assert "mom" not in group
    assert group.pop("momentum", 5) == 5
    del group["weight_decay"]
    assert "wd" not in group


def test_saved_groups_are_plain_dicts_of_plain_numbers() -> None:
    groups = Adam([torch.ones(1, requires_grad=True)], 0.1).state_dict()["param_groups"]
    assert type(groups[0]) is dict
    assert json.loads(json.dumps(groups)) == groups


def test_betas_of_a_group_are_refused_as_they_would_have_no_effect() -> None:
    with pytest.raises(ValueError, match="a group's betas are given by the names of its numbers, mom and sqr_mom"):
        Adam([{"params": [torch.ones(1, requires_grad=True)], "betas": (0.5, 0.9)}], 0.1)


def test_own_stepper_that_measures_a_parameter_without_saying_so_sees_it_whole() -> None:
    def by_length(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        return [g / g.norm() for g in grads]

    p = nn.Parameter(torch.zeros(3 * BLOCK))
    p.grad = torch.arange(3.0 * BLOCK)
    Optimizer([p], [by_length, sgd_step], lr=1.0).step()
    torch.testing.assert_close(-p.detach(), p.grad / p.grad.norm())

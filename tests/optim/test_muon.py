"""Muon against its formulas written out in float64, against torch's, and in a Learner."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minilearn.data import DataLoaders, digits
from minilearn.learner import Learner
from minilearn.metrics import accuracy
from minilearn.optim import Adam, Muon
from minilearn.optim.muon import orthogonal

Params = list[Tensor]
SHAPES = [(6, 4), (4, 6), (6, 4), (5, 5), (8, 3, 2, 2), (2, 3, 5)]


def parameters(dtype: torch.dtype, shapes: list[tuple[int, ...]] = SHAPES) -> Params:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def gradients(i: int, params: Params) -> Params:
    generator = torch.Generator().manual_seed(1000 + i)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in params]


def steps(opt: torch.optim.Optimizer, params: Params, first: int, last: int) -> None:
    for i in range(first, last):
        for p, g in zip(params, gradients(i, params), strict=True):
            p.grad = g
        opt.step()
        opt.zero_grad()


def naive_orthogonal(m: Tensor) -> Tensor:
    if m.shape[0] > m.shape[1]:
        return naive_orthogonal(m.T).T
    x = m / max(float(m.norm()), 1e-7)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return x


def naive_muon(n: int, lr: float, mom: float, wd: float, match_adam: bool, nesterov: bool) -> Params:
    params = [p.detach() for p in parameters(torch.float64)]
    averages = [torch.zeros_like(p) for p in params]
    for i in range(n):
        for p, g, m in zip(params, gradients(i, params), averages, strict=True):
            m.mul_(mom).add_(g, alpha=1 - mom)
            step = naive_orthogonal(((1 - mom) * g + mom * m if nesterov else m).reshape(len(p), -1))
            rows, columns = step.shape
            scale = 0.2 * math.sqrt(max(rows, columns)) if match_adam else math.sqrt(max(1, rows / columns))
            p.mul_(1 - lr * wd).sub_(lr * scale * step.reshape(p.shape))
    return params


OPTIONS = [
    {"mom": 0.95, "wd": 0.01, "match_adam": True, "nesterov": True},
    {"mom": 0.9, "wd": 0.0, "match_adam": False, "nesterov": True},
    {"mom": 0.8, "wd": 0.1, "match_adam": False, "nesterov": False},
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("options", OPTIONS)
def test_100_steps_equal_the_formula(options: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    params = parameters(dtype)
    steps(Muon(params, 0.02, **options), params, 0, 100)
    for p, wanted in zip(params, naive_muon(100, 0.02, **options), strict=True):
        torch.testing.assert_close(p.detach().double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", OPTIONS)
def test_matrices_go_where_torchs_muon_takes_them_to_its_bfloat16(options: dict[str, Any]) -> None:
    names = {"mom": "momentum", "wd": "weight_decay", "nesterov": "nesterov"}
    adjust = {"adjust_lr_fn": "match_rms_adamw" if options["match_adam"] else "original"}
    mine, theirs = (parameters(torch.float32, SHAPES[:4]) for _ in range(2))
    start = [p.detach().clone() for p in mine]
    steps(Muon(mine, 0.02, **options), mine, 0, 20)
    plain = {theirs: options[own] for own, theirs in names.items()}
    steps(torch.optim.Muon(theirs, 0.02, **plain, **adjust), theirs, 0, 20)
    for p, q, s in zip(mine, theirs, start, strict=True):
        assert (p - q).norm() < 0.02 * (p - s).norm()  # torch iterates in bfloat16 on a CPU too


def test_orthogonal_brings_singular_values_near_1_and_keeps_the_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(3, 20, 30, generator=generator, dtype=torch.float64)
    u, _, vt = torch.linalg.svd(m, full_matrices=False)
    inner = u.mT @ orthogonal(m) @ vt.mT
    s = inner.diagonal(dim1=-2, dim2=-1)
    assert 0.65 < s.min() <= s.max() < 1.25
    torch.testing.assert_close(inner, torch.diag_embed(s))


def test_step_has_the_size_of_adams_whatever_the_shape() -> None:
    for shape in ((64, 64), (16, 256), (256, 16)):
        (p,) = parameters(torch.float32, [shape])
        before = p.detach().clone()
        steps(Muon([p], 1.0, wd=0.0), [p], 0, 1)
        assert 0.15 < (p - before).square().mean().sqrt() < 0.25


def test_zero_gradient_is_no_step() -> None:
    p = torch.ones(3, 4, requires_grad=True)
    p.grad = torch.zeros_like(p)
    Muon([p], 0.1, wd=0.0).step()
    assert torch.equal(p, torch.ones(3, 4))


REST = [(), (5,), (1, 7), (7, 1), (1, 3, 4), (0, 3)]


def test_everything_else_is_adams_bit_for_bit() -> None:
    mine, plain = parameters(torch.float32, REST), parameters(torch.float32, REST)
    steps(Muon(mine, 0.01, wd=0.1), mine, 0, 20)
    steps(Adam(plain, 0.01, wd=0.1), plain, 0, 20)
    assert all(torch.equal(p, q) for p, q in zip(mine, plain, strict=True))


def test_state_is_one_average_for_muons_parameters_and_two_for_adams() -> None:
    params = parameters(torch.float32, [(6, 4), (5,)])
    opt = Muon(params, 0.01)
    steps(opt, params, 0, 1)
    assert [sorted(opt.state[p]) for p in params] == [["grad_avg", "step"], ["grad_avg", "sqr_avg", "step"]]


def kinds(opt: Muon) -> list[tuple[bool, list[tuple[int, ...]]]]:
    return [(group["muon"], [tuple(p.shape) for p in group["params"]]) for group in opt.param_groups]


def test_group_of_both_kinds_becomes_two_with_the_same_settings() -> None:
    params = parameters(torch.float32, [(6, 4), (5,)])
    opt = Muon([{"params": params, "wd": 0.3, "no_wd": False, "layer": 2}], 0.01)
    assert kinds(opt) == [(True, [(6, 4)]), (False, [(5,)])]
    assert [(group["wd"], group["no_wd"], group["layer"]) for group in opt.param_groups] == [(0.3, False, 2)] * 2
    assert [group["mom"] for group in opt.param_groups] == [0.95, 0.9]


def test_group_can_ask_for_adam() -> None:
    params = parameters(torch.float32, [(6, 4), (5, 4)])
    opt = Muon([{"params": params[:1]}, {"params": params[1:], "muon": False}], 0.01)
    assert kinds(opt) == [(True, [(6, 4)]), (False, [(5, 4)])]


def test_modules_and_parameters_named_for_adam_are_adams() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False))
    opt = Muon(model.parameters(), 0.01, adam=[model[0], model[2].weight])
    assert kinds(opt) == [(True, [(6, 4)]), (False, [(9, 4), (3, 6)])]


def test_parameters_with_names_are_taken() -> None:
    opt = Muon(nn.Linear(3, 4).named_parameters(), 0.01)
    assert [group["param_names"] for group in opt.param_groups] == [["weight"], ["bias"]]


def test_saved_state_goes_on_bit_for_bit() -> None:
    shapes = [*SHAPES, *REST]
    whole, halved = parameters(torch.float32, shapes), parameters(torch.float32, shapes)
    steps(Muon(whole, 0.02), whole, 0, 12)
    first, second = Muon(halved, 0.02), Muon(halved, 0.5)
    steps(first, halved, 0, 5)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    steps(second, halved, 5, 12)
    assert all(torch.equal(p, q) for p, q in zip(whole, halved, strict=True))


def test_copy_sorts_groups_that_are_added_later() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    opt, other = copy.deepcopy((Muon(model[0].parameters(), 0.01, adam=[model[1]]), model[1]))
    opt.add_param_group({"params": other.parameters()})
    assert kinds(opt)[2:] == [(False, [(3, 6), (3,)])]


def test_pickled_optimizer_still_steps() -> None:
    params = parameters(torch.float32)
    opt, others = pickle.loads(pickle.dumps((Muon(params, 0.02), params)))
    steps(opt, others, 0, 3)
    steps(Muon(params, 0.02), params, 0, 3)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_channels_last_kernel_takes_the_same_steps() -> None:
    (plain,), (other,) = (parameters(torch.float64, [(8, 3, 2, 2)]) for _ in range(2))
    other = other.detach().to(memory_format=torch.channels_last).requires_grad_()
    steps(Muon([plain], 0.02), [plain], 0, 5)
    steps(Muon([other], 0.02), [other], 0, 5)
    torch.testing.assert_close(plain, other, rtol=1e-12, atol=1e-12)


def test_matrix_without_a_gradient_stays() -> None:
    params = parameters(torch.float32, [(6, 4), (6, 4)])
    before = params[1].detach().clone()
    params[0].grad = torch.ones_like(params[0])
    opt = Muon(params, 0.1)
    opt.step()
    assert torch.equal(params[1], before)
    assert "grad_avg" not in opt.state[params[1]]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))


def cnn() -> nn.Module:
    first = [nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


def accuracy_on_digits(model: nn.Module, opt_func: Callable[..., torch.optim.Optimizer]) -> float:
    dls = DataLoaders.from_tensors(*digits(), bs=64, device="cpu")
    learn = Learner(dls, model, nn.functional.cross_entropy, opt_func, metrics=accuracy)
    with learn.no_logging():
        learn.fit(3, 1e-2)
    return learn.recorder.values[-1][-1] or 0.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [mlp, cnn])
def test_learner_trains_with_it_as_it_is(make: Callable[[], nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    assert accuracy_on_digits(make(), Muon) >= 0.93


@pytest.mark.parametrize("make", [mlp, cnn])
def test_learner_trains_with_the_last_layer_adams(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    assert accuracy_on_digits(model, partial(Muon, adam=[model[-1]])) >= 0.93


def test_learners_weight_decay_is_for_neither_biases_nor_norms() -> None:
    learn = Learner(DataLoaders.from_tensors(*digits(), bs=64), cnn(), opt_func=Muon, wd=0.2)
    learn.create_opt()
    assert [(group["muon"], group["wd"]) for group in learn.opt.param_groups] == [(True, 0.01), (False, 0.0)]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: Muon(p, 0.1, mom=1.5), ValueError, r"Muon: mom must be in \[0, 1\), got 1\.5"),
        (lambda p: Muon(p, 0.1, adam_mom=1), ValueError, r"Muon: adam_mom must be in \[0, 1\), got 1"),
        (lambda p: Muon([{"params": p, "wd": -1}], 0.1), ValueError, "Muon: wd must be a finite number of at least 0"),
        (lambda p: Muon([], 0.1), ValueError, "there are no parameters to train"),
        (lambda p: Muon([{"params": set(p)}], 0.1), TypeError, "ordered collections"),
        (lambda p: Muon(p, 0.1, adam=iter(p)), TypeError, "Muon: adam must be a list of modules and parameters, got"),
        (lambda p: Muon(p, 0.1, adam=["head"]), TypeError, "a list of modules and parameters, but has 'head'"),
    ],
)
def test_argument_out_of_its_range_is_named(
    make: Callable[[Params], Muon], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(parameters(torch.float32))


def test_both_groups_are_one_layer_for_rates_and_freezing() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    opt = Muon([{"params": part.parameters()} for part in model], lr=1e-3)
    opt.set_hyper("lr", slice(1e-5, 1e-3))
    assert [group["lr"] for group in opt.param_groups] == [1e-5, 1e-5, 1e-3, 1e-3]
    opt.freeze()
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_norms_of_a_frozen_layer_are_still_known_when_its_group_is_split() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), nn.Linear(8, 3))
    dls = DataLoaders.from_tensors(torch.rand(8, 4), torch.rand(8, 3))
    splitter = partial(map, nn.Module.parameters)
    learn = Learner(dls, model, nn.functional.mse_loss, Muon, splitter=splitter, wd_bn_bias=True)  # type: ignore[arg-type]
    learn.freeze()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["0.1.weight", "0.1.bias", "1.weight", "1.bias"]


def test_each_kind_keeps_its_rule_where_both_have_the_same_numbers() -> None:
    """As in one cycle, which gives all groups the same momentum."""

    def trained(adam_mom: float) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        opt = Muon(model.parameters(), lr=0.01, mom=0.9, adam_mom=adam_mom, adam=[model[-1]])
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            opt.step()
        return [p.detach() for p in model.parameters()]

    for same, nearly in zip(trained(0.9), trained(0.9 + 1e-9), strict=True):
        torch.testing.assert_close(same, nearly)

"""torch's undocumented multi-tensor and fused functions still do what minilearn.optim.lists says."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from minilearn.optim import lists
from minilearn.optim.packs import Layout, Pack, Scratch

Shapes = tuple[tuple[int, ...], ...]
SHAPES: Shapes = ((), (3,), (2, 2), (0,))
ALIKE: Shapes = ((2, 3), (2, 3))
NONE: Shapes = ((3, 0),)


def tensors(seed: int, shapes: Shapes = SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5 for shape in shapes]


def packed(parts: list[Tensor]) -> Pack:
    """The same numbers one after another in memory."""
    layout = Layout([part.shape for part in parts], Scratch(torch.float64, 100))
    return layout.split(torch.cat([part.reshape(-1) for part in parts]))


Naive = Callable[..., Tensor]
IN_PLACE: list[tuple[Callable[..., None], int, tuple[float, ...], Naive]] = [
    (lists.add_, 1, (0.3,), lambda a, b: a + 0.3 * b),
    (lists.add_number_, 0, (0.3,), lambda a: a + 0.3),
    (lists.mul_, 0, (0.3,), lambda a: a * 0.3),
    (lists.mul_each_, 1, (), lambda a, b: a * b),
    (lists.div_, 0, (0.3,), lambda a: a / 0.3),
    (lists.div_each_, 1, (), lambda a, b: a / b),
    (lists.lerp_, 1, (0.3,), lambda a, b: a + 0.3 * (b - a)),
    (lists.addcmul_, 2, (0.3,), lambda a, b, c: a + 0.3 * b * c),
    (lists.addcdiv_, 2, (0.3,), lambda a, b, c: a + 0.3 * b / c),
    (lists.copy_, 1, (), lambda a, b: b),
    (lists.sqrt_, 0, (), lambda a: a.sqrt()),
    (lists.sign_, 0, (), lambda a: (a > 0).double() - (a < 0).double()),
]
NEW: list[tuple[Callable[..., list[Tensor]], int, tuple[float, ...], Naive]] = [
    (lists.add, 1, (0.3,), lambda a, b: a + 0.3 * b),
    (lists.add_number, 0, (0.3,), lambda a: a + 0.3),
    (lists.mul, 1, (), lambda a, b: a * b),
    (lists.div, 1, (), lambda a, b: a / b),
    (lists.lerp, 1, (0.3,), lambda a, b: a + 0.3 * (b - a)),
    (lists.sqrt, 0, (), lambda a: a.sqrt()),
    (lists.sign, 0, (), lambda a: (a > 0).double() - (a < 0).double()),
    (lists.copy, 0, (), lambda a: a),
    (lists.zeros, 0, (), lambda a: 0 * a),
]
AS_LISTS: list[tuple[str, Callable[[list[list[Tensor]]], list[list[Tensor]]]]] = [
    ("lists", lambda given: given),
    ("packs", lambda given: [packed(one) for one in given]),
    ("a pack and lists", lambda given: [packed(given[0]), *given[1:]]),
]


def name(value: Any) -> str:
    return getattr(value, "__name__", value if isinstance(value, str) else "")


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[1:2], ALIKE, NONE], ids=str)
@pytest.mark.parametrize(("kind", "laid"), AS_LISTS, ids=name)
@pytest.mark.parametrize(("function", "others", "numbers", "naive"), IN_PLACE, ids=name)
def test_in_place_function_is_its_formula(
    function: Callable[..., None],
    others: int,
    numbers: tuple[float, ...],
    naive: Naive,
    kind: str,
    laid: Callable[[list[list[Tensor]]], list[list[Tensor]]],
    shapes: Shapes,
) -> None:
    given = [tensors(seed, shapes) for seed in range(1 + others)]
    wanted = [naive(*parts) for parts in zip(*given, strict=True)]
    operands = laid([[part.clone() for part in one] for one in given])
    function(*operands, *numbers)
    torch.testing.assert_close(list(operands[0]), wanted)
    assert all(torch.equal(p, q) for one, was in zip(operands[1:], given[1:]) for p, q in zip(one, was))  # noqa: B905


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[1:2], ALIKE, NONE], ids=str)
@pytest.mark.parametrize(("kind", "laid"), AS_LISTS, ids=name)
@pytest.mark.parametrize(("function", "others", "numbers", "naive"), NEW, ids=name)
def test_function_that_makes_new_tensors_is_its_formula_and_leaves_the_old_ones(
    function: Callable[..., list[Tensor]],
    others: int,
    numbers: tuple[float, ...],
    naive: Naive,
    kind: str,
    laid: Callable[[list[list[Tensor]]], list[list[Tensor]]],
    shapes: Shapes,
) -> None:
    given = [tensors(seed, shapes) for seed in range(1 + others)]
    wanted = [naive(*parts) for parts in zip(*given, strict=True)]
    operands = laid(given)
    made = function(*operands, *numbers)
    torch.testing.assert_close(list(made), wanted)
    made[0].fill_(7.0)
    assert all(torch.equal(p, q) for one, was in zip(operands, given) for p, q in zip(one, was))  # noqa: B905


def test_results_in_scratch_memory_do_not_share_it_with_one_another() -> None:
    a = packed(tensors(0))
    first, second = lists.add_number(a, 1.0), lists.add_number(a, 2.0)
    torch.testing.assert_close([q - p for p, q in zip(first, second, strict=True)], [torch.ones_like(p) for p in a])


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[1:2], ALIKE], ids=str)
def test_norm_and_scale_work_tensor_by_tensor(shapes: Shapes) -> None:
    parts = tensors(0, shapes)
    lengths = torch.stack([part.square().sum().sqrt() for part in parts])
    factors = torch.arange(1.0, len(parts) + 1, dtype=torch.float64)
    pack = packed(parts)
    for mine in (lists.norm(parts), lists.norm(pack), lists.norm(parts, like=pack)):
        torch.testing.assert_close(mine, lengths)
    for mine in ([part.clone() for part in parts], pack):
        lists.scale_each_(mine, factors)
        torch.testing.assert_close(list(mine), [part * f for part, f in zip(parts, factors, strict=True)])


def test_copy_like_a_pack_is_a_pack() -> None:
    made = lists.copy(tensors(1), like=packed(tensors(0)))
    assert isinstance(made, Pack)
    torch.testing.assert_close(list(made), tensors(1))


@pytest.mark.parametrize(("l2", "decay"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1)])
def test_adam_kernel_is_its_formula(l2: float, decay: float) -> None:
    p, g, m, v = (tensors(seed) for seed in range(4))
    wanted = []
    for p_i, g_i, m_i, v_i in zip(p, g, m, v, strict=True):
        g_l = g_i + l2 * p_i
        new_m, new_v = 0.8 * m_i + 0.2 * g_l, 0.9 * v_i + 0.1 * g_l**2
        scale = (new_v / (1 - 0.9**3)).sqrt() + 1e-3
        wanted.append((p_i * (1 - 0.5 * decay) - 0.5 * new_m / (1 - 0.8**3) / scale, new_m, new_v))
    before = [part.clone() for part in g]
    lists.adam_kernel(lr=0.5, mom=0.8, sqr_mom=0.9, eps=1e-3, step=3, l2=l2, decay=decay)(p, g, m, v)
    torch.testing.assert_close(list(zip(p, m, v, strict=True)), wanted)
    assert all(map(torch.equal, g, before))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("mom", "dampening"), [(0.0, 0.0), (0.8, 0.0), (0.8, 0.3)])
def test_sgd_kernel_is_its_formula(mom: float, dampening: float, nesterov: bool) -> None:
    p, g, m = (tensors(seed) for seed in range(3))
    wanted = []
    for p_i, g_i, m_i in zip(p, g, m, strict=True):
        g_l = g_i + 0.1 * p_i
        new_m = mom * m_i + (1 - dampening) * g_l if mom else m_i
        step = (g_l + mom * new_m if nesterov else new_m) if mom else g_l
        wanted.append((p_i - 0.5 * step, new_m))
    options: Any = {"lr": 0.5, "mom": mom, "dampening": dampening, "l2": 0.1, "nesterov": nesterov}
    lists.sgd_kernel(**options)(p, g, m if mom else [])
    torch.testing.assert_close(list(zip(p, m, strict=True)), wanted)


def test_adagrad_kernel_is_its_formula() -> None:
    p, g, s = (tensors(seed) for seed in range(3))
    wanted = []
    for p_i, g_i, s_i in zip(p, g, s, strict=True):
        g_l = g_i + 0.1 * p_i
        new_s = s_i + g_l**2
        wanted.append((p_i - 0.5 * g_l / (new_s.sqrt() + 1e-3), new_s))
    lists.adagrad_kernel(lr=0.5, eps=1e-3, l2=0.1)(p, g, s)
    torch.testing.assert_close(list(zip(p, s, strict=True)), wanted)


def test_function_left_alone_by_the_compiler_runs_as_it_is() -> None:
    alone = lists.untraced(lambda x: torch.compiler.is_compiling() or x)
    assert torch.compile(lambda: alone(3), backend="eager")() == 3


def test_tensors_that_lie_together_are_one() -> None:
    pack = Layout([(2, 3), (2,)], Scratch(torch.float32, 8)).split(torch.arange(8.0))
    (one,) = lists.as_one(pack)
    assert one.data_ptr() == pack[0].data_ptr()
    assert one.tolist() == list(range(8))
    apart = [torch.ones(2), torch.ones(3)]
    assert lists.as_one(apart) is apart


def test_every_function_of_lists_is_tested_here() -> None:
    here = Path(__file__).read_text()
    public = [n for n, f in vars(lists).items() if callable(f) and getattr(f, "__module__", "") == lists.__name__]
    missing = [n for n in public if not n.startswith("_") and not re.search(rf"lists\.{n}\b", here)]
    assert missing == ["in_order", "fits_fused"]  # minilearn's own, and asked in every step of test_optimizer


def test_making_an_optimizer_does_not_import_torchs_compiler() -> None:
    import subprocess
    import sys

    code = (
        "import sys, torch; from minilearn.optim import Adam; p = torch.ones(1, requires_grad=True); p.grad = p.detach();"
        "o = Adam([p], 0.1); o.step(); o.zero_grad(); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def with_grad(grad: Tensor | None, shape: tuple[int, ...] = (2, 3), **options: Any) -> Tensor:
    p = torch.zeros(shape, **options).requires_grad_()
    p.grad = grad
    return p


def test_plain_grads_are_those_that_one_call_can_take() -> None:
    params = [with_grad(torch.ones(2, 3)), with_grad(torch.ones(4), (4,))]
    grads = lists.plain_grads(params)
    assert grads is not None
    assert all(p.grad is grad for p, grad in zip(params, grads, strict=True))
    assert lists.plain_grads([]) is None
    for other in (
        with_grad(None),
        with_grad(torch.ones(3, 2).t()),
        with_grad(torch.ones(2, 3).to_sparse()),
        with_grad(torch.ones(2, 3, dtype=torch.float64), dtype=torch.float64),
        with_grad(torch.ones(2, 3, device="meta"), device="meta"),
    ):
        assert lists.plain_grads([*params, other]) is None
    last = torch.zeros(2, 2, 2, 2).to(memory_format=torch.channels_last).requires_grad_()
    last.grad = torch.zeros(2, 2, 2, 2)
    assert lists.plain_grads([last]) is None


def test_set_grad_enabled_is_torchs() -> None:
    lists.set_grad_enabled(False)
    assert not torch.is_grad_enabled()
    lists.set_grad_enabled(True)
    assert torch.is_grad_enabled()


def test_is_heard_while_somebody_listens() -> None:
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    assert not lists.is_heard(opt)
    for register in (
        opt.register_step_pre_hook,
        opt.register_step_post_hook,
        register_optimizer_step_pre_hook,
        register_optimizer_step_post_hook,
    ):
        handle = register(lambda *args: None)
        assert lists.is_heard(opt)
        handle.remove()
        assert not lists.is_heard(opt)
    with torch.profiler.profile():
        assert lists.is_heard(opt)
    assert not lists.is_heard(opt)

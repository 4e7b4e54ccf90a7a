"""torch's undocumented multi-tensor functions still do what minilearn.optim.lists says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minilearn.optim import lists


def tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5 for shape in ((), (3,), (2, 2))]


A, B, C = tensors(0), tensors(1), tensors(2)
IN_PLACE: list[tuple[Callable[..., None], tuple[Any, ...], Callable[..., Tensor]]] = [
    (lists.add_, (B, 0.3), lambda a, b: a + 0.3 * b),
    (lists.copy_, (B,), lambda a, b: b),
    (lists.lerp_, (B, 0.3), lambda a, b: a + 0.3 * (b - a)),
    (lists.addcmul_, (B, C, 0.3), lambda a, b, c: a + 0.3 * b * c),
    (lists.addcdiv_, (B, C, 0.3), lambda a, b, c: a + 0.3 * b / c),
    (lists.add_number_, (0.3,), lambda a: a + 0.3),
    (lists.mul_, (0.3,), lambda a: a * 0.3),
    (lists.div_, (0.3,), lambda a: a / 0.3),
]


@pytest.mark.parametrize(("function", "args", "naive"), IN_PLACE, ids=lambda value: getattr(value, "__name__", ""))
def test_in_place_function_is_its_formula(
    function: Callable[..., None], args: tuple[Any, ...], naive: Callable[..., Tensor]
) -> None:
    mine = [a.clone() for a in A]
    function(mine, *args)
    others = [arg for arg in args if isinstance(arg, list)]
    for i, a in enumerate(A):
        torch.testing.assert_close(mine[i], naive(a, *(other[i] for other in others)))


def test_functions_that_make_new_tensors_leave_the_old_ones() -> None:
    before = [a.clone() for a in A]
    for mine, wanted in (
        (lists.add(A, B, 0.3), [a + 0.3 * b for a, b in zip(A, B, strict=True)]),
        (lists.sqrt(A), [a.sqrt() for a in A]),
    ):
        torch.testing.assert_close(mine, wanted)
    assert all(torch.equal(a, b) for a, b in zip(A, before, strict=True))


def test_making_an_optimizer_does_not_import_torchs_compiler() -> None:
    import subprocess
    import sys

    code = (
        "import sys, torch; from minilearn.optim import Adam; p = torch.ones(1, requires_grad=True); p.grad = p.detach();"
        "o = Adam([p], 0.1); o.step(); o.zero_grad(); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

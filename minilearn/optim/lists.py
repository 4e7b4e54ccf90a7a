"""Arithmetic on lists of tensors: each function is one call of torch's multi-tensor kernels.

This is the one file that names torch's `_foreach_…` functions, which torch does not document as public;
`tests/optim/test_lists.py` fails where a release of torch changes one.
"""

from typing import cast

import torch
from torch import Tensor

Tensors = list[Tensor]


def add(a: Tensors, b: Tensors, alpha: float = 1.0) -> Tensors:
    """a + alpha·b, in new tensors."""
    return cast(Tensors, torch._foreach_add(a, b, alpha=alpha))


def add_(a: Tensors, b: Tensors, alpha: float = 1.0) -> None:
    """a ← a + alpha·b."""
    torch._foreach_add_(a, b, alpha=alpha)


def add_number_(a: Tensors, number: float) -> None:
    """a ← a + number."""
    torch._foreach_add_(a, number)


def mul_(a: Tensors, factor: float) -> None:
    """a ← factor·a."""
    torch._foreach_mul_(a, factor)


def div_(a: Tensors, divisor: float) -> None:
    """a ← a / divisor."""
    torch._foreach_div_(a, divisor)


def lerp_(a: Tensors, b: Tensors, weight: float) -> None:
    """a ← a + weight·(b - a)."""
    torch._foreach_lerp_(a, b, weight)


def addcmul_(a: Tensors, b: Tensors, c: Tensors, value: float) -> None:
    """a ← a + value·b·c."""
    torch._foreach_addcmul_(a, b, c, value)


def addcdiv_(a: Tensors, b: Tensors, c: Tensors, value: float) -> None:
    """a ← a + value·b/c."""
    torch._foreach_addcdiv_(a, b, c, value)


def sqrt(a: Tensors) -> Tensors:
    """√a, in new tensors."""
    return cast(Tensors, torch._foreach_sqrt(a))

"""Arithmetic on lists of tensors: each function is one call of torch's multi-tensor kernels.

This is the one file that names torch's `_foreach_…` functions, which torch does not document as public;
`tests/optim/test_lists.py` fails where a release of torch changes one.
"""

from typing import Any, cast

import torch
from torch import Tensor

Tensors = list[Tensor]


def add(a: Tensors, b: Tensors, alpha: float = 1.0) -> Tensors:
    """a + alpha·b, in new tensors."""
    return cast(Tensors, torch._foreach_add(a, b, alpha=alpha))


def add_(a: Tensors, b: Tensors, alpha: float = 1.0) -> None:
    """a ← a + alpha·b."""
    torch._foreach_add_(a, b, alpha=alpha)


def add_number(a: Tensors, number: float) -> Tensors:
    """a + number, in new tensors."""
    return cast(Tensors, torch._foreach_add(a, number))


def add_number_(a: Tensors, number: float) -> None:
    """a ← a + number."""
    torch._foreach_add_(a, number)


def mul_(a: Tensors, factor: float) -> None:
    """a ← factor·a."""
    torch._foreach_mul_(a, factor)


def mul(a: Tensors, b: Tensors) -> Tensors:
    """a·b, in new tensors."""
    return cast(Tensors, torch._foreach_mul(a, b))


def mul_each_(a: Tensors, b: Tensors) -> None:
    """a ← a·b; a tensor of b may be a single number."""
    torch._foreach_mul_(a, b)


def div(a: Tensors, b: Tensors) -> Tensors:
    """a / b, in new tensors."""
    return cast(Tensors, torch._foreach_div(a, b))


def div_(a: Tensors, divisor: float) -> None:
    """a ← a / divisor."""
    torch._foreach_div_(a, divisor)


def div_each_(a: Tensors, b: Tensors) -> None:
    """a ← a / b."""
    torch._foreach_div_(a, b)


def lerp(a: Tensors, b: Tensors, weight: float) -> Tensors:
    """a + weight·(b - a), in new tensors."""
    return cast(Tensors, torch._foreach_lerp(a, b, weight))


def lerp_(a: Tensors, b: Tensors, weight: float) -> None:
    """a ← a + weight·(b - a)."""
    torch._foreach_lerp_(a, b, weight)


def addcmul_(a: Tensors, b: Tensors, c: Tensors, value: float) -> None:
    """a ← a + value·b·c."""
    torch._foreach_addcmul_(a, b, c, value)


def addcdiv_(a: Tensors, b: Tensors, c: Tensors, value: float) -> None:
    """a ← a + value·b/c."""
    torch._foreach_addcdiv_(a, b, c, value)


def copy_(a: Tensors, b: Tensors) -> None:
    """a ← b, whatever b's precision."""
    torch._foreach_copy_(a, b)


def sqrt(a: Tensors) -> Tensors:
    """√a, in new tensors."""
    return cast(Tensors, torch._foreach_sqrt(a))


def sqrt_(a: Tensors) -> None:
    """a ← √a."""
    torch._foreach_sqrt_(a)


def sign(a: Tensors) -> Tensors:
    """-1, 0 or 1, in new tensors."""
    return cast(Tensors, torch._foreach_sign(a))


def sign_(a: Tensors) -> None:
    """a ← -1, 0 or 1."""
    torch._foreach_sign_(a)


def norm(a: Tensors) -> Tensors:
    """The Euclidean length of each tensor, as a tensor of one number."""
    return cast(Tensors, torch._foreach_norm(a))


def fused_adam_(
    params: Tensors,
    grads: Tensors,
    grad_avg: Tensors,
    sqr_avg: Tensors,
    *,
    lr: float,
    mom: float,
    sqr_mom: float,
    eps: float,
    wd: float,
    step: int,
    decoupled: bool = True,
) -> None:
    """The whole update of Adam in one pass over the memory, with decoupled decay or L2."""
    steps = [torch.full((), float(step), device=params[0].device)] * len(params)
    kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
    options: Any = {"lr": lr, "beta1": mom, "beta2": sqr_mom, "weight_decay": wd, "eps": eps}
    kernel(params, grads, grad_avg, sqr_avg, [], steps, amsgrad=False, maximize=False, **options)


def fused_sgd_(
    params: Tensors,
    grads: Tensors,
    grad_avg: Tensors,
    *,
    lr: float,
    mom: float,
    wd: float,
    decoupled: bool = True,
    nesterov: bool = False,
) -> None:
    """SGD with momentum in one pass over the memory; the kernel has L2, decoupled decay comes before it."""
    if decoupled and wd:
        mul_(params, 1 - lr * wd)
    options: Any = {"lr": lr, "momentum": mom, "weight_decay": 0.0 if decoupled else wd, "dampening": 0.0}
    torch._fused_sgd_(params, grads, grad_avg, nesterov=nesterov, maximize=False, is_first_step=False, **options)


fused_sgd_.only_with = "mom"  # type: ignore[attr-defined]


def fused_adagrad_(
    params: Tensors, grads: Tensors, sqr_sum: Tensors, *, lr: float, eps: float, wd: float, decoupled: bool = True
) -> None:
    """Adagrad in one pass over the memory; the kernel has L2, decoupled decay comes before it."""
    if decoupled and wd:
        mul_(params, 1 - lr * wd)
    steps = [torch.ones((), device=params[0].device)] * len(params)  # the kernel asks for them, for a decay we have not
    options: Any = {"lr": lr, "lr_decay": 0.0, "weight_decay": 0.0 if decoupled else wd, "eps": eps}
    torch._fused_adagrad_(params, grads, sqr_sum, steps, maximize=False, **options)


def in_order(p: Tensor, other: Tensor) -> bool:
    """Whether a parameter and its gradient, or its state, lie in memory in the same order, without gaps.

    The fused kernels read memory as it comes, whatever the strides say.
    """
    if p.is_contiguous() and other.is_contiguous():
        return True
    return p.stride() == other.stride() and p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last)


def fits_fused(p: Tensor) -> bool:
    """Whether torch has fused kernels for a parameter's device and dtype."""
    return p.dtype in FUSED.get(p.device.type, ())


FUSED = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
}
"""Where torch's fused kernels are used. On a CPU in half precision SGD's with momentum is wrong (torch 2.13)."""

"""Arithmetic on lists of tensors: what the rules are written in.

A name with a trailing underscore changes its first list; any other gives new tensors, and those of a `Pack` last only
until the rule is done with this block of parameters. A list of several tensors is worked on by torch's multi-tensor
kernels; a `Pack`, or a single tensor, by torch's ordinary ones.

This is the one file that names torch's `_foreach_…` and `_fused_…` functions and the like, which are not public;
`tests/optim/test_lists.py` fails where a release of torch changes one.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import optimizer as hooks_for_all

from minilearn.optim.packs import Pack
from minilearn.optim.pieces import Pieces

Tensors = list[Tensor]


def add(a: Tensors, b: Tensors, alpha: float = 1.0) -> Tensors:
    """a + alpha·b."""
    return _new("add", a, b, alpha=alpha)


def add_(a: Tensors, b: Tensors, alpha: float = 1.0) -> None:
    """a ← a + alpha·b."""
    _change("add", a, b, alpha=alpha)


def add_number(a: Tensors, number: float) -> Tensors:
    """a + number."""
    return _new("add", a, number)


def add_number_(a: Tensors, number: float) -> None:
    """a ← a + number."""
    _change("add", a, number)


def mul(a: Tensors, b: Tensors) -> Tensors:
    """a·b."""
    return _new("mul", a, b)


def mul_(a: Tensors, factor: float) -> None:
    """a ← factor·a."""
    _change("mul", a, factor)


def mul_each_(a: Tensors, b: Tensors) -> None:
    """a ← a·b; a tensor of b may be a single number."""
    _change("mul", a, b)


def div(a: Tensors, b: Tensors) -> Tensors:
    """a / b."""
    return _new("div", a, b)


def div_(a: Tensors, divisor: float) -> None:
    """a ← a / divisor."""
    _change("div", a, divisor)


def div_each_(a: Tensors, b: Tensors) -> None:
    """a ← a / b."""
    _change("div", a, b)


def lerp(a: Tensors, b: Tensors, weight: float) -> Tensors:
    """a + weight·(b - a)."""
    return _new("lerp", a, b, weight)


def lerp_(a: Tensors, b: Tensors, weight: float) -> None:
    """a ← a + weight·(b - a)."""
    _change("lerp", a, b, weight)


def addcmul_(a: Tensors, b: Tensors, c: Tensors, value: float) -> None:
    """a ← a + value·b·c."""
    _change("addcmul", a, b, c, value=value)


def addcdiv_(a: Tensors, b: Tensors, c: Tensors, value: float) -> None:
    """a ← a + value·b/c."""
    _change("addcdiv", a, b, c, value=value)


def copy_(a: Tensors, b: Tensors) -> None:
    """a ← b, whatever b's precision."""
    torch._foreach_copy_(a, b)


def sqrt(a: Tensors) -> Tensors:
    """√a."""
    return _new("sqrt", a)


def sqrt_(a: Tensors) -> None:
    """a ← √a."""
    _change("sqrt", a)


def sign(a: Tensors) -> Tensors:
    """-1, 0 or 1."""
    return _new("sign", a)


def sign_(a: Tensors) -> None:
    """a ← -1, 0 or 1."""
    _change("sign", a)


def copy(a: Tensors, like: Tensors | None = None) -> Tensors:
    """The same numbers; in a `Pack` where `like` is one of the same shapes."""
    if isinstance(like, Pack) and not isinstance(a, Pack):
        return like.layout.gather(a)
    if isinstance(a, Pack):
        out = a.layout.fresh()
        out.flat.copy_(a.flat)
        return out
    return [part.clone() for part in a]


def as_one(a: Tensors) -> Tensors:
    """Tensors that lie together in memory as one, which a kernel is sooner called with."""
    return [a.flat] if isinstance(a, Pack) else a


def zeros(like: Tensors) -> Tensors:
    """Zeros."""
    if isinstance(like, Pack):
        out = like.layout.fresh()
        out.flat.zero_()
        return out
    return [torch.zeros_like(part) for part in like]


def norm(a: Tensors, like: Tensors | None = None) -> Tensor:
    """The Euclidean length of each tensor, (tensors,); sooner known where `like` is a `Pack` of the same shapes.

    Where `like` is `Pieces`, a is pieces cut like those, and the lengths are those of the whole tensors.
    """
    if isinstance(like, Pieces):
        return like.lengths(norm(a))
    if len(a) == 1:
        length: Tensor = torch.linalg.vector_norm(a[0])
        return length.reshape((1,))
    if isinstance(like, Pack) and not isinstance(a, Pack) and _rows(like) is not None:
        a = like.layout.gather(a)
    rows = _rows(a)
    lengths: Tensor = torch.stack(torch._foreach_norm(a)) if rows is None else torch.linalg.vector_norm(rows, dim=1)
    return lengths


def scale_each_(a: Tensors, factors: Tensor) -> None:
    """Multiplies each tensor by a factor of its own, (tensors,)."""
    if len(a) == 1:
        a[0].mul_(factors.reshape(()))
    elif (rows := _rows(a)) is not None:
        rows.mul_(factors.unsqueeze(1))
    else:
        torch._foreach_mul_(a, list(factors.unbind()))


def _rows(a: Tensors) -> Tensor | None:
    """The tensors of a `Pack` as the rows of one matrix, where they all have the same shape."""
    if isinstance(a, Pack) and a.layout.alike:
        return a.flat.view(len(a), -1)
    return None


def _change(name: str, a: Tensors, *others: Any, **numbers: float) -> None:
    if isinstance(a, Pack):
        getattr(a.flat, f"{name}_")(*_flats(others, a), **numbers)
    elif len(a) == 1:
        getattr(a[0], f"{name}_")(*(b[0] if isinstance(b, list) else b for b in others), **numbers)
    else:
        getattr(torch, f"_foreach_{name}_")(a, *others, **numbers)


def _new(name: str, *operands: Any, **numbers: float) -> Tensors:
    for a in operands:
        if isinstance(a, Pack):
            out = a.layout.fresh()
            getattr(torch, name)(*_flats(operands, a), **numbers, out=out.flat)
            return out
    if len(operands[0]) == 1:
        return [getattr(torch, name)(*(b[0] if isinstance(b, list) else b for b in operands), **numbers)]
    return list(getattr(torch, f"_foreach_{name}")(*operands, **numbers))


def _flats(operands: Iterable[Any], like: Pack) -> list[Any]:
    """Each list of tensors as one tensor, laid out like the pack; numbers as they are."""
    return [
        a.flat if isinstance(a, Pack) else like.layout.gather(a).flat if isinstance(a, list) else a for a in operands
    ]


def adam_kernel(
    *, lr: float, mom: float, sqr_mom: float, eps: float, step: int, l2: float = 0.0, decay: float = 0.0
) -> Callable[[Tensors, Tensors, Tensors, Tensors], None]:
    """All of Adam in one pass over the memory: `l2` adds to the gradient, `decay` is decoupled.

    As of all kernels: for parameters, gradients and states of which `in_order` and `fits_fused` hold.

    Returns:
        A function of parameters, gradients, their averages and those of their squares, all of one device and dtype.
    """
    kernel: Any = torch._fused_adamw_ if decay else torch._fused_adam_
    options: dict[str, Any] = {"lr": lr, "beta1": mom, "beta2": sqr_mom, "weight_decay": decay or l2, "eps": eps}
    options.update(amsgrad=False, maximize=False)
    count: list[Tensor] = []

    def run(params: Tensors, grads: Tensors, grad_avg: Tensors, sqr_avg: Tensors) -> None:
        if not count:  # as the kernel wants it; made once for all blocks of a step
            count.append(torch.full((), float(step), device=params[0].device))
        kernel(params, grads, grad_avg, sqr_avg, [], count * len(params), **options)

    return run


def sgd_kernel(
    *, lr: float, mom: float = 0.0, dampening: float = 0.0, l2: float = 0.0, nesterov: bool = False
) -> Callable[..., None]:
    """All of SGD in one pass over the memory.

    Returns:
        A function of parameters, gradients and, with momentum, their averages.
    """
    kernel: Any = torch._fused_sgd_
    options: dict[str, Any] = {"lr": lr, "momentum": mom, "weight_decay": l2, "dampening": dampening}
    options.update(nesterov=nesterov, maximize=False, is_first_step=False)

    def run(params: Tensors, grads: Tensors, grad_avg: Sequence[Tensor] = ()) -> None:
        kernel(params, grads, grad_avg, **options)

    return run


def adagrad_kernel(*, lr: float, eps: float, l2: float = 0.0) -> Callable[[Tensors, Tensors, Tensors], None]:
    """All of Adagrad in one pass over the memory.

    Returns:
        A function of parameters, gradients and the sums of their squares, all of one device and dtype.
    """
    options: dict[str, Any] = {"lr": lr, "lr_decay": 0.0, "weight_decay": l2, "eps": eps, "maximize": False}

    def run(params: Tensors, grads: Tensors, sqr_sum: Tensors) -> None:
        step = torch.ones((), device=params[0].device)  # the kernel asks for it, for a decay we have not
        torch._fused_adagrad_(params, grads, sqr_sum, [step] * len(params), **options)

    return run


def is_heard(opt: torch.optim.Optimizer) -> bool:
    """Whether somebody wants to hear of an optimizer's steps: a hook of its own, one for all, or torch's profiler."""
    return bool(
        opt._optimizer_step_pre_hooks
        or opt._optimizer_step_post_hooks
        or hooks_for_all._global_optimizer_pre_hooks
        or hooks_for_all._global_optimizer_post_hooks
        or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    )


set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled
"""Switches gradients on or off, in a sixth of the time that `with torch.no_grad()` takes."""


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that `torch.compile` leaves alone; unlike `torch.compiler.disable` it imports no compiler for that."""
    alone: Callable[..., Any] = _disable_dynamo(function)
    return alone


def in_order(p: Tensor, other: Tensor) -> bool:
    """Whether a parameter and its gradient, or its state, lie in memory in the same order, without gaps.

    The fused kernels read memory as it comes, whatever the strides say.
    """
    if p.is_contiguous() and other.is_contiguous():
        return True
    return p.stride() == other.stride() and p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last)


def plain_grads(params: Tensors) -> Tensors | None:
    """The gradients, where one call of a kernel can be made for them; None where one is missing, sparse or unlike.

    Parameters and gradients are contiguous then, and of one device and dtype.
    """
    if not params:
        return None
    grads: Tensors = []
    device, dtype = params[0].device, params[0].dtype
    for p in params:
        grad = p.grad
        if grad is None or grad.layout is not torch.strided or p.dtype is not dtype or p.device != device:
            return None
        if not (p.is_contiguous() and grad.is_contiguous()):
            return None
        grads.append(grad)
    return grads


def fits_fused(p: Tensor) -> bool:
    """Whether torch has fused kernels for a parameter's device and dtype."""
    return p.dtype in FUSED.get("cpu" if p.is_cpu else p.device.type, ())


FUSED = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
}
"""Where torch's fused kernels are used. On a CPU in half precision SGD's with momentum is wrong (torch 2.13)."""

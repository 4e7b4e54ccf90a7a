"""The backward pass of a scalar loss, without what torch's own `backward` does in Python before its engine begins."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.overrides import has_torch_function

OF_FLOATS = (torch.float32, torch.float64)


def backward(root: Tensor) -> None:
    """What ``root.backward()`` does, where it is a scalar on a CPU in 10 to 30 µs less; raises what that raises.

    Most of that time goes into looking at arguments that a loss does not need, and into making the 1 from which its
    derivatives start. The 1 is kept here. What else there is, on a GPU for example, where the host has the time, and
    whatever changes what torch's functions do (a subclass of tensor, a mode) goes torch's way.

    Args:
        root: the loss, with its graph, which is used up.
    """
    plain = root.__class__ is Tensor and root.is_cpu and root.ndim == 0 and root.dtype in OF_FLOATS
    run = _engine() if plain and not has_torch_function((root,)) else None
    if run is None:
        root.backward()  # type: ignore[no-untyped-call]
    else:
        run((root,), (_one(root.dtype),), False, False, (), allow_unreachable=True, accumulate_grad=True)


_ones: dict[torch.dtype, Tensor] = {}


def _one(dtype: torch.dtype) -> Tensor:
    """A 1. A function or a hook of the user's may have written to the one that it was given: then it is a new one."""
    one = _ones.get(dtype)
    if one is None or one._version:
        with torch.inference_mode(False):
            one = _ones[dtype] = torch.ones((), dtype=dtype, device="cpu")
    return one


@cache
def _engine() -> Callable[..., Any] | None:
    """torch's engine, which is not public, where it can be called so: torch 2.6 to 2.13 can."""
    try:
        run: Callable[..., Any] = Variable._execution_engine.run_backward
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.ones((), device="cpu", requires_grad=True)
            one = torch.ones((), device="cpu")
            run((x * 3,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True)
    except (AttributeError, TypeError, RuntimeError):
        return None
    return run if x.grad is not None and float(x.grad) == 3 else None

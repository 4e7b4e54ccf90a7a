"""Where numbers that are not finite come from: a batch carried out once more, with a look at every layer."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from minilearn.graphs import call
from minilearn.optim.pieces import Pieces, is_sharded, piece_of
from minilearn.random_states import random_states, set_random_states
from minilearn.tensors import leaves

SHOWN = 5
"""How many names or rows a sentence lists."""


@dataclass(frozen=True)
class Diagnosis:
    """What a batch that was carried out again has shown."""

    cause: str
    """A sentence: the first thing that is not finite."""
    grad_norm: float
    """The norm of all gradients together; nan where there were none."""
    in_data: bool
    """Whether it came with the batch."""
    in_weights: bool
    """Whether the weights were not finite before the batch."""


def diagnose(
    model: nn.Module, xb: Any, yb: tuple[Any, ...], loss_of: Callable[[Any], Tensor], precision: Any = None
) -> Diagnosis:
    """Carries a batch out once more and names the first thing in it that is not a finite number.

    Looked at are, in this order: inputs and targets, parameters, buffers, each layer's output, the loss, each
    parameter's gradient. Every look waits for the device. The model's buffers, its gradients and all random numbers are
    as before afterwards; hooks that it has of its own see the batch.

    Args:
        model: the model, in the mode that it is to be looked at in.
        xb: its inputs, a tuple or a dict.
        yb: the targets.
        loss_of: the loss of what the model gives.
        precision: a context for the forward pass, such as autocast.
    """
    in_data = _in_batch(xb, yb)
    in_weights = _names_text("parameter", not_finite(dict(model.named_parameters())))
    in_weights = in_weights or _names_text("buffer", not_finite(dict(model.named_buffers())))
    first: list[str] = []
    grad_norm = float("nan")
    try:
        with _as_before(model), torch.enable_grad():
            with _watched(model, first), precision or nullcontext():
                output = call(model, xb)
            loss = loss_of(output)
            if not first and not bool(loss.isfinite()):
                first.append(f"the loss function gives {loss.item():g}, though the model's answer is finite")
            named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
            grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
        grad_norm = float(nn.utils.get_total_norm([grad for grad in grads if grad is not None]))
        by_name = {name: grad for (name, _), grad in zip(named, grads, strict=True) if grad is not None}
        last_first = dict(reversed(by_name.items()))  # the order in which they are computed
        if not first and (bad := not_finite(last_first)):
            first.append(f"the loss is finite, but not the gradient of the parameter '{bad[0]}'")
        elif not first:
            first.append(
                f"carried out again, the batch gives a loss of {loss.item():g}: it was made so by a callback, by random"
                " numbers, or by a batch before"
            )
    except Exception as error:  # a diagnosis is no reason to fail
        first.append(
            f"the batch could not be carried out again: {str(error).splitlines()[0] if str(error) else error!r}"
        )
    return Diagnosis(in_data or in_weights or first[0], grad_norm, bool(in_data), bool(in_weights))


def weights_are_finite(params: Iterable[Tensor]) -> bool:
    """Whether all numbers of these parameters are finite; one pass over them, and one wait for the device, where so.

    Those that have none (lazy ones, those on the meta device) are passed over. Where some are sharded, all processes
    have to ask together, and are told the same.
    """
    held = [p for p in params if not is_lazy(p) and not p.is_meta]
    filled = [p.detach() for p in held if p.numel() and p.is_floating_point()]
    if any(map(is_sharded, filled)):
        return bool(Pieces([piece_of(p) for p in filled], filled).total_norm(math.inf).isfinite())
    if not filled or nn.utils.get_total_norm(filled).isfinite():  # a tenth of the time that the largest one takes
        return True
    return bool(nn.utils.get_total_norm(filled, norm_type=math.inf).isfinite())  # squares may be inf of what is finite


def not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """The names of the tensors with a number that is not finite. Waits for the device."""
    return [name for name, value in tensors.items() if not _is_finite(value)]


def _is_finite(value: Any) -> bool:
    if (
        not isinstance(value, Tensor)
        or is_lazy(value)
        or value.is_meta
        or not (value.is_floating_point() or value.is_complex())
    ):
        return True
    return bool(value.detach().isfinite().all())


def _names_text(what: str, names: list[str]) -> str:
    if not names:
        return ""
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the {what} '{names[0]}'{others} was not finite before this batch: a step before it made it so"


def _in_batch(xb: Any, yb: tuple[Any, ...]) -> str:
    for what, part in (("input", xb), ("target", yb)):
        for value in leaves(part):
            if not _is_finite(value):
                bad = ~value.detach().isfinite()
                if not value.ndim:
                    return f"the batch's {what} is not finite"
                rows = bad.reshape(len(value), -1).any(dim=1).nonzero().flatten().tolist()
                listed = ", ".join(map(str, rows[:SHOWN])) + (", …" if len(rows) > SHOWN else "")
                return f"the batch's {what} has nan or inf in {len(rows)} of its {len(value)} rows: {listed}"
    return ""


@contextmanager
def _watched(model: nn.Module, first: list[str]) -> Iterator[None]:
    """Notes the first layer, the innermost, whose output is not finite."""

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if first or all(map(_is_finite, leaves(output))):
            return
        who = f"the layer '{name}' ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
        though = ", though its input is" if all(map(_is_finite, leaves(inputs))) else ", and neither was its input"
        first.append(f"the first output that is not finite is that of {who}{though}")

    hooks = [module.register_forward_hook(partial(look, name)) for name, module in model.named_modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """With copies of the model's buffers: the graph of the step that is under way may still need its own, untouched."""
    places = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    copies: dict[int, Tensor] = {}
    states = random_states()
    try:
        for module, name, buffer in places:
            if buffer is not None and not is_lazy(buffer):
                module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())
        yield
    finally:
        set_random_states(states)
        for module, name, buffer in places:
            module._buffers[name] = buffer

"""The functions that a compiled Learner makes graphs of, and which batches may share a graph."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_for_all
from torch.nn.modules.batchnorm import _BatchNorm

from minilearn.batches import prediction_of
from minilearn.optim.compiled import Program
from minilearn.optim.in_graph import Columns, carry_out
from minilearn.tensors import detached, leaves


def call(model: nn.Module, xb: Any) -> Any:
    """The model's answer; a dict's entries go to it by name."""
    return model(*xb) if isinstance(xb, tuple) else model(**xb)


def is_of_torch(model: nn.Module) -> bool:
    """Whether a model is made of torch's own layers alone, none of them in place and none with hooks.

    Such a model writes to no input, and its `forward` is all that calling it does.
    """
    for m in model.modules():
        own_way = m._forward_pre_hooks or m._forward_hooks or m._compiled_call_impl or "forward" in vars(m)
        if own_way or not type(m).__module__.startswith("torch.nn.modules.") or getattr(m, "inplace", False):
            return False
    return not (hooks_for_all._global_forward_pre_hooks or hooks_for_all._global_forward_hooks)


def prediction(model: nn.Module) -> Callable[..., Any]:
    """The model alone, as a function of the batch's inputs."""

    def predict(xb: Any) -> Any:
        return call(model, xb)

    return predict


def validation(model: nn.Module, loss_func: Callable[..., Tensor]) -> Callable[..., Any]:
    """Model and loss, as a function of inputs and targets that gives the prediction and the loss."""

    def validate(xb: Any, yb: Any) -> Any:
        pred = prediction_of(call(model, xb))
        return pred, loss_func(pred, *yb)

    return validate


def training(model: nn.Module, loss_func: Callable[..., Tensor], programs: tuple[Program, ...]) -> Callable[..., Any]:
    """A training step, as a function of inputs, targets and what the optimizer's programs work on."""

    def train(xb: Any, yb: Any, columns: list[Columns]) -> Any:
        pred = prediction_of(call(model, xb))
        loss = loss_func(pred, *yb)
        grads = torch.autograd.grad(loss, [p for group in columns for p in group.params])
        with torch.no_grad():
            carry_out(programs, columns, grads)
        return detached(pred), loss.detach()

    return train


def refuse_whole(model: nn.Module) -> None:
    """Raises a TypeError where a training step is not to be one graph.

    Something waits for gradients to pass through a module; or parts are faster, as with a large model that normalises
    by batches on a CPU.
    """
    if any(module._backward_hooks or module._backward_pre_hooks for module in model.modules()):
        raise TypeError("a module has backward hooks")
    params = list(model.parameters())
    large = all(p.is_cpu for p in params) and sum(p.numel() for p in params) > LARGE
    if large and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise TypeError("on a CPU the model alone is faster")


LARGE = 1_000_000
"""From so many parameters on, a step of a model with batch normalisation is not one graph on a CPU.

Three convolutions, each with batch normalisation: with 24,000 parameters 9.9 ms a batch as one graph and 9.6 in parts,
with 1.5 million 267 and 247; ResNet-18 437 and 395. Without normalisation one graph was faster by a third, and with
8 channels by a fifth (torch 2.13, one thread of a Xeon at 2.6 GHz).
"""

SMALL = 20_000_000
"""Up to so many parameters ``compile=True`` takes CUDA graphs: beyond, the launches that they save are not felt."""


def mode_for(mode: bool | str, model: nn.Module, *, whole: bool) -> str:
    """torch.compile's mode for a graph of a Learner with ``compile=mode``; `whole`: of a whole training step."""
    if isinstance(mode, str):
        return mode
    params = list(model.parameters())
    small = bool(params) and all(p.is_cuda for p in params) and sum(p.numel() for p in params) <= SMALL
    return "reduce-overhead" if whole and small else "default"


class Last(NamedTuple):
    """How a batch was carried out as one graph: where nothing else is new, the graph's guards tell all the rest."""

    handlers: Any
    model: nn.Module
    loss_func: Any
    graph: Any

    def is_as_in(self, loop: Any) -> bool:
        """Whether the loop has what it had then."""
        same = self.handlers is loop._handlers and self.model is loop.model and self.loss_func is loop.loss_func
        return same and loop._with_loss


FEW = 2
"""How many shapes of batches are met with a graph for one of them; the other is a ragged last batch's."""


class Sizes:
    """Which graph a batch is for: one for batches of a single size, or one for any; or none.

    Most batches are of one size, but for a ragged last one, for which nothing need be compiled. Where a third size
    comes along, they go on changing: then there is a graph for any size, after which no further one is needed.
    """

    def __init__(self) -> None:
        self._seen: dict[bool, list[Any]] = {True: [], False: []}

    def first(self, batch: Any, training: bool) -> Any:
        """Takes note of a fit's first batch, in training or validation: the others are expected to be like it."""
        self._seen[training] = [_kinds(batch)]
        return self._seen[training][0]

    def graph_for(self, batch: Any, training: bool) -> Any:
        """The name of a graph, to be compared with others; None for a batch that none is for."""
        kinds, seen = _kinds(batch), self._seen[training]
        if None in kinds:
            return None
        if kinds not in seen and len(seen) <= FEW:
            seen.append(kinds)
        changing = seen if len(seen) > FEW else self._seen[True]
        if len(changing) <= FEW:
            return seen[0] if kinds == seen[0] else None
        for i, part in enumerate(leaves(batch)):
            for axis in range(part.ndim):
                if len({found[i][0][axis : axis + 1] for found in changing if i < len(found) and found[i]}) > 1:
                    torch._dynamo.maybe_mark_dynamic(part, axis)
        return "any"


def _kinds(batch: tuple[Any, Any]) -> tuple[Any, ...]:
    xb, yb = batch
    parts = xb + yb if isinstance(xb, tuple) and isinstance(yb, tuple) else leaves(batch)
    if not all([isinstance(part, Tensor) for part in parts]):  # noqa: C419 -- a list is twice as fast here
        parts = leaves(parts)
    return tuple([(part.shape, part.dtype, part.device) if isinstance(part, Tensor) else None for part in parts])

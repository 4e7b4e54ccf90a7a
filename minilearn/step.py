"""How a batch is carried out with ``compile=True``: as one graph, or the model alone compiled, or as it is."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minilearn.compiling import CannotCompile, Compiled, can_hold_backward, check_compiler
from minilearn.errors import warn
from minilearn.optim.compiled import Program
from minilearn.optim.in_graph import Columns, StepInGraph, carry_out
from minilearn.tensors import detached, leaves

if TYPE_CHECKING:
    from minilearn.loop import Loop

IN_STEP = ("after_pred", "after_loss", "before_backward", "after_backward", "before_step", "after_step")
"""The events between a batch's arrival and its end: where a callback can act on the step."""


class CompiledSteps:
    """Compiles what a Learner does with a batch.

    The first batch of a fit is carried out as it is: its errors are told best, and its loss and shapes are known then.
    A training step is one graph (forward, loss, backward, the optimizer's step) where no callback acts within it
    (`Callback.acts_in_step`) and the optimizer can be a part of it; else the model alone is compiled, with its backward
    pass. A batch of another shape, such as a ragged last one, is carried out as it is; where shapes go on changing, a
    graph for any size is made.

    Args:
        mode: True, or a mode of torch.compile.
    """

    def __init__(self, mode: bool | str) -> None:
        self.mode = mode
        self._graphs: dict[Any, Compiled] = {}
        self._failed, self._checked, self._why = False, False, ""
        self.begin_fit()

    def begin_fit(self) -> None:
        """Looks at callbacks, optimizer and shapes anew."""
        self._step: StepInGraph | None = None
        self._handlers: Any = None
        self._in_pieces = {True: not can_hold_backward(), False: False}
        self._shapes: dict[bool, list[Any]] = {True: [], False: []}
        self._size: str | None = None

    def run(self, loop: "Loop") -> tuple[Any, Tensor] | None:
        """Carries a batch out as one graph, where that may be: in training the parameters have moved then.

        Returns:
            The prediction and the loss; None where nothing was done.
        """
        self._size = None if self._failed else self._size_of(loop)
        if self._size is None or not loop.yb or self._in_pieces[loop.training] or not self._all_look_on(loop):
            return None
        try:
            return self._train(loop) if loop.training else self._validate(loop)
        except TypeError:  # the optimizer cannot be a part of it
            self._in_pieces[loop.training] = True
        except CannotCompile as error:
            self._in_pieces[loop.training] = True
            self._why = f"the model is compiled, but not the whole step: {error}"
            if not error.in_function:
                self._give_up(error)
        return None

    def predict(self, loop: "Loop") -> Any:
        """The model's answer to the batch, by a graph of its own where there may be one."""
        if self._size is not None:
            try:
                if loop.training and not self._checked:
                    check_compiler(next(loop.model.parameters()).device)  # or it would only be missed in backward
                    self._checked = True
                pred = self._graph("model", loop, _prediction, loop.model)(loop.xb)
                self._tell()
                return pred
            except CannotCompile as error:
                self._give_up(error)
        return call(loop.model, loop.xb)

    def _give_up(self, error: CannotCompile) -> None:
        self._failed, self._size = True, None
        self._why = f"the batches are carried out as they are: {error}"
        self._tell()

    def _tell(self) -> None:
        if self._why:
            warn(f"compile={self.mode!r}: {self._why}")
            self._why = ""

    def _train(self, loop: "Loop") -> tuple[Any, Tensor] | None:
        if self._step is None:
            _refuse_hooks(loop.model)
            self._step = StepInGraph(loop.opt)
        if loop._needs_closure or not self._step.fits():
            return None
        programs, columns = self._step.prepare()
        graph = self._graph("step", loop, _training, loop.model, loop.loss_func, programs)
        pred, loss = graph(loop.xb, loop.yb, columns)
        self._step.count()
        return pred, loss

    def _validate(self, loop: "Loop") -> tuple[Any, Tensor]:
        graph = self._graph("validation", loop, _validation, loop.model, loop.loss_func)
        pred, loss = graph(loop.xb, loop.yb)
        return pred, loss

    def _graph(self, what: str, loop: "Loop", make: Callable[..., Any], *parts: Any) -> Compiled:
        """A graph made of these parts for batches of this size; kept from fit to fit."""
        fixed = self._size == "fixed"
        # A graph holds its parts, so that no other object gets the number of one of them.
        key = (what, loop.training, *map(id, parts[:2]), *parts[2:], self._shapes[loop.training][0] if fixed else None)
        if key not in self._graphs:
            mode = self.mode
            if mode is True:
                small = sum(p.numel() for p in loop.model.parameters()) <= SMALL
                on_gpu = all(part.is_cuda for part in leaves(loop.xb))
                mode = "reduce-overhead" if what == "step" and small and on_gpu else "default"
            self._graphs[key] = Compiled(make(*parts), str(mode))
        if not fixed:
            self._mark_sizes(loop)
        return self._graphs[key]

    def _size_of(self, loop: "Loop") -> str | None:
        """Which graph a batch is for: one of a fixed size, one for any size, or None."""
        parts = leaves((loop.xb, loop.yb))
        shapes = tuple((part.shape, part.dtype, part.device) if isinstance(part, Tensor) else None for part in parts)
        seen = self._shapes[loop.training]
        if loop.training in loop._unchecked:
            seen[:] = [shapes]
            return None
        if None in shapes:
            return None
        if shapes not in seen and len(seen) <= FEW:
            seen.append(shapes)
        if len(seen) > FEW or len(self._shapes[True]) > FEW:
            return "any"
        return "fixed" if shapes == seen[0] else None

    def _mark_sizes(self, loop: "Loop") -> None:
        """Tells the compiler which sizes change from batch to batch."""
        seen = self._shapes[True] if len(self._shapes[True]) > FEW else self._shapes[loop.training]
        for i, part in enumerate(leaves((loop.xb, loop.yb))):
            for axis in range(part.ndim):
                if len({shapes[i][0][axis : axis + 1] for shapes in seen if i < len(shapes)}) > 1:
                    torch._dynamo.maybe_mark_dynamic(part, axis)

    def _all_look_on(self, loop: "Loop") -> bool:
        """Whether no callback acts between a batch's arrival and its end."""
        if loop._handlers is not self._handlers:
            self._handlers = loop._handlers
            acting = (h for event in IN_STEP for h in loop._handlers.get(event, ()))
            self._look_on = not any(handler.__self__.acts_in_step for handler in acting)
        return self._look_on


FEW = 2
"""How many shapes of batches are met with a graph of one size, and by going on without for the ragged last one."""

SMALL = 20_000_000
"""Up to so many parameters ``compile=True`` takes CUDA graphs: beyond, the launches that they save are not felt."""


def call(model: nn.Module, xb: Any) -> Any:
    """The model's answer; a dict's entries go to it by name."""
    return model(**xb) if isinstance(xb, Mapping) else model(*xb)


def _prediction(model: nn.Module) -> Callable[..., Any]:
    def predict(xb: Any) -> Any:
        return call(model, xb)

    return predict


def _validation(model: nn.Module, loss_func: Callable[..., Tensor]) -> Callable[..., Any]:
    def validate(xb: Any, yb: Any) -> Any:
        pred = call(model, xb)
        return pred, loss_func(pred, *yb)

    return validate


def _training(model: nn.Module, loss_func: Callable[..., Tensor], programs: tuple[Program, ...]) -> Callable[..., Any]:
    def train(xb: Any, yb: Any, columns: list[Columns]) -> Any:
        pred = call(model, xb)
        loss = loss_func(pred, *yb)
        grads = torch.autograd.grad(loss, [p for group in columns for p in group.params])
        with torch.no_grad():
            carry_out(programs, columns, grads)
        return detached(pred), loss.detach()

    return train


def _refuse_hooks(model: nn.Module) -> None:
    """Raises a TypeError where something waits for gradients to pass through a module."""
    if any(module._backward_hooks or module._backward_pre_hooks for module in model.modules()):
        raise TypeError("a module has backward hooks")

"""How a batch is carried out with ``compile=True``: as one graph, or the model alone compiled, or as it is."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from minilearn.compiling import CannotCompile, Compiled, are_tensors_hooked, can_hold_backward, check_compiler
from minilearn.errors import warn
from minilearn.graphs import Last, Sizes, call, mode_for, prediction, refuse_whole, training, validation
from minilearn.handlers import all_look_on
from minilearn.optim.compiled import Program
from minilearn.optim.in_graph import StepInGraph
from minilearn.tensors import leaves

if TYPE_CHECKING:
    from minilearn.loop import Loop


class CompiledSteps:
    """Compiles what a Learner does with a batch.

    The first batch is carried out as it is: its errors are told best, and its loss and shapes are known then; so is
    that of each fit in which model, loss or shapes are new. A training step is one graph (forward, loss, backward, the
    optimizer's step) where no callback acts within it (`Callback.acts_in_step`), the optimizer can be a part of it, and
    nothing speaks against it (`refuse_whole`); else the model alone is compiled, with its backward pass. A batch of
    another shape, such as a ragged last one, is carried out as it is; where shapes go on changing, a graph for any size
    is made.

    Args:
        mode: True, or a mode of torch.compile.
    """

    def __init__(self, mode: bool | str) -> None:
        self.mode = mode
        self._graphs: dict[Any, Compiled] = {}
        self._proven: set[Any] = set()
        self._met: dict[tuple[Program, ...], tuple[Program, ...]] = {}
        self._programs: tuple[Program, ...] | None = None
        self._failed, self._checked, self._why = False, False, ""
        self._never_whole = {True: not can_hold_backward(), False: False}
        self.begin_fit()

    def begin_fit(self) -> None:
        """Looks at callbacks, optimizer and shapes anew."""
        self._step: StepInGraph | None = None
        self._handlers: Any = None
        self._last: dict[bool, Last] = {}
        self._in_pieces = dict(self._never_whole)
        self._begun: set[bool] = set()
        self._sizes = Sizes()
        self._size: Any = None

    def run(self, loop: "Loop") -> tuple[Any, Tensor] | None:
        """Carries a batch out as one graph, where that may be: in training the parameters have moved then.

        Returns:
            The prediction and the loss; None where nothing was done.
        """
        self._size, last = None, self._last.get(loop.training)
        if are_tensors_hooked():
            return None
        try:
            done = self._carry_out(loop, last.graph) if last is not None and last.is_as_in(loop) else None
            if done is None and self._may_be_one(loop):
                done = self._carry_out(loop)
                self._proven.add((loop.training, self._size, id(loop.model), id(loop.loss_func)))
            return done
        except TypeError:  # the optimizer cannot be a part of it
            self._in_pieces[loop.training] = True
        except CannotCompile as error:
            if not any(self._never_whole.values()):  # it is said once
                self._why = f"the model is compiled, but not the whole step: {error}"
            self._in_pieces[loop.training] = self._never_whole[loop.training] = True
            if not error.in_function:
                self._give_up(error)
        return None

    def _may_be_one(self, loop: "Loop") -> bool:
        """Whether the batch may be carried out as one graph; `_size` says then which."""
        if loop.training not in self._begun:
            self._begun.add(loop.training)
            kinds = self._sizes.first((loop.xb, loop.yb), loop.training)
            if (loop.training, kinds, id(loop.model), id(loop.loss_func)) not in self._proven:
                return False
        if not self._failed:
            self._size = self._sizes.graph_for((loop.xb, loop.yb), loop.training)
        has_loss = loop.yb and loop._with_loss and loop.loss_func is not None
        return bool(self._size and has_loss) and not self._in_pieces[loop.training] and self._all_look_on(loop)

    def predict(self, loop: "Loop") -> Any:
        """The model's answer to the batch, by a graph of its own where there may be one."""
        if self._size is not None:
            try:
                if loop.training and not self._checked:
                    check_compiler(leaves(loop.xb)[0].device)  # or it would only be missed in backward
                    self._checked = True
                pred = self._graph("training" if loop.training else "answer", prediction, loop._called)(loop.xb)
                self._tell()
                return pred
            except CannotCompile as error:
                self._give_up(error)
        return call(loop._called, loop.xb)

    def _give_up(self, error: CannotCompile) -> None:
        self._failed, self._size = True, None
        self._why = f"the batches are carried out as they are: {error}"
        self._tell()

    def _tell(self) -> None:
        if self._why:
            warn(f"compile={self.mode!r}: {self._why}")
            self._why = ""

    def _carry_out(self, loop: "Loop", last: Compiled | None = None) -> Any:
        """The prediction and the loss, by a graph of its own or by that of the batch before; None: nothing was done."""
        args: tuple[Any, ...] = loop.xb, loop.yb
        if loop.training:
            if self._step is None:
                refuse_whole(loop.model)
                self._step = StepInGraph(loop.opt)
            if loop._needs_closure or not self._step.fits():
                return None
            programs, columns = self._step.prepare()
            if programs is not self._programs:  # rarely: programs are long, so they are told apart by their place alone
                if last is not None:
                    return None
                self._programs, self._same_as = programs, self._met.setdefault(programs, programs)
            args = *args, columns
        if last is not None:
            done = last.again(*args)
        else:
            parts = ("step", training) if loop.training else ("validation", validation)
            graph = self._graph(*parts, loop.model, loop.loss_func, *([self._same_as] if loop.training else []))
            done, self._last[loop.training] = graph(*args), Last(loop._handlers, loop.model, loop.loss_func, graph)
        if loop.training and self._step is not None and done is not None:
            self._step.count()
        return done

    def _graph(self, what: str, make: Callable[..., Any], *parts: Any) -> Compiled:
        """A graph made of these parts for batches of this size; both are kept, so that no other part has its number."""
        key = (what, self._size, *map(id, parts))
        if key not in self._graphs:
            mode = mode_for(self.mode, parts[0], whole=what == "step")
            self._graphs[key] = Compiled(make(*parts), mode, any_size=self._size == "any")
        return self._graphs[key]

    def _all_look_on(self, loop: "Loop") -> bool:
        """Whether no callback acts between a batch's arrival and its end."""
        if loop._handlers is not self._handlers:
            self._handlers, self._look_on = loop._handlers, all_look_on(loop._handlers)
        return self._look_on

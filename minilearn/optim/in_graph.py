"""An optimizer's step as a part of a larger compiled graph, that of a whole training step."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minilearn.optim.blocks import states_of
from minilearn.optim.calls import as_function, hypers_of
from minilearn.optim.compiled import Program, Recording, _check, _function, _read
from minilearn.optim.optimizer import Optimizer

Tensors = list[Tensor]


class Columns(NamedTuple):
    """What a program works on: a group's parameters, each one's pieces of state, and the plain numbers of this step."""

    params: Tensors
    states: list[Tensors]
    numbers: Tensor


class _Written(NamedTuple):
    """What a group's steppers do in a step."""

    hypers: tuple[Any, ...]
    program: Program
    numbers: Tensor


class StepInGraph:
    """The step of one of minilearn's optimizers, for a graph that has computed the gradients itself.

    In each step `prepare` gives what is done, which hardly ever changes, and what it is done to; `carry_out`, in the
    graph, does it, and `count` counts it. The learning rate is an input of the graph: it may be another in each step.

    Args:
        opt: the optimizer.
    Raises:
        TypeError: its step cannot be a part of a graph; the message says why.
    """

    def __init__(self, opt: torch.optim.Optimizer) -> None:
        name = type(opt).__name__
        if not isinstance(opt, Optimizer):
            raise TypeError(f"{name} is not one of minilearn's optimizers")
        if inspect.unwrap(type(opt).step) is not inspect.unwrap(Optimizer.step) or "step" in opt.__dict__:
            raise TypeError(f"the step method of {name} has been replaced")
        if opt._optimizer_step_pre_hooks or opt._optimizer_step_post_hooks:
            raise TypeError(f"{name} has step hooks")
        self.opt = opt
        self.groups = [group for group in opt.param_groups if any(p.requires_grad for p in group["params"])]
        self.params = [[p for p in group["params"] if p.requires_grad] for group in self.groups]
        if any(p._backward_hooks or p._post_accumulate_grad_hooks for row in self.params for p in row):
            raise TypeError("a parameter has hooks")
        self._written: list[_Written | None] = [None] * len(self.groups)

    def fits(self) -> bool:
        """Whether the same parameters are trained, and none has a gradient yet, which a graph would leave out."""
        trained = [p for group in self.opt.param_groups for p in group["params"] if p.requires_grad]
        same = list(map(id, trained)) == [id(p) for row in self.params for p in row]
        return same and all([p.grad is None for p in trained])  # noqa: C419 -- a list is twice as fast here

    def prepare(self) -> tuple[tuple[Program, ...], list[Columns]]:
        """For each group, what is done in the next step, and what it is done to.

        Raises:
            TypeError: it cannot be written down, or a group's parameters have not taken equally many steps.
        """
        programs, columns = [], []
        for i, (group, params) in enumerate(zip(self.groups, self.params, strict=True)):
            steps = {self.opt.state.get(p, {}).get("step", 0) + 1 if self.opt._counts_steps else 0 for p in params}
            if len(steps) > 1:
                raise TypeError("the parameters of a group have not taken equally many steps")
            steppers = [call for call in self.opt._calls if call.only_with is None or group[call.only_with]]
            names = list(dict.fromkeys(name for call in steppers for name in call.states))
            rules = [(call, hypers_of(call, group, *steps)) for call in steppers]
            hypers = tuple(value for _, taken in rules for value in taken.values())
            written = self._written[i]
            if written is None or written.hypers != hypers:
                self._written[i] = written = _write_down(rules, names, hypers, params[0])
            states = states_of(params, names, self.opt.state)
            for name, row in states.items():
                for j, value in enumerate(row):
                    # Those of small parameters lie together in memory: a graph would have to sort that out.
                    if value.untyped_storage().nbytes() != value.nbytes:
                        row[j] = self.opt.state[params[j]][name] = value.clone()
            programs.append(written.program)
            columns.append(Columns(params, [list(row) for row in zip(*states.values(), strict=True)], written.numbers))
        return tuple(programs), columns

    def count(self) -> None:
        """Counts a step that has been carried out."""
        for row in self.params:
            self.opt._count_steps(row)


def _write_down(rules: Any, names: list[str], hypers: tuple[Any, ...], like: Tensor) -> _Written:
    if any(isinstance(value, Tensor) for value in hypers):
        raise TypeError("a hyperparameter is a tensor")
    recording = Recording(2 + len(names))
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    try:
        as_function(names, rules)(*([one] for one in list(recording.inputs)))
        program = recording.program()
        numbers = torch.tensor(recording.scalars, dtype=dtype).to(like.device, non_blocking=True)
        _check(program, dtype, numbers)
    except Exception as error:
        raise TypeError(f"the optimizer's rule could not be written down ({error})") from error
    return _Written(hypers, program, numbers)


def carry_out(programs: Sequence[Program], columns: Sequence[Columns], grads: Sequence[Tensor]) -> None:
    """Moves all parameters; to be called within a graph.

    Args:
        programs: what is done to each group.
        columns: each group's tensors.
        grads: the gradients of all parameters, group after group.
    """
    left = list(grads)
    for program, (params, states, numbers) in zip(programs, columns, strict=True):
        for i, p in enumerate(params):
            inputs = [p, left.pop(0), *(states[i] if states else [])]
            values: list[Any] = list(inputs)
            for op in program.operations:
                options = {key: _read(arg, values, numbers) for key, arg in op.kwargs}
                values.append(_function(op.name)(*[_read(arg, values, numbers) for arg in op.args], **options))
            for place, number in program.changed:
                if place != 1:  # a gradient that was changed on the way is used up
                    inputs[place].copy_(values[number])

"""An optimizer's step as a part of a larger compiled graph, that of a whole training step."""

import inspect
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minilearn.optim.blocks import states_of
from minilearn.optim.calls import Rule, as_function, hypers_of
from minilearn.optim.compiled import Program, Recording, check, result_of
from minilearn.optim.optimizer import Optimizer

Tensors = list[Tensor]


class Columns(NamedTuple):
    """What a program works on: parameters, each one's pieces of state, and the plain numbers of this step."""

    params: Tensors
    states: list[Tensors]
    numbers: Tensor


class _Written(NamedTuple):
    """What the steppers do to some parameters in a step, and what that depends on."""

    hypers: list[Any]
    names: list[str]
    program: Program
    columns: Columns


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
        if opt._shards is not None:
            raise TypeError("the parameters are sharded over several processes")
        self.opt = opt
        self.params = self._trained()
        if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self.params):
            raise TypeError("a parameter has hooks")
        self._written: list[_Written] = []
        self._columns: list[Columns] = []
        self._hypers: list[Any] = []
        self._is_stateless = False
        self._programs: tuple[Program, ...] = ()

    def _trained(self) -> Tensors:
        return [p for group in self.opt.param_groups for p in group["params"] if p.requires_grad]

    def fits(self) -> bool:
        """Whether the same parameters are trained, and none has a gradient yet, which a graph would leave out."""
        trained = self._trained()
        return _same(trained, self.params) and not any([p.grad is not None for p in trained])  # noqa: C419

    def prepare(self) -> tuple[tuple[Program, ...], list[Columns]]:
        """What is done in the next step, and what it is done to, for groups of the same hyperparameters each.

        Returns:
            The programs, the very tuple that was given before where the same is done again; and the columns.
        Raises:
            TypeError: it cannot be written down, or a group's parameters have not taken equally many steps.
        """
        hypers = [group[name] for group in self.opt.param_groups for name in self.opt._hypers]
        if hypers == self._hypers and self._is_stateless:  # as in plain SGD: nothing can have changed
            return self._programs, self._columns
        self._hypers = hypers
        before = dict(enumerate(self._written))
        written = [self._write(*part, before.get(i)) for i, part in enumerate(self._parts())]
        if not _same(written, self._written):
            self._written, self._columns = written, [one.columns for one in written]
            if [one.program for one in written] != list(self._programs):
                self._programs = tuple([one.program for one in written])
        self._is_stateless = not (self.opt._counts_steps or any(one.names for one in written))
        return self._programs, self._columns

    def count(self) -> None:
        """Counts a step that has been carried out."""
        self.opt._count_steps(self.params)

    def _parts(self) -> list[tuple[dict[str, Any], Tensors]]:
        parts = [(group, [p for p in params if p.requires_grad]) for group, params, *_ in self.opt._joined()]
        return [(group, params) for group, params in parts if params]

    def _write(self, group: dict[str, Any], params: Tensors, before: _Written | None) -> _Written:
        """What is done to some parameters in the next step; `before` once more where nothing has changed."""
        state = self.opt.state
        steps = {state.get(p, {}).get("step", 0) + 1 for p in params} if self.opt._counts_steps else {0}
        if len(steps) > 1:
            raise TypeError("the parameters of a group have not taken equally many steps")
        hypers: list[Any] = [*steps, *map(group.__getitem__, self.opt._hypers)]
        if before is None or not _same(params, before.columns.params):
            before = None
        else:
            found = [state[p].get(name) for p in params for name in before.names]
            if not _same(found, [part for row in before.columns.states for part in row]):
                before = None
        if before is not None and before.hypers == hypers:
            return before
        steppers = [call for call in self.opt._calls if call.only_with is None or group[call.only_with]]
        names = list(dict.fromkeys(name for call in steppers for name in call.states))
        rules = [(call, hypers_of(call, group, *steps)) for call in steppers]
        known = before.program if before is not None else None
        program, numbers = _write_down(rules, names, params[0], known)
        states = before.columns.states if before is not None and names == before.names else self._own(params, names)
        return _Written(hypers, names, program, Columns(params, states, numbers))

    def _own(self, params: Tensors, names: list[str]) -> list[Tensors]:
        """Each parameter's pieces of state. Those of small ones, which lie together, get memory of their own."""
        states = states_of(params, names, self.opt.state)
        for name, row in states.items():
            for i, value in enumerate(row):
                if value.untyped_storage().nbytes() != value.nbytes:
                    row[i] = self.opt.state[params[i]][name] = value.clone()
        return [list(parts) for parts in zip(*states.values(), strict=True)]


def _same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _write_down(rules: list[Rule], names: list[str], like: Tensor, known: Program | None) -> tuple[Program, Tensor]:
    """What the steppers do, and its plain numbers; it is `known` where it is the same."""
    if any(isinstance(value, Tensor) for _, hypers in rules for value in hypers.values()):
        raise TypeError("a hyperparameter is a tensor")
    recording = Recording(2 + len(names))
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    whole = any(getattr(call.marks, "whole", False) for call, _ in rules)
    try:
        as_function(names, rules)(*([one] for one in list(recording.inputs)))
        program = recording.program()
        numbers = torch.tensor(recording.scalars, dtype=dtype).to(like.device, non_blocking=True)
        if program == known:
            return known, numbers
        check(program, dtype, numbers, whole)
    except Exception as error:
        raise TypeError(f"the optimizer's rule could not be written down ({error})") from error
    return program, numbers


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
                values.append(result_of(op, values, numbers))
            for place, number in program.changed:
                if place != 1:  # a gradient that was changed on the way is used up
                    inputs[place].copy_(values[number])

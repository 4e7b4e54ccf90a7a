"""What a stepper takes, and calling several of them one after another."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from minilearn.optim.blocks import Block
from minilearn.optim.packs import Pack


class Call(NamedTuple):
    """A stepper or a kernel, and the names of what it takes, read off its signature once."""

    stepper: Callable[..., Any]
    states: tuple[str, ...]
    hypers: tuple[str, ...]
    only_with: str | None
    marks: Any


Rule = tuple[Call, dict[str, Any]]


def hypers_of(call: Call, group: dict[str, Any], step: int) -> dict[str, Any]:
    """The hyperparameters that a stepper or a kernel takes, from a group's."""
    return {name: step if name == "step" else group[name] for name in call.hypers}


def rules_of(calls: list[Call], group: dict[str, Any], step: int) -> tuple[list[Rule], list[str]]:
    """The steppers that a group's hyperparameters ask for, and the names of the state that they keep."""
    asked = [call for call in calls if call.only_with is None or group[call.only_with]]
    rules = [(call, hypers_of(call, group, step)) for call in asked]
    return rules, list(dict.fromkeys(name for call in asked for name in call.states))


def name_of(rules: list[Rule]) -> Any:
    """The steppers and their hyperparameters, to be compared; None where they do something else in each step."""
    hypers = [pair for _, hypers in rules for pair in hypers.items()]
    plain = all([isinstance(value, PLAIN) and name != "step" for name, value in hypers])  # noqa: C419 -- twice as fast
    return (*[call.stepper for call, _ in rules], *hypers) if plain else None


PLAIN = (int, float, str, type(None))


def as_function(names: list[str], rules: list[Rule]) -> Callable[..., None]:
    """The steppers as one function of lists: parameters, gradients and each piece of state."""

    def rule(params: Any, grads: Any, *states: Any) -> None:
        run(rules, Block(params, grads, dict(zip(names, states, strict=True))))

    return rule


def columns_of(block: Block) -> list[list[Tensor]]:
    """A block's parameters, gradients and pieces of state; those that lie together as one tensor."""
    columns = [block.params, block.grads, *block.states.values()]
    return [[part.flat] if isinstance(part, Pack) else [one.detach() for one in part] for part in columns]


def run(rules: list[Rule], block: Block) -> None:
    """Calls the steppers one after another; each sees the gradients that the one before it gave."""
    grads = block.grads
    for call, hypers in rules:
        grads = call.stepper(block.params, grads, *(block.states[name] for name in call.states), **hypers)


def read_signature(stepper: Callable[..., Any], hypers: dict[str, Any]) -> Call:
    """What a stepper, or a kernel, takes."""
    marks = getattr(stepper, "func", stepper)
    taken = inspect.signature(stepper).parameters.values()
    keywords = tuple(p.name for p in taken if p.kind is p.KEYWORD_ONLY and p.default is p.empty)
    for name in keywords:
        if name not in hypers and name != "step":
            raise TypeError(f"{stepper.__name__} takes the hyperparameter '{name}', which the recipe does not give")
    states = getattr(marks, "states", [p.name for p in taken if p.kind is not p.KEYWORD_ONLY][2:])
    return Call(stepper, tuple(states), keywords, getattr(marks, "only_with", None), marks)

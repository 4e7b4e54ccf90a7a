"""A step for a sparse gradient, as of an embedding: just the rows that it has are moved."""

from typing import Any

from torch import Tensor

from minilearn.optim.blocks import Block, States, states_of
from minilearn.optim.calls import Rule, run


def step_rows(
    name: str, group: dict[str, Any], p: Tensor, states: States, rules: list[Rule], *, takes_sparse: bool
) -> None:
    """Moves just those rows of a parameter that its sparse gradient has.

    Args:
        name: the optimizer's.
        group: the parameter's hyperparameters.
        p: the parameter, with its gradient.
        states: each parameter's pieces of state.
        rules: the steppers.
        takes_sparse: whether the rule leaves other rows alone.
    Raises:
        ValueError: the rule moves the other rows too.
    """
    shape = tuple(p.shape)
    if not takes_sparse:
        raise ValueError(f"{name} does not take sparse gradients, got one of shape {shape}; SGD and Adagrad do")
    moving = [call.only_with for call, _ in rules if call.only_with is not None]
    if moving:
        given = ", ".join(f"{hyper}={group[hyper]}" for hyper in moving)
        raise ValueError(
            f"{name} takes sparse gradients only without {', '.join(moving)}, which would move every row of the"
            f" parameter of shape {shape}; got {given}"
        )
    assert p.grad is not None
    grad = p.grad.coalesce()
    at = tuple(grad.indices())
    names = [key for call, _ in rules for key in call.states]
    of_p = {key: value for key, (value,) in states_of([p], names, states).items()}
    rows, state_rows = p[at], {key: value[at] for key, value in of_p.items()}
    run(rules, Block([rows], [grad.values()], {key: [part] for key, part in state_rows.items()}))
    p[at] = rows
    for key, value in of_p.items():
        value[at] = state_rows[key]

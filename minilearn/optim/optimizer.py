"""The engine: an optimizer is a list of steppers, run over the parameters of each group."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from minilearn.errors import in_range, positive
from minilearn.optim.steppers import Stepper


class _Call(NamedTuple):
    """A stepper and the names of what it takes, read off its signature once."""

    stepper: Stepper
    states: tuple[str, ...]
    hypers: tuple[str, ...]
    only_with: str | None


HYPERS: dict[str, Callable[[str, float], float]] = {
    "lr": lambda name, value: in_range(name, value, 0),
    "mom": lambda name, value: in_range(name, value, 0, 1),
    "sqr_mom": lambda name, value: in_range(name, value, 0, 1),
    "eps": positive,
    "wd": lambda name, value: in_range(name, value, 0),
}
"""What each hyperparameter may be, in every optimizer and in every group."""


class Optimizer(torch.optim.Optimizer):
    """A list of steppers over parameter groups; a `torch.optim.Optimizer` in every respect.

    Args:
        params: parameters, or groups of them as dicts, as for any of torch's optimizers.
        steppers: the rules of `minilearn.optim.steppers` (or your own), in the order in which they are applied.
        hypers: a default for each hyperparameter that the steppers take; a group may have its own.

    Raises:
        TypeError: a stepper takes a hyperparameter that is not given.
        ValueError: there is no parameter, a hyperparameter is out of its range, or a gradient is sparse.
    """

    def __init__(self, params: Any, steppers: Sequence[Stepper], **hypers: Any) -> None:
        self._calls = [_read_signature(stepper, hypers) for stepper in steppers]
        self._counts_steps = any("step" in call.hypers for call in self._calls)
        super().__init__(_some(params), hypers)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, with hyperparameters of its own where it gives them.

        Raises:
            ValueError: a hyperparameter is out of its range.
            TypeError: a parameter is complex.
        """
        for name, value in {**self.defaults, **param_group}.items():
            if name in HYPERS:
                param_group[name] = HYPERS[name](f"{type(self).__name__}: {name}", value)
        params = param_group["params"]
        for p in [params] if isinstance(params, Tensor) else params:
            if isinstance(p, Tensor) and p.is_complex():
                raise TypeError(f"{type(self).__name__} does not take complex parameters, got one of {tuple(p.shape)}")
        # torch wraps this method so that its compiler leaves it alone; the wrapper imports that compiler at the first
        # call (torch 2.13: 0.9 s and 75 MB), also where nothing is ever compiled.
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes on another optimizer's state; its tensors are copied.

        Raises:
            ValueError: it is of an optimizer with other groups, parameters or hyperparameters.
        """
        for group in state_dict["param_groups"]:
            missing = [name for call in self._calls for name in call.hypers if name != "step" and name not in group]
            if missing:
                has = ", ".join(name for name in group if name != "params")
                raise ValueError(f"this state is not of {type(self).__name__}: it has no {missing[0]}, but {has}")
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_calls": self._calls, "_counts_steps": self._counts_steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # load_state_dict hands the state's tensors over; they are copied, so that two optimizers never share one.
        for values in cast(dict[Any, Any], state.get("state", {})).values():
            values.update({name: value.clone() for name, value in values.items() if isinstance(value, Tensor)})
        super().__setstate__(state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves every parameter that has a gradient.

        Args:
            closure: computes the loss and the gradients anew, as for any of torch's optimizers.
        Returns:
            What `closure` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for step, params in self._alike(group["params"]).items():
                self._apply(group, params, step[-1])
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Lets go of every parameter's gradient; with `set_to_none=False` fills it with zeros."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def _alike(self, params: list[Tensor]) -> dict[tuple[torch.device, torch.dtype, int], list[Tensor]]:
        """The parameters that have a gradient, in lists of one device, dtype and number of steps made."""
        alike: dict[tuple[torch.device, torch.dtype, int], list[Tensor]] = {}
        for p in params:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise ValueError(
                    f"{type(self).__name__} does not take sparse gradients, got one of shape {tuple(p.shape)}"
                )
            step = 0
            if self._counts_steps:
                state = self.state[p]
                step = state["step"] = state.get("step", 0) + 1
            alike.setdefault((p.device, p.dtype, step), []).append(p)
        return alike

    def _apply(self, group: dict[str, Any], params: list[Tensor], step: int) -> None:
        grads: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
        for stepper, states, hypers, only_with in self._calls:
            if only_with is not None and not group[only_with]:
                continue
            state = [self._state(name, params) for name in states]
            grads = stepper(params, grads, *state, **{name: step if name == "step" else group[name] for name in hypers})

    def _state(self, name: str, params: list[Tensor]) -> list[Tensor]:
        found = []
        for p in params:
            state = self.state[p]
            if name not in state:
                state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
            found.append(state[name])
        return found


def _read_signature(stepper: Stepper, hypers: dict[str, Any]) -> _Call:
    taken = list(inspect.signature(stepper).parameters.values())[2:]
    keywords = tuple(p.name for p in taken if p.kind is p.KEYWORD_ONLY)
    for name in keywords:
        if name not in hypers and name != "step":
            raise TypeError(f"{stepper.__name__} takes the hyperparameter '{name}', which the recipe does not give")
    states = tuple(p.name for p in taken if p.kind is not p.KEYWORD_ONLY)
    return _Call(stepper, states, keywords, getattr(stepper, "only_with", None))


def _some(params: Any) -> Any:
    """`params` as it came, a generator made a list.

    Raises:
        ValueError: there is no parameter in it.
    """
    if isinstance(params, Iterable) and not isinstance(params, Tensor):
        params = list(params)
        if not params:
            raise ValueError("there are no parameters to train: the model has none, or all of them are frozen")
    return params

"""The engine: an optimizer is a list of steppers, run over the parameters of each group."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from minilearn.optim.groups import GroupMethods
from minilearn.optim.hypers import HYPERS
from minilearn.optim.lists import fits_fused, in_order
from minilearn.optim.steppers import Stepper, sgd_step


class _Call(NamedTuple):
    """A stepper and the names of what it takes, read off its signature once."""

    stepper: Callable[..., Any]
    states: tuple[str, ...]
    hypers: tuple[str, ...]
    only_with: str | None


class _Kind(NamedTuple):
    """What the parameters of one call have in common."""

    device: torch.device
    dtype: torch.dtype
    step: int
    in_order: bool


BLOCK = 1 << 18
"""Elements that a CPU's rule works on at a time: a megabyte a tensor.

Smaller blocks stay in a nearer cache, but the calls for them cost more than that gains: over ResNet-18's parameters
2^18 took 0.88 of the time of 2^16 for RMSProp, 0.90 for Lion (AMD EPYC, torch 2.13, medians of 15).
"""


class Optimizer(GroupMethods):
    """A list of steppers over parameter groups; a `torch.optim.Optimizer` in every respect.

    Args:
        params: parameters, or groups of them as dicts, as for any of torch's optimizers.
        steppers: the rules of `minilearn.optim.steppers` (or your own), in the order in which they are applied.
        fused: the same rule as one call, where there is a kernel for it: called like the steppers, it does the work of
            all of them. It is left aside where a parameter's dtype or device has no such kernel.
        hypers: a default for each hyperparameter that the steppers take; a group may have its own.

    Raises:
        TypeError: a stepper takes a hyperparameter that is not given.
        ValueError: there is no parameter, a hyperparameter is out of its range, or a gradient is sparse.
    """

    def __init__(
        self, params: Any, steppers: Sequence[Stepper], *, fused: Callable[..., None] | None = None, **hypers: Any
    ) -> None:
        self._calls = [_read_signature(stepper, hypers) for stepper in steppers]
        self._fused = None if fused is None else _read_signature(fused, hypers)
        self._counts_steps = any("step" in call.hypers for call in self._calls)
        self._wants_whole = any(getattr(call.stepper, "whole", False) for call in self._calls)
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

    def uses_hyper(self, name: str) -> bool:
        """Whether a stepper takes the hyperparameter: one made without momentum, say, may have none that does."""
        return any(name in call.hypers for call in self._calls)

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
        own = {name: self.__dict__[name] for name in ("_calls", "_fused", "_counts_steps", "_wants_whole")}
        return {**super().__getstate__(), **own}

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
            wants_order = self._fused_for(group) is not None
            for kind, params in self._alike(group["params"], wants_order).items():
                self._apply(group, params, kind)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Lets go of every parameter's gradient; with `set_to_none=False` fills it with zeros."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def _fused_for(self, group: dict[str, Any]) -> _Call | None:
        """The one call that does the work of all steppers, where the group's hyperparameters allow it."""
        fused = self._fused
        if fused is None or group.get("l1") or (fused.only_with is not None and not group[fused.only_with]):
            return None
        return fused

    def _alike(self, params: list[Tensor], wants_order: bool) -> dict[_Kind, list[Tensor]]:
        """The parameters that have a gradient, in lists that one call can be made for.

        Almost always they are all of one kind, so each is only compared with the one before it.
        """
        alike: dict[_Kind, list[Tensor]] = {}
        kind, same = None, []
        for p in params:
            grad = p.grad
            if grad is None:
                continue
            if grad.is_sparse:
                name = type(self).__name__
                raise ValueError(f"{name} does not take sparse gradients, got one of shape {tuple(p.shape)}")
            step = 0
            if self._counts_steps:
                state = self.state[p]
                step = state["step"] = state.get("step", 0) + 1
            found = (p.device, p.dtype, step, wants_order and in_order(p, grad))
            if found != kind:
                kind = _Kind(*found)
                same = alike.setdefault(kind, [])
            same.append(p)
        return alike

    def _apply(self, group: dict[str, Any], params: list[Tensor], kind: _Kind) -> None:
        grads: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
        calls = [call for call in self._calls if call.only_with is None or group[call.only_with]]
        fused = self._fused_for(group)
        if fused is not None and kind.in_order and fits_fused(params[0]):
            calls = [fused]
        hypers = [{name: kind.step if name == "step" else group[name] for name in call.hypers} for call in calls]
        if self._in_one_block(params, calls):
            for call, values in zip(calls, hypers, strict=True):
                states = [self._state(name, params) for name in call.states]
                grads = call.stepper(params, grads, *states, **values)
            return
        names = list(dict.fromkeys(name for call in calls for name in call.states))
        for block in _blocks([params, grads, *(self._state(name, params) for name in names)]):
            parts = dict(zip(names, block[2:], strict=True))
            block_grads = block[1]
            for call, values in zip(calls, hypers, strict=True):
                block_grads = call.stepper(block[0], block_grads, *(parts[name] for name in call.states), **values)

    def _in_one_block(self, params: list[Tensor], calls: list[_Call]) -> bool:
        """Whether the rule goes over all parameters at once: a GPU has no use for blocks, nor has a single pass."""
        single = len(calls) == 1 and (calls[0] is self._fused or calls[0].stepper is sgd_step)
        return self._wants_whole or single or params[0].device.type != "cpu" or sum(p.numel() for p in params) <= BLOCK

    def _state(self, name: str, params: list[Tensor]) -> list[Tensor]:
        """A piece of state for each parameter, laid out in memory like it: the fused kernels go by memory alone."""
        found = []
        for p in params:
            state = self.state[p]
            value = state.get(name)
            if value is None:
                value = state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
            elif in_order(p, p) and not in_order(p, value):  # loaded, or the model has become channels-last since
                value = state[name] = torch.empty_like(p, memory_format=torch.preserve_format).copy_(value)
            found.append(value)
        return found


def _blocks(columns: list[list[Tensor]]) -> Iterator[list[list[Tensor]]]:
    """Cuts lists of tensors, parameter by parameter the same shapes, into lists of at most `BLOCK` elements.

    A rule of several steps leaves the cache between them where it goes over all parameters at once: on large tensors
    it then takes up to twice the time. Large tensors are cut into pieces, small ones are put together.
    """
    gathered: list[list[Tensor]] = [[] for _ in columns]
    elements = 0
    for row in zip(*columns, strict=True):
        n = row[0].numel()
        if n > BLOCK and all(part.is_contiguous() for part in row):
            for pieces in zip(*(part.detach().view(-1).split(BLOCK) for part in row), strict=True):
                yield [[piece] for piece in pieces]
            continue
        if elements and elements + n > BLOCK:
            yield gathered
            gathered, elements = [[] for _ in columns], 0
        for column, part in zip(gathered, row, strict=True):
            column.append(part)
        elements += n
    if elements:
        yield gathered


def _read_signature(stepper: Callable[..., Any], hypers: dict[str, Any]) -> _Call:
    taken = list(inspect.signature(stepper).parameters.values())[2:]
    keywords = tuple(p.name for p in taken if p.kind is p.KEYWORD_ONLY and p.default is p.empty)
    for name in keywords:
        if name not in hypers and name != "step":
            raise TypeError(f"{stepper.__name__} takes the hyperparameter '{name}', which the recipe does not give")
    states = tuple(p.name for p in taken if p.kind is not p.KEYWORD_ONLY)
    return _Call(stepper, states, keywords, getattr(getattr(stepper, "func", stepper), "only_with", None))


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

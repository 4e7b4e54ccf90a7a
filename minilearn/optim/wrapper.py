"""torch's optimizers with minilearn's methods: hyperparameters by fastai's names, freezing."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from minilearn.errors import describe, did_you_mean
from minilearn.optim.groups import GroupMethods
from minilearn.optim.hypers import HYPERS, place, write

FASTAI_NAMES = ("mom", "sqr_mom", "wd")
"""fastai's names that torch's optimizers have under others."""


def OptimWrapper(  # noqa: N802 -- fastai's name
    params: Any = None,
    opt: Callable[..., torch.optim.Optimizer] | torch.optim.Optimizer = torch.optim.AdamW,
    **kwargs: Any,
) -> GroupMethods:
    """torch's optimizer with `set_hyper`, `hypers`, `freeze_to` and the like as methods.

    It stays an instance of its class, with torch's groups and state. A Learner needs no wrapper to take one of torch's
    optimizers and to set and freeze by layers; this is for code that calls those methods on the optimizer.

    Args:
        params: parameters, groups of them, or lists of parameters, one a layer; nothing where `opt` is made already.
        opt: an optimizer's class, or a function that makes one; or one that is made, which is given back itself.
        kwargs: what `opt` takes, by torch's names, or by fastai's (`mom`, `sqr_mom`, `wd`), here and in groups.
    Raises:
        TypeError: `opt` takes no such argument, or gives no optimizer.
        ValueError: a hyperparameter is out of its range, or there are parameters beside an optimizer that has its own.
    Source: `OptimWrapper` of fastai 2.8, without `hp_map`.

    >>> opt = OptimWrapper([torch.ones(1, requires_grad=True)], torch.optim.AdamW, lr=0.1, mom=0.8, wd=0.0)
    >>> opt.param_groups[0]["betas"], opt.hypers[0]["mom"]
    ((0.8, 0.999), 0.8)
    """
    if isinstance(opt, torch.optim.Optimizer):
        if params is not None or kwargs:
            given = "params" if params is not None else ", ".join(kwargs)
            raise ValueError(f"OptimWrapper: opt is an optimizer already, which has its own: leave out {given}")
        return _with_methods(opt)
    if not callable(opt):
        raise TypeError(f"opt must be an optimizer or its class, such as torch.optim.AdamW, got {describe(opt)}")
    if params is None:
        raise ValueError("OptimWrapper: params must be given, or an optimizer that is made already, opt=…")
    takes = inspect.signature(opt).parameters
    defaults = {name: taken.default for name, taken in takes.items() if taken.default is not taken.empty}
    name = str(getattr(getattr(opt, "func", opt), "__name__", "opt"))
    kwargs = _translated(name, kwargs, defaults)
    if not any(taken.kind is taken.VAR_KEYWORD for taken in takes.values()):
        for given in kwargs:
            if given not in takes:
                options = [taken for taken in takes if taken != "params"]
                end = did_you_mean(given, options)
                raise TypeError(f"OptimWrapper: {name} takes no '{given}'{end} It takes {', '.join(options)}")
    made = opt([_translated(name, group, defaults | kwargs) for group in _groups(params)], **kwargs)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"opt must give a torch.optim.Optimizer, got {describe(made)}")
    return _with_methods(made)


def _groups(params: Any) -> list[Any]:
    """Parameters as they came; lists of them, one a layer, as torch's groups."""
    several = [params] if isinstance(params, Tensor) else list(params)
    if any(isinstance(one, (Tensor, Mapping, tuple)) for one in several):  # a tuple is a parameter and its name
        return several
    return [{"params": list(layer), "layer": i} for i, layer in enumerate(several)]


def _translated(kind: str, given: Any, defaults: Mapping[str, Any]) -> Any:
    """Hyperparameters by fastai's names under those that the optimizer knows; a parameter as it is."""
    if not isinstance(given, Mapping):
        return given
    own = {name: value for name, value in given.items() if name not in FASTAI_NAMES or name in defaults}
    pairs: dict[str, Any] = {**defaults}
    for name in given.keys() - own.keys():
        spot = place(defaults, name)
        if spot is None:
            has = [known for known in ("lr", *FASTAI_NAMES) if place(defaults, known)]
            raise TypeError(f"OptimWrapper: {kind} has no {name}; of fastai's names it has {', '.join(has)}")
        if spot[0] in given:
            raise TypeError(f"OptimWrapper: {name} is {spot[0]} in {kind}: give one of the two")
        write(pairs, spot, HYPERS[name](f"{kind}: {name}", given[name]), fresh=True)
        own[spot[0]] = pairs[spot[0]]
    return own


def _with_methods(opt: torch.optim.Optimizer) -> GroupMethods:
    if not isinstance(opt, GroupMethods):
        kind: Any = type(opt)
        opt.__class__ = _class_with_methods(kind)
    return cast(GroupMethods, opt)


@functools.cache
def _class_with_methods(kind: Any) -> type[GroupMethods]:
    """A class of the same name, so that messages and what is printed speak of torch's."""

    def reduce(self: Any) -> Any:
        return _blank, (kind,), self.__getstate__()

    return type(kind.__name__, (GroupMethods, kind), {"__doc__": kind.__doc__, "__reduce__": reduce})


def _blank(kind: Any) -> torch.optim.Optimizer:
    """An optimizer whose state comes next, when a copy of one is made."""
    return object.__new__(_class_with_methods(kind))

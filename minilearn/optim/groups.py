"""Parameter groups for any optimizer, torch's and minilearn's alike: layers, hyperparameters by name, freezing.

A layer is what a splitter gives as one list of parameters. It makes up to two groups, as weight decay is not for
normalisation layers and biases; both carry the layer's number. An optimizer that was made elsewhere has none of these
numbers: each of its groups is a layer.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minilearn.errors import did_you_mean, in_range, warn, whole
from minilearn.optim.hypers import HYPERS, Place, name_of, named, place, read, write

Spread = float | Sequence[float] | slice
"""A hyperparameter's value for all layers, as `spread` takes it."""

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def param_groups(model: nn.Module, found: Iterable[Any], *, wd_bn_bias: bool) -> list[dict[str, Any]]:
    """Groups to make an optimizer with.

    Args:
        model: whose normalisation layers and biases are spared weight decay, in groups of their own.
        found: parameters, or lists of parameters, one a layer: what a splitter gives.
        wd_bn_bias: spare nothing.
    Returns:
        Groups with ``no_wd`` (whether they are spared weight decay), ``layer`` (the index in `found`) and, where
        there are some, ``norms`` (which of the group's parameters are a normalisation layer's).
    Raises:
        ValueError: there is no parameter.
    """
    layers = as_layers(found)
    if not any(layers):
        raise ValueError(NOTHING_TO_TRAIN.format(type(model).__name__))
    norms = _norm_params(model)
    spared = set() if wd_bn_bias else norm_and_bias_params(model)
    groups = []
    for i, layer in enumerate(layers):
        for no_wd in (False, True):
            params = [p for p in layer if (p in spared) == no_wd]
            positions = [at for at, p in enumerate(params) if p in norms]
            if params:
                groups.append(
                    {"params": params, "no_wd": no_wd, "layer": i} | ({"norms": positions} if positions else {})
                )
    return groups


NOTHING_TO_TRAIN = (
    "the model ({}) has no parameters to train: it has none at all, or all of them are frozen (requires_grad=False)"
)


def as_layers(found: Iterable[Any]) -> list[list[Any]]:
    """What a splitter gives, parameters or lists of parameters, as a list of lists: one a layer."""
    several = list(found)
    return [several] if not several or isinstance(several[0], Tensor) else [list(layer) for layer in several]


def norm_and_bias_params(model: nn.Module) -> set[nn.Parameter]:
    """The parameters of normalisation layers, and every bias."""
    biases = {p for module in model.modules() for name, p in module.named_parameters(recurse=False) if "bias" in name}
    return biases | _norm_params(model)


def _norm_params(model: nn.Module) -> set[nn.Parameter]:
    return {p for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)}


Made = dict[Tensor, tuple[Any, ...]]


def made_of(groups: Iterable[dict[str, Any]]) -> Made:
    """Each parameter's layer, and whether it is spared weight decay: what an optimizer was made of."""
    return {p: (group.get("layer"), group.get("no_wd")) for group in groups for p in group["params"]}


def still_made_of(made: Made, model: nn.Module, found: Iterable[Any], *, wd_bn_bias: bool) -> bool:
    """Whether an optimizer that was made of `made` trains what the splitter gives now.

    A parameter that the splitter no longer gives, as it is frozen, may stay: it gets no gradient.
    """
    layers = as_layers(found)
    now = made_of(param_groups(model, layers, wd_bn_bias=wd_bn_bias)) if any(layers) else {}
    gone = made.keys() - now.keys()
    return (
        all(made.get(p) == where for p, where in now.items())
        and not any(p.requires_grad for p in gone)
        and gone <= set(model.parameters())
    )


# ---- layers ----


def layer_numbers(opt: Optimizer) -> list[int]:
    """The layer of each group; groups that carry none are layers of their own, after those that do."""
    numbers: list[Any] = [group.get("layer") for group in opt.param_groups]
    if None not in numbers:
        return numbers
    after = max((number for number in numbers if number is not None), default=-1)
    found = []
    for number in numbers:
        after += number is None
        found.append(after if number is None else number)
    return found


def layer_count(opt: Optimizer) -> int:
    """How many layers an optimizer has: those that its splitter gave, else one a group."""
    return max(layer_numbers(opt), default=-1) + 1


def spread(value: Spread, n: int, name: str) -> list[float]:
    """One value a layer.

    Args:
        value: a number for all layers; a list or tuple of `n` numbers (or of one); ``slice(a, b)``, from `a` in the
            first layer to `b` in the last by equal factors; ``slice(b)``, `b` in the last layer and b/10 before.
        n: the number of layers.
        name: the argument, for the message.
    Raises:
        ValueError: there are not as many numbers as layers, a slice has a step or no end, or an end of a slice from
            `a` to `b` is not positive.
        TypeError: it is none of these.
    Source: `Optimizer.set_hyper` of fastai 2.8, but for ``slice(0, b)``, which is ``slice(b)`` there.

    >>> spread(0.1, 3, "lr"), spread([1, 2, 3], 3, "lr"), spread(slice(0.1), 3, "lr")
    ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0], [0.01, 0.01, 0.1])
    >>> [round(lr, 6) for lr in spread(slice(1e-4, 1e-2), 3, "lr")]
    [0.0001, 0.001, 0.01]
    """
    value = numbers_of(value, name)
    if isinstance(value, float):
        return [value] * n
    if isinstance(value, slice):
        if value.start is None:
            return [value.stop / 10] * (n - 1) + [value.stop]
        ratio = value.stop / value.start
        return [value.start * ratio ** (i / (n - 1)) for i in range(n - 1)] + [value.stop]
    if len(value) not in (1, n):
        allowed = "one number, as there is one layer" if n == 1 else f"one number, or one for each of the {n} layers"
        raise ValueError(f"{name} must be {allowed}, got {len(value)} numbers")
    return list(value) if len(value) == n else list(value) * n


def numbers_of(value: Any, name: str) -> float | list[float] | slice:
    """A value as `spread` takes it, with plain floats in it: what can be checked before the layers are known.

    Raises:
        ValueError: a number is outside the range of the hyperparameter `name`, or a slice has no meaning here.
        TypeError: there is something else than numbers.
    """
    check: Callable[[str, Any], float] = HYPERS.get(name, _number)
    if isinstance(value, slice):
        if value.stop is None or value.step is not None:
            raise ValueError(f"{name} must be slice(last) or slice(first, last), got {value}")
        if value.start is None:
            return slice(check(name, value.stop))
        first, last = check(name, value.start), check(name, value.stop)
        if first <= 0 or last <= 0:
            raise ValueError(
                f"{name} must be a slice between numbers greater than 0, as it goes by equal factors, got {value}"
            )
        return slice(first, last)
    if getattr(value, "ndim", None) == 0:  # an array or a tensor that is a single number
        value = value.item()
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        return check(name, value)
    return [check(name, number) for number in value]


def _number(name: str, value: Any) -> float:
    return in_range(name, value, -math.inf)


# ---- hyperparameters by name ----


def set_hyper(opt: Optimizer, name: str, value: Spread) -> None:
    """Sets a hyperparameter in every group, layer by layer.

    Groups that are spared weight decay keep 0 of it. A learning rate that is a tensor stays one.

    Args:
        opt: any optimizer.
        name: fastai's name or torch's.
        value: as `spread` takes it.
    Raises:
        ValueError: the optimizer does not have that hyperparameter, or was made without the rule that it is for; a
            value is out of its range; there are not as many values as layers. Nothing is changed then.
        TypeError: a value is no number.
    """
    _carry_out(_planned(opt, name, value))


def set_hypers(opt: Optimizer, **hypers: Spread | None) -> None:
    """Sets several hyperparameters, as `set_hyper`; None leaves one as it is.

    Groups that are spared weight decay have 0 of it afterwards, whatever the optimizer's default.
    """
    plans = [_planned(opt, name, value) for name, value in hypers.items() if value is not None]
    for plan in plans:
        _carry_out(plan)
    for group in opt.param_groups:
        spot = place(group, "wd") if group.get("no_wd") else None
        if spot is not None:
            write(group, spot, 0.0, fresh=True)


Plan = list[tuple[dict[str, Any], Place, float]]


def _planned(opt: Optimizer, name: str, value: Spread) -> Plan:
    """What a hyperparameter's value means for each group that has it."""
    layers = layer_numbers(opt)
    found = [(group, place(group, name), layer) for group, layer in zip(opt.param_groups, layers, strict=True)]
    spots = [(group, spot, layer) for group, spot, layer in found if spot is not None]
    if not spots:
        raise ValueError(_unknown(opt, name))
    known = name_of(*spots[0][:2])
    kind = type(opt).__name__
    label, n = f"{kind}: {known}", max(layers) + 1
    check: Callable[[str, Any], float] = HYPERS.get(known, _number)
    if type(value) is float:  # nearly always; a schedule comes here in every batch
        numbers = [check(label, value)] * n
    else:
        numbers = [check(label, number) for number in spread(value, n, label)]
    plan = [
        (group, spot, 0.0 if known == "wd" and group.get("no_wd") else numbers[layer]) for group, spot, layer in spots
    ]
    unused = isinstance(opt, GroupMethods) and not opt.uses_hyper(known)
    if unused and any(read(group, spot) != number for group, spot, number in plan):
        raise ValueError(f"{kind}: {known} has no effect, as it was made without it: make it with {known}=…")
    return plan


def _carry_out(plan: Plan) -> None:
    written: dict[int, float] = {}
    for group, spot, number in plan:
        key, index = spot
        held = group[key] if index is None else group[key][index]
        if type(held) is float and index is None:
            group[key] = number
            continue
        # torch puts one tensor into all groups: where they are to differ, each gets its own.
        differs = isinstance(held, Tensor) and written.setdefault(id(held), number) != number
        write(group, spot, number, fresh=differs)


def _unknown(opt: Optimizer, name: str) -> str:
    has = list(dict.fromkeys(known for group in opt.param_groups for known in named(group)))
    if name == "betas" and "mom" in has:
        return f"{type(opt).__name__}: set betas by the names of its numbers, mom and sqr_mom"
    torchs = [other for other, own in (("momentum", "mom"), ("weight_decay", "wd")) if own in has]
    end = did_you_mean(name, has + torchs)
    return f"{type(opt).__name__} has no hyperparameter '{name}'{end} It has {', '.join(has)}"


def hyper_name(opt: Optimizer, name: str) -> str:
    """fastai's name of a hyperparameter; a ValueError where the optimizer has none of the name that came."""
    for group in opt.param_groups:
        if (spot := place(group, name)) is not None:
            return name_of(group, spot)
    raise ValueError(_unknown(opt, name))


def hypers(opt: Optimizer) -> list[dict[str, float]]:
    """The hyperparameters of each group, by fastai's names. Where one is a tensor on a GPU, this waits for it."""
    return [{name: read(group, spot) for name, spot in named(group).items()} for group in opt.param_groups]


def has_momentum(opt: Optimizer) -> bool:
    """Whether an optimizer was made with momentum: it has one, and in some group it is not 0."""
    spots = [(group, place(group, "mom")) for group in opt.param_groups]
    return any(spot is not None and read(group, spot) != 0 for group, spot in spots)


# ---- freezing ----


def freeze_to(opt: Optimizer, n: int, *, train_bn: bool = True) -> None:
    """Freezes the layers before number `n`, and trains those from `n` on.

    A frozen parameter has ``requires_grad=False`` and no gradient; the optimizer's averages for it stay as they are.
    The running averages of batch normalisation go on in frozen layers too, as they are no parameters.

    Args:
        opt: any optimizer; its layers are those that its groups carry, else its groups.
        n: the first layer that is trained; from the end where it is negative. As many as there are layers, or more,
            freezes all of them, with a warning.
        train_bn: whether the parameters of normalisation layers are trained in frozen layers too.
    Raises:
        ValueError: `n` counts from the end past the first layer.
        TypeError: `n` is no whole number.
    Source: `Optimizer.freeze_to` of fastai 2.8, where an `n` before the first layer trains all of them.
    """
    count = layer_count(opt)
    first = whole("n", n, -count)
    first += count if first < 0 else 0
    for group, layer in zip(opt.param_groups, layer_numbers(opt), strict=True):
        norms = set(group.get("norms", ())) if train_bn else set()
        for at, p in enumerate(group["params"]):
            p.requires_grad_(layer >= first or at in norms)
            if not p.requires_grad:
                p.grad = None  # the next step would still move it
    if first >= count:
        trained = "only normalisation layers are trained" if has_trainable(opt) else "nothing is trained"
        layers = "is 1 layer" if count == 1 else f"are {count} layers"
        warn(f"freeze_to({n}): there {layers}, so all of them are frozen: {trained}")


def freeze(opt: Optimizer, *, train_bn: bool = True) -> None:
    """Freezes all layers but the last, as `freeze_to`; a single layer goes on training."""
    freeze_to(opt, -1, train_bn=train_bn)


def unfreeze(opt: Optimizer) -> None:
    """Trains all layers."""
    freeze_to(opt, 0)


def has_trainable(opt: Optimizer) -> bool:
    """Whether any of an optimizer's parameters is trained."""
    return any(p.requires_grad for group in opt.param_groups for p in group["params"])


def freeze_note(opt: Optimizer, model: nn.Module, n: int) -> str:
    """What `freeze_to(n)` left undone that was perhaps expected, in a sentence; empty where it did all of it."""
    if n == -1 and layer_count(opt) == 1:
        several = "there is one layer; Learner(splitter=...) makes several"
        why = several if "layer" in opt.param_groups[0] else f"{type(opt).__name__} has all parameters in one group"
        return f"freeze_to({n}): nothing is frozen, as {why}"
    known = {p for group in opt.param_groups for p in group["params"]}
    left = sum(not p.requires_grad for p in model.parameters() if p not in known)
    if n == 0 and left:
        return f"{left} of the model's parameters stay frozen, as the splitter left them out of the optimizer"
    return ""


def clear_state(opt: Optimizer) -> None:
    """Forgets the averages and the counts of steps of all parameters."""
    if isinstance(opt, torch.optim.Adagrad):  # it makes its state when it is made (torch 2.13), not at the first step
        for group in opt.param_groups:
            for p in group["params"]:
                opt.state[p]["step"].zero_()
                opt.state[p]["sum"].fill_(group["initial_accumulator_value"])
    else:
        opt.state.clear()


class GroupMethods(Optimizer):
    """The functions of this file as an optimizer's methods, by fastai's names."""

    @property
    def hypers(self) -> list[dict[str, float]]:
        """The hyperparameters of each group: ``opt.hypers[-1]["lr"]``."""
        return hypers(self)

    def uses_hyper(self, name: str) -> bool:
        """Whether the rule takes a hyperparameter that the groups have; one that it does not take cannot be changed."""
        return True

    def set_hyper(self, name: str, value: Spread) -> None:
        """Sets a hyperparameter, layer by layer: see `set_hyper`."""
        set_hyper(self, name, value)

    def set_hypers(self, **hypers: Spread | None) -> None:
        """Sets several hyperparameters: ``opt.set_hypers(lr=slice(1e-5, 1e-3), mom=0.9)``."""
        set_hypers(self, **hypers)

    def freeze_to(self, n: int, *, train_bn: bool = True) -> None:
        """Freezes the layers before number `n`: see `freeze_to`."""
        freeze_to(self, n, train_bn=train_bn)

    def freeze(self, *, train_bn: bool = True) -> None:
        """Freezes all layers but the last."""
        freeze(self, train_bn=train_bn)

    def unfreeze(self) -> None:
        """Trains all layers."""
        unfreeze(self)

    def clear_state(self) -> None:
        """Forgets the averages and the counts of steps of all parameters."""
        clear_state(self)

"""Hyperparameters by name: what each may be, and where an optimizer's groups keep it, torch's and minilearn's alike.

The names are fastai's. In a group a hyperparameter may be called otherwise, or be one number of a pair:

    lr       lr
    mom      mom, momentum, betas[0]
    sqr_mom  sqr_mom, betas[1], alpha (torch's RMSprop), rho (torch's Adadelta)
    eps      eps
    wd       wd, weight_decay

Any other number in a group keeps its own name.
"""

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from numbers import Real
from operator import is_
from typing import Any

from torch import Tensor

from minilearn.errors import in_range, positive

HYPERS: dict[str, Callable[[str, float], float]] = {
    "lr": lambda name, value: in_range(name, value, 0),
    "mom": lambda name, value: in_range(name, value, 0, 1),
    "sqr_mom": lambda name, value: in_range(name, value, 0, 1),
    "eps": positive,
    "l1": lambda name, value: in_range(name, value, 0),
    "dampening": lambda name, value: in_range(name, value, 0),
    "avg_mom": lambda name, value: in_range(name, value, 0, 1),
    "nu_1": lambda name, value: in_range(name, value, 0, math.inf),
    "nu_2": lambda name, value: in_range(name, value, 0, math.inf),
    "trust": positive,
    "wd": lambda name, value: in_range(name, value, 0),
}
"""What each hyperparameter may be, in every optimizer and in every group."""

Place = tuple[str, int | None]
"""A key of a group, and the number in it where the key holds a pair."""

PLACES: dict[str, tuple[Place, ...]] = {
    "mom": (("mom", None), ("momentum", None), ("betas", 0)),
    "sqr_mom": (("sqr_mom", None), ("betas", 1), ("alpha", None), ("rho", None)),
    "wd": (("wd", None), ("weight_decay", None)),
}
"""Where a hyperparameter may be found, by fastai's name, in the order of looking."""
FASTAI = {spot: name for name, spots in PLACES.items() for spot in spots}

OF_TORCHS_SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
"""What torch's schedulers write into groups for themselves."""

NO_HYPERS = ("params", "layer", "lookahead_step", *OF_TORCHS_SCHEDULERS)
"""Keys of a group that hold no hyperparameter, though some of them hold numbers."""


def place(group: Mapping[str, Any], name: str) -> Place | None:
    """Where a group keeps a hyperparameter, by fastai's name or by torch's own; None where it has no such number.

    >>> place({"betas": (0.9, 0.999)}, "mom"), place({"weight_decay": 0.0}, "wd"), place({"lr": 0.1}, "mom")
    (('betas', 0), ('weight_decay', None), None)
    """
    name = {"momentum": "mom", "weight_decay": "wd"}.get(name, name)
    for key, index in PLACES.get(name, ((name, None),)):
        if key in group and (key == name or _is_meant(group, key, index)):
            value = group[key]
            if isinstance(value, (tuple, list)):
                value = value[index] if index is not None and len(value) > index else None
            if _is_number(value) and key not in NO_HYPERS:
                return key, index
    return None


def name_of(group: Mapping[str, Any], spot: Place) -> str:
    """Fastai's name of what a group keeps at a place; the key itself where fastai has none."""
    name = FASTAI.get(spot, spot[0])
    return name if place(group, name) == spot else spot[0]


def named(group: Mapping[str, Any]) -> dict[str, Place]:
    """The place of every hyperparameter of a group, by fastai's names, in the group's order."""
    spots: list[Place] = [(key, index) for key in group for index in (None, 0, 1)]
    names = [(name_of(group, spot), spot) for spot in spots]
    return {name: spot for name, spot in names if place(group, name) == spot}


def read(group: Mapping[str, Any], spot: Place) -> float:
    """The number at a place. Where it is a tensor on a GPU, this waits for it."""
    key, index = spot
    return float(group[key] if index is None else group[key][index])


def write(group: MutableMapping[str, Any], spot: Place, value: float, *, fresh: bool = False) -> None:
    """Sets the number at a place.

    A tensor is filled, so that whoever holds it (a captured graph, say) sees the change; with `fresh` it is replaced.
    """
    key, index = spot
    before = group[key] if index is None else group[key][index]
    after: Any = value
    if isinstance(before, Tensor):
        after = (before.clone() if fresh else before).fill_(value)
    elif isinstance(before, int) and name_of(group, spot) not in HYPERS and value == int(value):
        after = int(value)  # a count
    if index is None:
        group[key] = after
    else:
        group[key] = type(group[key])(after if i == index else old for i, old in enumerate(group[key]))


class Setter:
    """Sets a hyperparameter to one number in all groups again and again, as a schedule does in every batch.

    Where it lies is looked up once, and again when the groups are others. What is not a plain number in each of them,
    or is not wanted of all of them, is left to the careful way.

    Args:
        opt: the optimizer.
        name: fastai's name or torch's.
        careful: sets it whatever there is, `groups.set_hyper`.
    """

    def __init__(self, opt: Any, name: str, careful: Callable[[Any, str, Any], None]) -> None:
        self._opt, self._name, self._careful = opt, name, careful
        self._groups: list[Any] = []
        self._held: list[tuple[Any, str]] = []
        self._label, self._check = "", HYPERS["lr"]

    def __call__(self, value: Any) -> None:
        """Sets it; raises what `groups.set_hyper` raises."""
        groups = self._opt.param_groups
        if len(groups) != len(self._groups) or not all(map(is_, groups, self._groups)):
            self._careful(self._opt, self._name, value)
            self._look()
        elif type(value) is float and self._held and all([type(group[key]) is float for group, key in self._held]):  # noqa: C419 -- a list is twice as fast here
            value = self._check(self._label, value)
            for group, key in self._held:
                group[key] = value
        else:
            self._careful(self._opt, self._name, value)

    def _look(self) -> None:
        opt = self._opt
        self._groups, self._held = list(opt.param_groups), []
        found = [(group, place(group, self._name)) for group in self._groups]
        spots = [(group, spot) for group, spot in found if spot is not None]
        known = name_of(*spots[0])
        uses = getattr(opt, "uses_hyper", None)
        single = known in HYPERS and known != "wd" and all(i is None for _, (_, i) in spots)
        if single and (uses is None or uses(known)):
            self._held = [(group, key) for group, (key, _) in spots]
            self._label, self._check = f"{type(opt).__name__}: {known}", HYPERS[known]


def _is_number(value: object) -> bool:
    if type(value) is float:  # nearly always
        return True
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_meant(group: Mapping[str, Any], key: str, index: int | None) -> bool:
    """Whether a key that others use for something else is what its place in `PLACES` says."""
    if key == "alpha":  # torch's ASGD has one too: a power
        return "centered" in group
    if key == "rho":  # a sharpness-aware optimizer has one too: a radius
        return "eps" in group and not {"mom", "momentum", "betas"} & group.keys()
    return index != 1 or len(group[key]) == 2  # of three betas the last is the squares', or none is


def last_layer(groups: Sequence[Mapping[str, Any]]) -> int:
    """The group that stands for the last layer, counted from the end: one that has weight decay, if it has any.

    Layers are numbered where a Learner made the groups; of others the last is taken.
    """
    for i in range(-len(groups), 0):
        if groups[i].get("layer") == groups[-1].get("layer", i) and not groups[i].get("no_wd"):
            return i
    return -1


class Group(dict[str, Any]):
    """A parameter group that answers to torch's names too, so that torch's OneCycleLR and CyclicLR find them."""

    def __init__(self, hypers: Mapping[str, Any]) -> None:
        super().__init__({TORCHS_NAMES.get(name, name): value for name, value in hypers.items()})

    def __missing__(self, name: str) -> Any:
        if name not in TORCHS_NAMES:
            raise KeyError(name)
        return self[TORCHS_NAMES[name]]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(TORCHS_NAMES.get(name, name))  # type: ignore[call-overload]

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(TORCHS_NAMES.get(name, name), value)

    def pop(self, name: str, *default: Any) -> Any:
        """As a dict's own, which would not ask the methods above; `get`, `update` and `setdefault` neither."""
        return super().pop(TORCHS_NAMES.get(name, name), *default)

    get = MutableMapping.get  # type: ignore[assignment]
    update, setdefault = MutableMapping.update, MutableMapping.setdefault

    def __delitem__(self, name: str) -> None:
        super().__delitem__(TORCHS_NAMES.get(name, name))

    def __reduce__(self) -> tuple[Any, ...]:
        return Group, (dict(self),)


TORCHS_NAMES = {"momentum": "mom", "weight_decay": "wd"}

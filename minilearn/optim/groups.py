"""Parameter groups for any optimizer, torch's and minilearn's alike: which parameters weight decay is for."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from minilearn.errors import did_you_mean, in_range

WD_NAMES = ("wd", "weight_decay")
"""What weight decay is called in an optimizer's groups: ours and fastai's name, torch's name."""
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
        found: parameters, or lists of parameters: what a splitter gives.
        wd_bn_bias: spare nothing.
    Raises:
        ValueError: there is no parameter.
    """
    several = list(found)
    groups = [several] if not several or isinstance(several[0], Tensor) else [list(group) for group in several]
    if not any(groups):
        raise ValueError(
            f"the model ({type(model).__name__}) has no parameters to train:"
            " it has none at all, or all of them are frozen (requires_grad=False)"
        )
    spared = set() if wd_bn_bias else norm_and_bias_params(model)
    split = [
        {"params": [p for p in group if (p in spared) == no_wd], "no_wd": no_wd, "layer": layer}
        for layer, group in enumerate(groups)
        for no_wd in (False, True)
    ]
    return [group for group in split if group["params"]]


def norm_and_bias_params(model: nn.Module) -> set[nn.Parameter]:
    """The parameters of normalisation layers, and every bias."""
    return {
        p
        for module in model.modules()
        for name, p in module.named_parameters(recurse=False)
        if isinstance(module, NORMS) or "bias" in name
    }


def set_hypers(opt: Optimizer, *, lr: float | None = None, wd: float | None = None) -> None:
    """Sets the learning rate and the weight decay of every group; None leaves one as it is.

    Groups that are spared weight decay have 0 of it, whatever `wd` is and whatever the optimizer's default.
    """
    for group in opt.param_groups:
        if lr is not None:
            group["lr"] = lr
        for name in WD_NAMES:
            if name in group and group.get("no_wd"):
                group[name] = 0.0
            elif name in group and wd is not None:
                group[name] = wd


TORCH_NAMES: dict[str, tuple[tuple[str, int | None], ...]] = {
    "mom": (("momentum", None), ("betas", 0)),
    "sqr_mom": (("betas", 1), ("alpha", None), ("rho", None)),
    "wd": (("weight_decay", None),),
}


def _place(group: dict[str, Any], name: str) -> tuple[str, int | None] | None:
    for key, i in ((name, None), *TORCH_NAMES.get(name, ())):
        if key in group:
            return key, i
    return None


def _layers(opt: Optimizer) -> list[int]:
    return [group.get("layer", i) for i, group in enumerate(opt.param_groups)]


def layer_count(opt: Optimizer) -> int:
    """How many layers the groups of an optimizer are of."""
    return max(_layers(opt)) + 1


def spread(value: Any, n: int, name: str) -> list[float]:
    """A value for each of `n` layers."""
    if isinstance(value, slice):
        stop = in_range(name, value.stop, 0)
        if value.start is None:
            return [stop / 10] * (n - 1) + [stop]
        start = in_range(name, value.start, 0)
        return [start * (stop / start) ** (i / (n - 1)) for i in range(n)] if n > 1 else [stop]
    if isinstance(value, (list, tuple)):
        if len(value) != n:
            raise ValueError(f"{name} must have one value for each of the {n} layers, got {len(value)}")
        return [in_range(name, v, 0) for v in value]
    return [in_range(name, value, 0)] * n


def set_hyper(opt: Optimizer, name: str, value: float | Sequence[float]) -> None:
    """Sets a hyperparameter, under fastai's name, in every group."""
    layers = _layers(opt)
    values = value if isinstance(value, (list, tuple)) else [value] * (max(layers) + 1)
    if len(values) != max(layers) + 1:
        raise ValueError(f"{name} must have one value for each of the {max(layers) + 1} layers, got {len(values)}")
    for group, layer in zip(opt.param_groups, layers, strict=True):
        place = _place(group, name)
        if place is None:
            raise ValueError(
                f"{type(opt).__name__} has no hyperparameter '{name}'{did_you_mean(name, hypers(opt)[-1])}"
            )
        key, i = place
        if name == "wd" and group.get("no_wd"):
            continue
        if i is not None:
            group[key] = tuple(values[layer] if j == i else old for j, old in enumerate(group[key]))
        elif isinstance(group[key], Tensor):
            group[key].fill_(values[layer])
        else:
            group[key] = values[layer]


def hypers(opt: Optimizer) -> list[dict[str, float]]:
    """The hyperparameters of every group, under fastai's names."""
    names = ("lr", "mom", "sqr_mom", "eps", "wd", "l1")
    found = []
    for group in opt.param_groups:
        row = {}
        for name in names:
            place = _place(group, name)
            if place is not None:
                key, i = place
                row[name] = float(group[key] if i is None else group[key][i])
        found.append(row)
    return found


def has_momentum(opt: Optimizer) -> bool:
    """Whether an optimizer was made with momentum."""
    return any(row.get("mom", 0.0) > 0 for row in hypers(opt))

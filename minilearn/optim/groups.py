"""Parameter groups for any optimizer, torch's and minilearn's alike: which parameters weight decay is for."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

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
        {"params": [p for p in group if (p in spared) == no_wd], "no_wd": no_wd}
        for group in groups
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

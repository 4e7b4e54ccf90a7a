"""Which losses take what: known ones sorted by what they make of predictions and targets."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minilearn.checks import ELEMENTWISE, check_inputs
from minilearn.losses import (
    OF_LOGITS,
    BaseLoss,
    DiceLoss,
    FocalLoss,
    LabelSmoothingCrossEntropy,
    flat_mse,
)

LOGITS_OF_CLASSES, DICE, YES_OR_NO, SHARES, LOG_SHARES, DISTANCE = (
    "logits of classes",
    "logits of classes, by overlap",
    "logits, each of a yes or no",
    "probabilities",
    "logarithms of probabilities",
    "numbers",
)
LOSSES: dict[str, tuple[Any, ...]] = {
    LOGITS_OF_CLASSES: (F.cross_entropy, nn.CrossEntropyLoss, FocalLoss, LabelSmoothingCrossEntropy),
    DICE: (DiceLoss,),
    YES_OR_NO: (*OF_LOGITS, nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss),
    SHARES: (F.binary_cross_entropy, nn.BCELoss),
    LOG_SHARES: (F.nll_loss, nn.NLLLoss),
    DISTANCE: (
        *(loss for loss in ELEMENTWISE if loss not in (F.poisson_nll_loss, nn.PoissonNLLLoss, F.kl_div, nn.KLDivLoss)),
        flat_mse,
    ),
}
"""Known losses, by what they take as predictions."""
WATCHED = tuple(loss for losses in LOSSES.values() for loss in losses if getattr(loss, "__module__", "") == F.__name__)


def unwrapped(loss_func: Any) -> Any:
    """The loss within partials and `BaseLoss`."""
    while isinstance(loss_func, (partial, BaseLoss)):
        loss_func = loss_func.func
    return loss_func


def kind_of(loss_func: Any) -> str:
    """What a loss takes as predictions, one of `LOSSES`; empty for one that is not known."""
    plain = unwrapped(loss_func)
    for kind, losses in LOSSES.items():
        if any(plain is loss or (isinstance(loss, type) and isinstance(plain, loss)) for loss in losses):
            return kind
    return ""


def name_of(loss_func: Any) -> str:
    """What a loss is called."""
    while isinstance(loss_func, partial):
        loss_func = loss_func.func
    return str(getattr(loss_func, "__name__", type(loss_func).__name__))


def axis_of(loss_func: Any) -> int:
    """The classes' axis of what a loss takes."""
    while isinstance(loss_func, partial):
        loss_func = loss_func.func
    return loss_func.axis if isinstance(loss_func, (BaseLoss, DiceLoss)) else 1


def option_of(loss_func: Any, name: str, otherwise: Any) -> Any:
    """An option that a loss was made or is called with, such as `reduction`."""
    while isinstance(loss_func, (partial, BaseLoss)):
        if isinstance(loss_func, partial) and name in loss_func.keywords:
            return loss_func.keywords[name]
        loss_func = loss_func.func
    return getattr(loss_func, name, otherwise)


Comparison = tuple[Callable[..., Any], Tensor, Tensor]
"""A loss, what it was given as predictions, and as targets."""


def comparisons(loss_func: Callable[..., Any], pred: Any, yb: tuple[Any, ...]) -> list[Comparison]:
    """What a loss compares with what: itself where it is known, else torch's losses that it calls.

    A loss that is not known is carried out to see; an error in it is left to whoever calls it next.
    """
    if kind_of(loss_func):
        single = isinstance(pred, Tensor) and len(yb) == 1 and isinstance(yb[0], Tensor)
        return [(loss_func, pred, yb[0])] if single else []
    with _seen() as seen:
        try:
            loss_func(pred, *yb)
        except Exception:
            return seen
    return seen


@contextmanager
def _seen() -> Iterator[list[Comparison]]:
    watch = _Watch()
    with watch:
        yield watch.found


class _Watch(TorchFunctionMode):
    """Notes what torch's losses are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Comparison] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WATCHED and len(args) > 1 and all(isinstance(arg, Tensor) for arg in args[:2]):
            loss = partial(func, **(kwargs or {}))
            self.found.append((loss, args[0], args[1]))
            check_inputs(loss, args[0], (args[1],))  # on a GPU a class index out of range ends the process
        return func(*args, **(kwargs or {}))

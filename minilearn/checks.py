"""What a batch shows to be wrong: on a fit's first one as an error, after a failure as a note beside torch's words."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minilearn.errors import same_shape, shapes_message
from minilearn.losses import (
    BaseLoss,
    CrossEntropyLossFlat,
    DiceLoss,
    FocalLoss,
    FocalLossFlat,
    LabelSmoothingCrossEntropy,
    LabelSmoothingCrossEntropyFlat,
    flat_binary_cross_entropy,
    flat_mse,
    mnist_loss,
)
from minilearn.tensors import batch_size, shape_text

ELEMENTWISE = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    F.poisson_nll_loss,
    F.kl_div,
    nn.PoissonNLLLoss,
    nn.KLDivLoss,
)
"""torch's losses that compare element by element and would broadcast."""
OVER_CLASSES = (
    F.cross_entropy,
    F.nll_loss,
    nn.CrossEntropyLoss,
    nn.NLLLoss,
    CrossEntropyLossFlat,
    DiceLoss,
    FocalLoss,
    FocalLossFlat,
    LabelSmoothingCrossEntropy,
    LabelSmoothingCrossEntropyFlat,
)
"""Losses that take class indices as targets."""
TORCHS_OVER_CLASSES = (F.cross_entropy, F.nll_loss, nn.CrossEntropyLoss, nn.NLLLoss)
"""Those of them that take indices as int64 or uint8 only."""
ZERO_OR_ONE = (mnist_loss, flat_binary_cross_entropy)
"""Losses that take 0 and 1 as targets and make something of other numbers all the same."""
OF_YES_OR_NO = (
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
)
"""torch's losses that take a float from 0 to 1 as the target of each prediction."""
RESHAPING = (flat_binary_cross_entropy, flat_mse, BaseLoss)
"""Losses that flatten what they are given, and look at the shapes themselves."""


def check_inputs(loss_func: Callable[..., Any], pred: Any, yb: tuple[Any, ...]) -> None:
    """Refuses what a known loss would take in silence, or would only fail on inside the device.

    Raises:
        ValueError: shapes that would broadcast, a class index outside the classes, targets that are not 0 or 1.
    """
    target = _single_target(pred, yb)
    if target is None:
        return
    if _is_one_of(loss_func, ELEMENTWISE):
        same_shape(_name(loss_func), pred, target)
    if _is_one_of(loss_func, OVER_CLASSES):
        problem = _form_problem(loss_func, pred, target) or _class_problem(loss_func, pred, target)
        if problem:
            raise ValueError(f"{_name(loss_func)}: {problem}")
    if _is_one_of(loss_func, OF_YES_OR_NO) and (problem := _yes_or_no_problem(pred, target)):
        raise ValueError(f"{_name(loss_func)}: {problem}")
    if _is_one_of(loss_func, ZERO_OR_ONE) and not bool(((target == 0) | (target == 1)).all()):
        low, high = target.min().item(), target.max().item()
        raise ValueError(f"{_name(loss_func)}: targets must be 0 or 1, got numbers from {low} to {high}")


def first_loss(loss_func: Callable[..., Any], pred: Any, yb: tuple[Any, ...], *, training: bool) -> Tensor:
    """The loss of a fit's first batch, looked at closely.

    Raises:
        ValueError: what `check_inputs` finds; predictions and targets were broadcast against each other; the loss is
            not one number, or does not depend on the parameters.
    """
    check_inputs(loss_func, pred, yb)
    target = _single_target(pred, yb)
    if target is not None and pred.shape != target.shape and not _is_one_of(loss_func, RESHAPING):
        with _WatchLoss(pred, target) as watch:
            loss = loss_func(pred, target)
        if watch.broadcast:
            raise ValueError(shapes_message(_name(loss_func), pred.shape, target.shape))
    else:
        loss = loss_func(pred, *yb)
    if not isinstance(loss, Tensor):
        raise ValueError(f"the loss must be a tensor that holds one number, got {loss!r}")
    if loss.ndim:
        raise ValueError(
            f"the loss must be a tensor that holds one number, got {shape_text(loss)}; average it: .mean()"
        )
    if training and not loss.requires_grad:
        raise ValueError(
            "the loss does not depend on the model's parameters, so there is nothing to train: look for .detach(),"
            " .item(), argmax or a comparison in the model or the loss, and for torch.no_grad() around the fit"
        )
    return loss


class _WatchLoss(TorchFunctionMode):
    """Sees whether an operation takes predictions and targets of different shapes to the shape of both together.

    A loss that hands over to torch's over classes is looked at before that is carried out: a class index out of range
    ends the process where it is found on a GPU.
    """

    def __init__(self, pred: Tensor, target: Tensor) -> None:
        super().__init__()
        self.broadcast = False
        self._shapes = {pred.shape, target.shape}
        try:
            self._together = torch.broadcast_shapes(pred.shape, target.shape)  # type: ignore[no-untyped-call]
        except RuntimeError:
            self._together = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.cross_entropy, F.nll_loss) and len(args) > 1:
            check_inputs(partial(func, **(kwargs or {})), args[0], (args[1],))
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.shape == self._together and self._together not in self._shapes:
            seen = {arg.shape for arg in args if isinstance(arg, Tensor)}
            self.broadcast |= self._shapes <= seen
        return out


def explain_model(error: Exception, model: nn.Module, xb: Any, batch: Any) -> None:
    """Adds to an error that came up in the model what it was given, and the fix where that shows it."""
    error.add_note(f"the model was given {shape_text(xb)}")
    if not isinstance(xb, (tuple, Mapping)):
        error.add_note("self.learn.xb must be a tuple: self.learn.xb = (x,)")
        return
    inputs = list(xb.values()) if isinstance(xb, Mapping) else list(xb)
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    wrong = [x.dtype for x in inputs if isinstance(x, Tensor) and x.dtype not in dtypes]
    if "dtype" in str(error) and wrong and dtypes:
        wanted, came = (str(dtype).removeprefix("torch.") for dtype in (dtypes.pop(), wrong[0]))
        fix = "x.float() / 255" if wrong[0] is torch.uint8 else f"x.to(torch.{wanted})"
        fix += ", or cbs=Cast()" if wrong[0].is_floating_point else ""
        error.add_note(f"its parameters are {wanted}, the input is {came}: give it {fix}")
    if "device" in str(error) and (note := _devices(model, inputs)):
        error.add_note(note)
    if isinstance(error, TypeError) and isinstance(batch, (tuple, list)) and len(batch) > 2:
        error.add_note(
            f"{len(inputs)} of the batch's {len(batch)} parts are inputs: DataLoaders(..., n_inp=...) says how many"
        )
    if isinstance(error, TypeError) and isinstance(batch, Mapping):
        error.add_note(
            "of a dict batch the entries y, target and label (or their plurals) are targets, the rest inputs"
        )
    if "Expected more than 1 value per channel" in str(error) and batch_size(xb) == 1:
        error.add_note("batch normalisation cannot train on one row: leave the last, smaller batch out, drop_last=True")


def _devices(model: nn.Module, inputs: list[Any]) -> str:
    """Where the model is, and where the data; empty where that is one place."""
    of_model = sorted({str(p.device) for p in model.parameters()})
    of_data = sorted({str(x.device) for x in inputs if isinstance(x, Tensor)})
    if of_model == of_data or not of_model or not of_data:
        return ""
    return (
        f"the model is on another device than the data: on {', '.join(of_model)}, the input on {', '.join(of_data)}."
        " The DevicePlacement callback, one of the default ones, brings both together"
    )


def explain_loss(error: Exception, loss_func: Callable[..., Any] | None, pred: Any, yb: tuple[Any, ...]) -> None:
    """Adds to an error that came up in the loss what it was given, and the cause where that shows it."""
    error.add_note(f"the loss was given predictions {shape_text(pred)} and targets {shape_text(yb)}")
    target = _single_target(pred, yb)
    # After an error on a GPU its memory cannot be read.
    if target is not None and target.device.type == "cpu" and isinstance(error, IndexError):
        error.add_note(_class_problem(loss_func, pred, target))


def _single_target(pred: Any, yb: tuple[Any, ...]) -> Tensor | None:
    """The target, where a tensor of predictions meets one tensor of targets."""
    single = isinstance(pred, Tensor) and len(yb) == 1 and isinstance(yb[0], Tensor)
    return yb[0] if single else None


def _class_problem(loss_func: Callable[..., Any] | None, pred: Tensor, target: Tensor) -> str:
    """What is wrong with the class indices in `target`; empty where nothing is."""
    if target.is_floating_point() or target.dtype == torch.bool or pred.ndim < 2 or not target.numel():
        return ""
    if pred.ndim == 2 and target.shape == (pred.shape[0], 1) and not isinstance(loss_func, BaseLoss):
        return (
            f"predictions are {tuple(pred.shape)} but targets are {tuple(target.shape)}:"
            " class indices have no last axis. Use targets.squeeze(1)."
        )
    counted = target[target != _ignored(loss_func)]
    if not counted.numel():
        return ""
    axis = loss_func.axis if isinstance(loss_func, (BaseLoss, DiceLoss)) else 1
    if not -pred.ndim <= axis < pred.ndim:
        return ""  # the loss says so itself
    low, high, classes = int(counted.min()), int(counted.max()), pred.shape[axis]
    if low >= 0 and high < classes:
        return ""
    return (
        f"class indices must be in [0, {classes}), as the model gives {classes} classes, but targets run from {low} to"
        f" {high}. Give the model's last layer {high + 1} outputs, or number the classes from 0."
    )


def _form_problem(loss_func: Callable[..., Any], pred: Tensor, target: Tensor) -> str:
    """What is wrong with the targets of a loss over classes, neither indices nor shares; empty where nothing is."""
    if isinstance(loss_func, (BaseLoss, DiceLoss)) or pred.ndim < 2:
        return ""  # they flatten, or make indices of what they get
    came = shape_text(target)
    indices = target.shape == pred.shape[:1] + pred.shape[2:]
    shares = target.shape == pred.shape
    takes_shares = _is_one_of(loss_func, (F.cross_entropy, nn.CrossEntropyLoss))
    if shares and not target.is_floating_point():
        also = " (or targets.float(), which are then the classes' shares)" if takes_shares else ""
        return f"targets are {came}, one-hot it seems, where class indices are meant. Use targets.argmax(1){also}."
    if shares and not takes_shares and not indices:
        return f"targets are {came}, one-hot or shares, where class indices are meant. Use targets.argmax(1)."
    if indices and target.is_floating_point():
        return (
            f"targets are {came}, but class indices are whole numbers. Use targets.long(); for a number that is no"
            " class, a loss of distances such as nn.functional.mse_loss."
        )
    if indices and target.dtype not in (torch.int64, torch.uint8) and _is_one_of(loss_func, TORCHS_OVER_CLASSES):
        return f"targets are {came}, but torch takes class indices as int64. Use targets.long()."
    return ""


def _yes_or_no_problem(pred: Tensor, target: Tensor) -> str:
    """What is wrong with the targets of a binary cross-entropy; empty where nothing is."""
    if target.shape == pred.shape and target.is_floating_point():
        if not target.numel():
            return ""
        low, high = target.min().item(), target.max().item()
        # Written so that nan, which another look names, is no problem of range.
        return f"targets must be from 0 to 1, got numbers from {low:g} to {high:g}." if low < 0 or high > 1 else ""
    if target.shape == pred.shape:
        return f"targets are {shape_text(target)}, but must be floats. Use targets.float()."
    if pred.ndim > 1 and target.shape == pred.shape[:1] + pred.shape[2:] and pred.shape[1] > 1:
        return (
            f"predictions are {tuple(pred.shape)} but targets are {shape_text(target)}: class indices, it seems, where"
            f" one-hot is meant. Use nn.functional.one_hot(targets, {pred.shape[1]}).float(), or cross_entropy for one"
            " class a row."
        )
    return shapes_message("", pred.shape, target.shape).removeprefix(": ") + " Each prediction has one target."


def _ignored(loss_func: Callable[..., Any] | None) -> int:
    if isinstance(loss_func, partial):
        return int(loss_func.keywords.get("ignore_index", -100))
    return int(getattr(loss_func.func if isinstance(loss_func, BaseLoss) else loss_func, "ignore_index", -100))


def _is_one_of(loss_func: Callable[..., Any], losses: tuple[Any, ...]) -> bool:
    plain = loss_func.func if isinstance(loss_func, partial) else loss_func
    return plain in losses or any([kind in losses for kind in type(plain).__mro__])  # noqa: C419 -- sooner


def _name(loss_func: Callable[..., Any]) -> str:
    plain = loss_func.func if isinstance(loss_func, partial) else loss_func
    return str(getattr(plain, "__name__", type(plain).__name__))


APPEARS = {
    "opt": "a fit makes it before before_fit; learn.create_opt() makes it now",
    "dl": "it is set before before_train and before_validate",
    "n_iter": "it is set before before_train and before_validate",
    "iter": "it is set before before_batch, and gone after the fit",
    "xb": "it is set before before_batch, and gone after the batch",
    "yb": "it is set before before_batch, and gone after the batch",
    "x": "it is set before before_batch, and gone after the batch",
    "y": "it is set before before_batch, and gone after the batch",
    "output": "it is set before after_pred, where the model gives its loss too and no loss_func was given",
    "pred": "it is set before after_pred, in each batch anew",
    "loss": "it is set before after_loss, in each batch that has a target",
    "loss_grad": "it is set before after_loss, in each batch that has a target",
}
"""Attributes of a Learner that are there in a part of a fit only, and when."""

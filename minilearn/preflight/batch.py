"""What a batch shows: its inputs, its targets, the model's answer, and the loss between them.

Every function reads numbers, for which a GPU is waited for: it is for a single batch, not for each.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from minilearn.preflight.finding import Finding
from minilearn.preflight.kinds import (
    DICE,
    DISTANCE,
    LOG_SHARES,
    LOGITS_OF_CLASSES,
    SHARES,
    YES_OR_NO,
    axis_of,
    kind_of,
    name_of,
    option_of,
)
from minilearn.tensors import leaves, shape_text

SHOWN = 8
"""How many rows or names a finding lists."""
BYTE_FEATURES = 16
"""Fewer numbers a row than these are no picture, and may well be counts."""
THROUGH = ("View", "Unsafe", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "T", "Permute", "Slice", "Clone", "ToCopy")
"""Steps of a graph, by the beginning of their names, that leave the numbers as they are."""
ABOVE_CHANCE = {"probably": 2.0, "surely": 5.0}
"""How many times the loss of chance, and 1 more, a first loss must be to be named.

The usual initialisations give 1 to 1.5 times that of chance. Bytes from 0 to 255 as inputs, or word embeddings with a
deviation of 1 that are the last layer too, give 10 times and more.
"""


def shown(parts: list[Any]) -> str:
    """The first few of a list, and how many there are beyond."""
    rest = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    return ", ".join(map(str, parts[:SHOWN])) + rest


def ends(x: Tensor) -> tuple[float, float]:
    """The smallest and the largest number."""
    return float(x.detach().min()), float(x.detach().max())


def has_numbers(value: Any) -> bool:
    """Whether a value is a tensor whose numbers can be read."""
    return isinstance(value, Tensor) and value.numel() > 0 and not value.is_meta


def floats_of(value: Any) -> list[Tensor]:
    """The tensors of floats in a batch that hold anything."""
    tensors = [part.detach() for part in leaves(value) if has_numbers(part)]
    return [part for part in tensors if part.is_floating_point() and part.layout is torch.strided]


def bad_rows(x: Tensor) -> list[int]:
    """The rows in which a number is nan or infinite."""
    bad = ~x.detach().isfinite()
    if not bool(bad.any()):
        return []
    found: list[int] = (bad if x.ndim == 1 else bad.flatten(1).any(1)).nonzero().flatten().tolist() if x.ndim else [0]
    return found


def not_finite(value: Any, what: str, part: str = "training") -> Iterator[Finding]:
    """Names rows of inputs or targets with nan or inf in them: no loss can be had of them."""
    for x in floats_of(value):
        if rows := bad_rows(x):
            yield Finding(
                "inputs",
                f"the {what} of the first {part} batch are nan or infinite in {len(rows)} of {len(x) if x.ndim else 1}"
                f" rows: {'row' if len(rows) == 1 else 'rows'} {shown(rows)}.",
                "Look for divisions by zero and missing values where the data is made, and leave such rows out, or"
                " put a number there: torch.nan_to_num.",
                True,
            )


def seem_bytes(x: Any) -> bool:
    """Whether an input holds bytes, 0 to 255, as floats, nothing being taken off or divided by."""
    if not has_numbers(x) or not x.is_floating_point() or x.ndim < 2:
        return False
    if x[0].numel() < BYTE_FEATURES:
        return False
    first = x.detach()[:1]
    if not bool(((first >= 0) & (first == first.round())).all()):  # nearly always: a row is enough to see it
        return False
    low, high = ends(x)
    return low >= 0 and 128 <= high <= 255 and bool((x == x.round()).all())


def bytes_finding(x: Tensor, layer: str) -> Finding:
    """The finding about inputs that `seem_bytes`, which a layer was given as they are."""
    return Finding(
        "inputs",
        f"the inputs are not normalised: whole numbers from {ends(x)[0]:g} to {ends(x)[1]:g}, bytes as floats"
        f" it seems, with mean {float(x.mean()):.3g} and standard deviation {float(x.std()):.3g}, and the layer {layer}"
        " gets them so.",
        "Give x / 255, less its mean and divided by its standard deviation:"
        " DataLoaders(..., batch_tfms=[IntToFloat(), Normalize(mean, std)]) does it on the device.",
        False,
    )


def constant_inputs(xb: Any) -> Iterator[Finding]:
    """Warns where all rows of a batch's inputs are alike, so that there is nothing to tell them apart by."""
    inputs = [x.detach() for x in leaves(xb) if has_numbers(x) and x.ndim and len(x) > 1]
    if inputs and all(bool((x == x[:1]).all()) for x in inputs):
        same = float(inputs[0].min()) == float(inputs[0].max())
        yield Finding(
            "inputs",
            f"the inputs are constant: all {len(inputs[0])} rows of the first batch are alike"
            + (f", every number in them {float(inputs[0].flatten()[0]):g}." if same else "."),
            "Look at how they are read: an index that stays the same, a division of whole numbers, a wrong column.",
            False,
        )


def large_inputs(xb: Any) -> Iterator[Finding]:
    """Warns of float inputs that are far from 0, or far apart, on average."""
    for x in floats_of(xb):
        kept = x[x.isfinite()].float()
        if x.ndim > 1 and kept.numel() > 1 and not seem_bytes(x):
            mean, deviation = float(kept.mean()), float(kept.std())
            if max(abs(mean), deviation) > 100:
                yield Finding(
                    "inputs",
                    f"the inputs are not normalised: mean {mean:.4g}, standard deviation {deviation:.4g}.",
                    "Take their mean off and divide by their standard deviation, feature by feature.",
                    False,
                )


def last_function(pred: Tensor) -> tuple[str, int | None]:
    """The activation that a prediction comes out of, and its axis: "softmax", "sigmoid", "log_softmax", or nothing."""
    step = pred.grad_fn
    while step is not None and step.name().startswith(THROUGH) and step.next_functions:
        step = step.next_functions[0][0]
    name = "" if step is None else step.name()
    for function, told in (("LogSoftmax", "log_softmax"), ("Softmax", "softmax"), ("Sigmoid", "sigmoid")):
        if name.startswith(function):
            axis = getattr(step, "_saved_dim", None)
            return told, axis if axis is None or axis < 2**63 else axis - 2**64
    return "", None


def twice_activated(loss_func: Callable[..., Any], pred: Tensor) -> Iterator[Finding]:
    """Names a sigmoid or softmax before a loss that takes logits, and what is none before one that takes its result."""
    kind = kind_of(loss_func)
    axis = axis_of(loss_func) % max(pred.ndim, 1)
    function, along = last_function(pred)
    of_classes = kind in (LOGITS_OF_CLASSES, DICE) and pred.ndim > axis
    if of_classes and not function and pred.numel() and pred.requires_grad and pred.shape[axis] > 1:
        sums = pred.detach().float().sum(axis)
        near = bool((pred.detach() >= 0).all()) and bool(((sums - 1).abs() < 1e-4).all())
        function, along = (
            ("softmax", axis) if near and bool((pred.detach() != pred.detach().round()).any()) else ("", 0)
        )
    along = axis if along is None else along % max(pred.ndim, 1)
    again = "softmax" if kind in (LOGITS_OF_CLASSES, DICE) else "sigmoid"
    softmax_again = (of_classes and along == axis) or kind == YES_OR_NO
    takes_logits = kind in (LOGITS_OF_CLASSES, DICE, YES_OR_NO)
    if not ((function == "softmax" and softmax_again) or (function == "sigmoid" and takes_logits)):
        yield from _not_activated(loss_func, kind, pred, axis, function)
        return
    low, high = ends(pred)
    yield Finding(
        "activation",
        f"the predictions come out of a {function}, and {name_of(loss_func)} applies a {again} again: they are from"
        f" {low:.3g} to {high:.3g}, where logits, any numbers, are meant.",
        f"Leave the {function} out of the model; for probabilities afterwards, get_preds applies it.",
        True,
    )


def _not_activated(loss_func: Any, kind: str, pred: Tensor, axis: int, function: str) -> Iterator[Finding]:
    if kind == LOG_SHARES and pred.ndim > 1 and pred.numel() and function != "log_softmax":
        totals = pred.detach().float().logsumexp(axis)
        if not bool((totals.abs() < 1e-2).all()):
            gives = "ends in a softmax, not in its logarithm" if function == "softmax" else "gives no log-probabilities"
            yield Finding(
                "activation",
                f"{name_of(loss_func)} takes logarithms of probabilities, but the model {gives}: the probabilities of a"
                f" row would add up to {float(totals.exp().mean()):.3g}.",
                "Use cross_entropy, which takes logits, or end the model in log_softmax.",
                False,
            )
    if kind == SHARES and pred.numel() and (ends(pred)[0] < 0 or ends(pred)[1] > 1):
        yield Finding(
            "activation",
            f"{name_of(loss_func)} takes probabilities, but the predictions are from {ends(pred)[0]:.3g} to"
            f" {ends(pred)[1]:.3g}.",
            "Use binary_cross_entropy_with_logits, which takes them as they are.",
            True,
        )


def one_class_only(loss_func: Callable[..., Any], pred: Tensor) -> Iterator[Finding]:
    """Names a model with one output under a loss over classes, which then is 0 whatever the model does."""
    kind, axis = kind_of(loss_func), axis_of(loss_func)
    if kind == LOGITS_OF_CLASSES and -pred.ndim <= axis < pred.ndim and pred.ndim > 1 and pred.shape[axis] == 1:
        yield Finding(
            "shapes",
            f"predictions are {tuple(pred.shape)}: with one class {name_of(loss_func)} is 0 whatever the model gives.",
            "Give the model's last layer an output for each class, or use binary_cross_entropy_with_logits.",
            True,
        )
    if pred.ndim and last_function(pred)[0] == "softmax":
        along = last_function(pred)[1]
        if along is not None and -pred.ndim <= along < pred.ndim and pred.shape[along] == 1:
            yield Finding(
                "activation",
                f"predictions are {tuple(pred.shape)}, a softmax over axis {along} of length 1: each is 1 whatever the"
                " model does.",
                "Use a sigmoid, or leave it to binary_cross_entropy_with_logits.",
                True,
            )


def target_kinds(loss_func: Callable[..., Any], pred: Tensor, target: Tensor) -> Iterator[Finding]:
    """Warns of whole numbers where a loss measures distances, and of classes where it takes each answer as a number."""
    if kind_of(loss_func) != DISTANCE or (target.dtype == torch.bool and pred.shape == target.shape):
        return
    if not target.is_floating_point() and not target.is_complex():
        low, high = (target.min().item(), target.max().item()) if target.numel() else (0, 0)
        yield Finding(
            "dtypes",
            f"{name_of(loss_func)} measures distances, but the targets are {shape_text(target)}, whole numbers from"
            f" {low} to {high}.",
            "For a quantity use targets.float(); for classes cross_entropy, with an output for each class.",
            False,
        )


def chance(loss_func: Callable[..., Any], pred: Tensor) -> float | None:
    """What a loss gives for predictions that prefer nothing, in nats; None for a loss of which that is not known."""
    kind, axis = kind_of(loss_func), axis_of(loss_func)
    if option_of(loss_func, "reduction", "mean") != "mean" or option_of(loss_func, "pos_weight", None) is not None:
        return None
    if option_of(loss_func, "weight", None) is not None and kind != LOGITS_OF_CLASSES:
        return None
    if kind in (LOGITS_OF_CLASSES, LOG_SHARES) and pred.ndim > 1 and -pred.ndim <= axis < pred.ndim:
        return math.log(pred.shape[axis]) if pred.shape[axis] > 1 else None
    if kind in (YES_OR_NO, SHARES):
        return 0.5 if name_of(loss_func) == "mnist_loss" else math.log(2)
    return None


def far_from_chance(
    loss_func: Callable[..., Any], pred: Tensor, loss: float, how: str = "probably"
) -> Iterator[Finding]:
    """Warns of a first loss far above that of chance: the model is sure of wrong answers before it has learned any."""
    expected = chance(loss_func, pred)
    if expected is not None and loss > ABOVE_CHANCE[how] * expected + 1:
        low, high = ends(pred)
        told = (
            f"ln({pred.shape[axis_of(loss_func)]}) = " if kind_of(loss_func) in (LOGITS_OF_CLASSES, LOG_SHARES) else ""
        )
        yield Finding(
            "first loss",
            f"the first loss is {loss:.4g}, far above that of chance, {told}{expected:.4g}: the predictions are from"
            f" {low:.4g} to {high:.4g}.",
            "Normalise the inputs, and begin with smaller weights in the last layer: torch.nn.init.zeros_.",
            False,
        )


def labels_in(target: Any) -> Tensor | None:
    """Targets as labels, int64 on the CPU, one for each row; None where they are none."""
    if not isinstance(target, Tensor) or not target.numel() or target.ndim not in (1, 2):
        return None
    if target.ndim == 2 and target.shape[1] != 1:
        return None
    return None if target.is_floating_point() or target.is_complex() else target.detach().flatten().cpu().long()

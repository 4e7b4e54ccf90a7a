"""How minilearn words a mistake: the argument as the user wrote it, what came, what is allowed, and the fix.

Three shapes, used everywhere in the package:

- bad value: ``momentum must be in [0, 1), got 1.5``
- bad shape: ``mse: predictions are (64, 1) but targets are (64,): they would broadcast to (64, 64). Use …``
- unknown name: ``no metric 'acuracy'; did you mean 'accuracy'?``
"""

import difflib
import math
import numbers
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def did_you_mean(name: str, options: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of an "unknown name" message: ``; did you mean 'accuracy'?``, or a full stop where no option is near.

    Args:
        name: what came.
        options: what is known.
        cutoff: how near an option must be, in [0, 1].

    >>> did_you_mean("acuracy", ["accuracy", "mse"])
    "; did you mean 'accuracy'?"
    >>> did_you_mean("zzz", ["accuracy", "mse"])
    '.'
    """
    nearest = difflib.get_close_matches(name, list(options), n=1, cutoff=cutoff)
    return f"; did you mean '{nearest[0]}'?" if nearest else "."


def describe(value: object) -> str:
    """What came, in few words: a class, a plain value, or what kind of object.

    >>> describe(dict), describe("adam"), describe(object())
    ('the class dict: make one, dict()', "'adam'", 'an object of object')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}: make one, {value.__name__}()"
    return repr(value) if isinstance(value, (str, int, float, type(None))) else f"an object of {type(value).__name__}"


def came_through(error: BaseException, file: str, function: str) -> bool:
    """Whether `error` came up in a function of a file, or in something that it called."""
    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(code.co_name == function and code.co_filename == file for code in frames)


def in_range(name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    """`value`, where it lies in [low, high), or in (low, high) with `open_low`.

    Raises:
        ValueError: it does not, or it is nan.
        TypeError: it is not a number.

    >>> in_range("mom", 0.9, 0, 1)
    0.9
    >>> in_range("mom", 1.5, 0, 1)
    Traceback (most recent call last):
    ValueError: mom must be in [0, 1), got 1.5
    """
    number: Any = value.item() if isinstance(value, Tensor) and not value.ndim else value
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    plain = float(number)
    if not (low < plain if open_low else low <= plain) or not plain < high:
        span = f"in {'(' if open_low else '['}{low:g}, {high:g})" if high < math.inf else _above(low, open_low)
        raise ValueError(f"{name} must be {span}, got {value!r}")
    return plain


def _above(low: float, open_low: bool) -> str:
    return f"a finite number greater than {low:g}" if open_low else f"a finite number of at least {low:g}"


def positive(name: str, value: Any) -> float:
    """`value`, where it is finite and greater than 0 (else the errors of `in_range`)."""
    return in_range(name, value, 0, open_low=True)


def share(name: str, value: Any) -> float:
    """`value`, where it is a share of a whole: in [0, 1], both ends included.

    Raises:
        ValueError: it is not.
        TypeError: it is not a number.

    >>> share("pct_start", 2)
    Traceback (most recent call last):
    ValueError: pct_start must be in [0, 1], got 2
    """
    try:
        return in_range(name, value, 0, math.nextafter(1.0, 2.0))
    except ValueError:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}") from None


def whole(name: str, value: Any, low: int = 0) -> int:
    """`value`, where it is a whole number of at least `low`.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is less than `low`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    number = int(value)
    if number < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {number}")
    return number


def broadcast_fix(pred: Sequence[int], target: Sequence[int]) -> str:
    """The sentence that says how two different shapes can be made one, or nothing where we don't know."""
    for name, shorter, longer in (("targets", target, pred), ("predictions", pred, target)):
        if len(shorter) + 1 == len(longer) and longer[-1] == 1 and list(longer[:-1]) == list(shorter):
            return f" Use {name}.unsqueeze({len(shorter)})."
    return ""


def same_shape(who: str, pred: Tensor, target: Tensor) -> None:
    """Refuses predictions and targets of different shapes, above all those that torch would broadcast in silence.

    Args:
        who: the loss or metric that compares the two; it opens the message.
        pred: what the model gave, of any shape.
        target: what it is compared with.

    Raises:
        ValueError: the shapes differ.

    >>> same_shape("f", torch.zeros(8, 1), torch.zeros(8))
    Traceback (most recent call last):
    ValueError: f: predictions are (8, 1) but targets are (8,): they would broadcast to (8, 8)....
    """
    if pred.shape != target.shape:
        raise ValueError(shapes_message(who, pred.shape, target.shape))


def shapes_message(who: str, pred: Sequence[int], target: Sequence[int]) -> str:
    """What is wrong with two different shapes, and the fix where we know it."""
    seen = f"{who}: predictions are {tuple(pred)} but targets are {tuple(target)}"
    try:
        together = torch.broadcast_shapes(tuple(pred), tuple(target))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return f"{seen}: they must have the same shape."
    return f"{seen}: they would broadcast to {tuple(together)}.{broadcast_fix(pred, target)}"


warns = True
"""Whether this process warns: of several that do the same work, one does (`minilearn.distributed`)."""


def warn(message: str) -> None:
    """Warns at the line of the user's that led here, each time anew.

    Python's own `warnings.warn` shows a text once for each place, so that a second run in a notebook would be silent.
    """
    if not warns:
        return
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "minilearn":
        frame = frame.f_back
    warnings.warn_explicit(message, RuntimeWarning, frame.f_code.co_filename, frame.f_lineno, registry={})

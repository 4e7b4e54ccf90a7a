"""How minilearn words a mistake: the argument as the user wrote it, what came, what is allowed, and the fix.

Three shapes, used everywhere in the package:

- bad value: ``momentum must be in [0, 1), got 1.5``
- bad shape: ``mse: predictions are (64, 1) but targets are (64,): they would broadcast to (64, 64). Use …``
- unknown name: ``no metric 'acuracy'; did you mean 'accuracy'?``
"""

import difflib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """The end of an "unknown name" message: ``; did you mean 'accuracy'?``, or nothing where no option is near.

    >>> did_you_mean("acuracy", ["accuracy", "mse"])
    "; did you mean 'accuracy'?"
    >>> did_you_mean("zzz", ["accuracy", "mse"])
    ''
    """
    nearest = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""


def in_range(name: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
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
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (low < value if open_low else low <= value) or not value < high:
        span = f"{'(' if open_low else '['}{low:g}, {high:g})"
        raise ValueError(f"{name} must be {f'in {span}' if high < math.inf else _above(low, open_low)}, got {value!r}")
    return value


def _above(low: float, open_low: bool) -> str:
    return f"a finite number greater than {low:g}" if open_low else f"a finite number of at least {low:g}"


def positive(name: str, value: float) -> float:
    """`value`, where it is finite and greater than 0 (else the errors of `in_range`)."""
    return in_range(name, value, 0, open_low=True)


def whole(name: str, value: int, low: int = 0) -> int:
    """`value`, where it is a whole number of at least `low`.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is less than `low`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value}")
    return value


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
    if pred.shape == target.shape:
        return
    seen = f"{who}: predictions are {tuple(pred.shape)} but targets are {tuple(target.shape)}"
    try:
        shape = torch.broadcast_shapes(pred.shape, target.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ValueError(f"{seen}: they must have the same shape.") from None
    raise ValueError(f"{seen}: they would broadcast to {tuple(shape)}.{broadcast_fix(pred.shape, target.shape)}")

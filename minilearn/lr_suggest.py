"""Suggestions of a learning rate: pure functions of a search's curve, the rates and the loss at each."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

Suggestion = Callable[[Sequence[float], Sequence[float]], float]

ROUNDING = 1e-9
"""The share of itself by which a loss must fall from one point to the next to have fallen at all."""


def valley(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """The rate in the middle of the longest valley: where the loss falls longest, far from both its ends.

    The valley is the longest sequence of points, not all of them neighbours, each lower than the one before; of
    several the first to end. If it has n points and ends at point e, it is taken to cover the n points up to e, and
    the suggestion is the point a third and half a third into them.

    Args:
        lrs: the rates, rising, (points,).
        losses: the loss at each, (points,); what comes after one that is not finite is left out.
    Raises:
        ValueError: there are fewer than two points, the rates do not rise, or the loss never falls.
    Source: the rule of fastai 2.8.

    >>> valley([1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 9.0])
    0.001
    """
    lrs, losses = _curve(lrs, losses)
    lowest: list[float] = []  # lowest[k]: minus the highest loss at which a falling sequence of k + 1 points ends
    longest, end = 0, 0
    for i, loss in enumerate(losses):
        n = bisect_left(lowest, -loss) + 1
        lowest[n - 1 : n] = [-loss]
        if n > longest:
            longest, end = n, i
    third = longest / 3
    return lrs[max(end - longest + int(third) + int(third / 2), end - longest + 1)]


def steep(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the loss falls most steeply: the least slope to the next point, over the rate's logarithm.

    Args:
        lrs: as in `valley`.
        losses: as in `valley`.
    Raises:
        ValueError: as in `valley`.
    Source: the rule of fastai 2.8.

    >>> steep([1e-3, 1e-2, 1e-1, 1.0], [5.0, 4.0, 1.0, 0.5])
    0.01
    """
    lrs, losses = _curve(lrs, losses)
    slopes = [(losses[i + 1] - losses[i]) / math.log(lrs[i + 1] / lrs[i]) for i in range(len(lrs) - 1)]
    return lrs[slopes.index(min(slopes))]


def minimum(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """A tenth of the rate at which the loss is least.

    Args:
        lrs: as in `valley`.
        losses: as in `valley`.
    Raises:
        ValueError: as in `valley`, or the loss is nowhere lower than at the first rate.
    Source: the rule of fastai 2.8.

    >>> minimum([1e-3, 1e-2, 1e-1, 1.0], [5.0, 4.0, 1.0, 2.0])
    0.01
    """
    lrs, losses = _curve(lrs, losses)
    least = losses.index(min(losses))
    if not least:
        raise ValueError(f"the loss is nowhere lower than at the first rate, {lrs[0]:.2g}; begin with a smaller one")
    return lrs[least] / 10


def slide(
    lrs: Sequence[float],
    losses: Sequence[float],
    lr_diff: int = 15,
    thresh: float = 0.005,
    adjust_value: float = 1.0,
) -> float:
    """The rate at which an interval that slides in from the largest rate finds the loss as steep at both its ends.

    Slopes are differences from point to point, averaged over both sides. The suggestion is the lower end of the last
    interval at whose ends they differ by more than `thresh`; where already the first is within it, that one's.

    Args:
        lrs: as in `valley`.
        losses: as in `valley`.
        lr_diff: the interval's width in points.
        thresh: how far two slopes may differ, in loss per point.
        adjust_value: a factor for the suggestion.
    Raises:
        ValueError: as in `valley`, or there are not more than `lr_diff` points.
    Source: the rule of fastai 2.8.
    """
    lrs, losses = _curve(lrs, losses)
    if len(lrs) <= lr_diff:
        raise ValueError(f"slide needs more than {lr_diff} points (lr_diff), got {len(lrs)}")
    slopes = np.gradient(np.asarray(losses))
    left = len(lrs) - 1 - lr_diff
    rate = lrs[left]
    while left >= 0 and abs(slopes[left + lr_diff] - slopes[left]) > thresh:
        rate = lrs[left]
        left -= 1
    return rate * adjust_value


SUGGESTIONS: dict[str, Suggestion] = {"valley": valley, "steep": steep, "minimum": minimum, "slide": slide}


class SuggestionMethod:
    """The suggestions under fastai's names: ``learn.lr_find(suggest_funcs=(SuggestionMethod.Valley,))``."""

    Valley = staticmethod(valley)
    Slide = staticmethod(slide)
    Minimum = staticmethod(minimum)
    Steep = staticmethod(steep)


def _curve(lrs: Sequence[float], losses: Sequence[float]) -> tuple[list[float], list[float]]:
    """The points up to the first loss that is not finite, as floats.

    Raises:
        ValueError: there are not as many of both, fewer than two, the rates do not rise, or the loss never falls.
    """
    rates, values = [float(lr) for lr in lrs], [float(loss) for loss in losses]
    if len(rates) != len(values):
        raise ValueError(f"lrs and losses must be as many, got {len(rates)} and {len(values)}")
    n = next((i for i, loss in enumerate(values) if not math.isfinite(loss)), len(values))
    if n < 2:
        raise ValueError(f"a curve needs at least 2 points with a finite loss, got {n}")
    rates, values = rates[:n], values[:n]
    if rates[0] <= 0 or any(after <= before for before, after in pairwise(rates)):
        raise ValueError("lrs must be positive and rise from point to point")
    if all(before - after <= ROUNDING * abs(before) for before, after in pairwise(values)):
        raise ValueError(f"the loss never falls between the rates {rates[0]:.2g} and {rates[-1]:.2g}")
    return rates, values

"""Schedules: functions of the share of training that is done, in [0, 1], to a hyperparameter's value."""

import math
from collections.abc import Callable, Sequence

from minilearn.errors import positive, share

Schedule = Callable[[float], float]

SEAM = 1e-9
"""How near a share counts as being at a seam: 0.1 + 0.1 + 0.1 is a little more than 3/10, where a restart is due."""


def SchedNo(start: float, end: float) -> Schedule:  # noqa: N802 -- fastai's name, as of all below
    """Stays at `start`: v(t) = start; `end` is only there to look like the others."""
    return lambda t: start


def SchedLin(start: float, end: float) -> Schedule:  # noqa: N802
    """A straight line: v(t) = start + t·(end - start).

    >>> SchedLin(1.0, 3.0)(0.5)
    2.0
    """
    return lambda t: start + t * (end - start)


def SchedCos(start: float, end: float) -> Schedule:  # noqa: N802
    """Half a cosine, flat at both ends: v(t) = start + (1 - cos(π·t)) / 2 · (end - start).

    Source: Loshchilov and Hutter 2017, equation 5 (arXiv:1608.03983).
    """
    return lambda t: start + (1 - math.cos(math.pi * t)) / 2 * (end - start)


def SchedExp(start: float, end: float) -> Schedule:  # noqa: N802
    """The same factor at every step: v(t) = start·(end / start)^t.

    Raises:
        ValueError: `start` or `end` is not positive.
    """
    ratio = positive("end", end) / positive("start", start)
    return lambda t: start * ratio**t


def SchedPoly(start: float, end: float, power: float) -> Schedule:  # noqa: N802
    """A power of the share: v(t) = start + t^power·(end - start)."""
    return lambda t: start + t**power * (end - start)


def combine_scheds(pcts: Sequence[float], scheds: Sequence[Schedule]) -> Schedule:
    """One schedule after another, each over its share of the training.

    Args:
        pcts: the shares, which add up to 1 (to rounding); one may be 0.
        scheds: as many schedules, each over its own [0, 1].
    Raises:
        ValueError: there are not as many of both, a share is negative, or they do not add up to 1.

    >>> both = combine_scheds([0.5, 0.5], [SchedLin(0.0, 1.0), SchedLin(1.0, 0.0)])
    >>> [both(t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if len(pcts) != len(scheds):
        raise ValueError(f"pcts and scheds must be as many, got {len(pcts)} shares and {len(scheds)} schedules")
    if any(pct < 0 for pct in pcts):
        raise ValueError(f"pcts must be shares of at least 0, got {list(pcts)}")
    if abs(math.fsum(pcts) - 1) > 1e-6:
        raise ValueError(f"pcts must add up to 1, got {list(pcts)}, which add up to {math.fsum(pcts):g}")
    parts = [(pct, sched) for pct, sched in zip(pcts, scheds, strict=True) if pct > 0]

    def value(t: float) -> float:
        begins = 0.0
        for pct, sched in parts[:-1]:
            if t < begins + pct - SEAM:
                return sched(max((t - begins) / pct, 0.0))
            begins += pct
        pct, sched = parts[-1]
        return sched(min(max((t - begins) / (1 - begins), 0.0), 1.0))

    return value


def combined_cos(pct: float, start: float, middle: float, end: float) -> Schedule:
    """From `start` to `middle` over the share `pct`, then to `end`, both along cosines: the shape of one cycle.

    Raises:
        ValueError: `pct` is not in [0, 1].

    >>> [round(combined_cos(0.25, 0.5, 1.0, 0.0)(t), 4) for t in (0.0, 0.125, 0.25, 0.625, 1.0)]
    [0.5, 0.75, 1.0, 0.5, 0.0]
    """
    share("pct", pct)
    return combine_scheds([pct, 1 - pct], [SchedCos(start, middle), SchedCos(middle, end)])

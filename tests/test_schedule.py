"""Schedules against values that are worked out by hand."""

import math
from collections.abc import Callable

import pytest

from minilearn.schedule import SchedCos, SchedExp, SchedLin, SchedNo, SchedPoly, combine_scheds, combined_cos

POINTS = (0.0, 0.25, 0.5, 1.0)


@pytest.mark.parametrize(
    ("sched", "values"),
    [
        (SchedNo(2.0, 1.0), (2.0, 2.0, 2.0, 2.0)),
        (SchedLin(2.0, 1.0), (2.0, 1.75, 1.5, 1.0)),
        (SchedCos(2.0, 1.0), (2.0, 1.5 + math.sqrt(2) / 4, 1.5, 1.0)),
        (SchedExp(1e-4, 1.0), (1e-4, 1e-3, 1e-2, 1.0)),
        (SchedPoly(2.0, 1.0, 2), (2.0, 2 - 1 / 16, 1.75, 1.0)),
        (combined_cos(0.25, 1.0, 10.0, 0.0), (1.0, 10.0, 7.5, 0.0)),
        (combined_cos(0.0, 1.0, 10.0, 0.0), (10.0, 5 + 5 * math.sqrt(2) / 2, 5.0, 0.0)),
        (combined_cos(1.0, 0.0, 10.0, 1.0), (0.0, 5 - 5 * math.sqrt(2) / 2, 5.0, 10.0)),
    ],
)
def test_values_are_those_of_the_formula(sched: Callable[[float], float], values: tuple[float, ...]) -> None:
    assert [sched(t) for t in POINTS] == pytest.approx(list(values), rel=1e-12)


def test_shares_that_add_up_to_one_but_for_rounding_are_taken() -> None:
    assert sum([0.7, 0.2, 0.1]) != 1
    both = combine_scheds([0.7, 0.2, 0.1], [SchedNo(1.0, 1.0), SchedNo(2.0, 2.0), SchedLin(3.0, 4.0)])
    assert [both(t) for t in (0.0, 0.69, 0.71, 0.89, 1.0)] == pytest.approx([1.0, 1.0, 2.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("pcts", "message"),
    [
        ([0.5, 0.4], "pcts must add up to 1, got [0.5, 0.4], which add up to 0.9"),
        ([1.5, -0.5], "pcts must be shares of at least 0, got [1.5, -0.5]"),
        ([1.0], "pcts and scheds must be as many, got 1 shares and 2 schedules"),
    ],
)
def test_other_shares_are_refused(pcts: list[float], message: str) -> None:
    with pytest.raises(ValueError, match="pcts") as caught:
        combine_scheds(pcts, [SchedNo(1.0, 1.0)] * 2)
    assert str(caught.value) == message


def test_exponential_schedule_refuses_zero() -> None:
    with pytest.raises(ValueError, match="end must be a finite number greater than 0, got 0"):
        SchedExp(1.0, 0)


def test_one_cycle_refuses_a_share_above_one() -> None:
    with pytest.raises(ValueError, match=r"pct must be in \[0, 1\], got 1.5"):
        combined_cos(1.5, 0.0, 1.0, 0.0)

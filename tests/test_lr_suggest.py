"""Suggestions of a learning rate, on curves written out with the answer known."""

import math

import pytest
import torch

from minilearn.lr_suggest import SUGGESTIONS, Suggestion, minimum, slide, steep, valley

DECADES = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0]
# A small hollow first, then a long valley of six points that ends at a rate of 1, then the loss blows up.
CURVE = [5.0, 4.9, 5.1, 4.8, 4.0, 3.0, 2.0, 6.0, 50.0]
ALL = pytest.mark.parametrize("rule", SUGGESTIONS.values(), ids=SUGGESTIONS)


def test_valley_is_in_the_middle_of_the_longest_fall() -> None:
    # 5.0, 4.9, 4.8, 4.0, 3.0, 2.0 is the longest falling sequence: six points, up to point 6, so points 1 to 6.
    # A third is 2 points, half a third 1: point 6 - 6 + 2 + 1 = 3.
    assert valley(DECADES, CURVE) == 1e-3


def test_valley_takes_the_first_of_two_that_are_as_long() -> None:
    # Both have four points: the first ends at point 3, and 3 - 4 + int(4/3) + int(4/6) = 0, moved to the valley's own.
    assert valley(DECADES[:8], [4.0, 3.0, 2.0, 1.0, 4.0, 3.0, 2.0, 1.0]) == 1e-6


def test_steep_is_where_the_loss_falls_most_over_the_rates_logarithm() -> None:
    assert steep(DECADES, CURVE) == 1e-2  # from 4.0 to 3.0; the first of two falls of 1.0 a decade
    # A fall of 2 over two decades is not as steep as one of 1.5 over one.
    assert steep([1e-3, 1e-1, 1.0, 10.0], [5.0, 3.0, 1.5, 9.0]) == 1e-1


def test_minimum_is_a_tenth_of_the_rate_with_the_least_loss() -> None:
    assert minimum(DECADES, CURVE) == pytest.approx(0.1)


def test_slide_stops_where_the_slopes_at_its_ends_agree() -> None:
    # Slopes, from the differences on both sides:
    # (-0.1, 0.05, -0.05, -0.55, -0.9, -1.0, 1.5, 24, 44). From the right |44 - 1.5|, |24 + 1|, |1.5 + 0.9|, |-1 + 0.55|
    # and |-0.9 + 0.05| are above 0.3, and so is |-0.55 - 0.05|; |-0.05 + 0.1| is not. The last interval above it
    # begins at point 1.
    assert slide(DECADES, CURVE, lr_diff=2, thresh=0.3) == 1e-5
    # Above 0.5 the slide ends one interval earlier than |-1 + 0.55|, which begins at point 3.
    assert slide(DECADES, CURVE, lr_diff=2, thresh=0.5, adjust_value=0.5) == pytest.approx(0.5 * 1e-2)


def test_slide_needs_more_points_than_its_interval() -> None:
    with pytest.raises(ValueError, match=r"slide needs more than 15 points \(lr_diff\), got 9"):
        slide(DECADES, CURVE)


@ALL
def test_what_comes_after_a_loss_that_is_not_finite_does_not_count(rule: Suggestion) -> None:
    lrs = [1e-6 * 2**i for i in range(22)]
    losses = [5 - math.tanh(i / 4 - 2) for i in range(20)]
    expected = rule(lrs[:20], losses)
    assert rule(lrs, [*losses, math.nan, 0.0]) == expected
    assert rule(lrs, [*losses, math.inf, 0.0]) == expected


@ALL
def test_curve_that_never_falls_has_no_suggestion(rule: Suggestion) -> None:
    for losses in ([1.0] * 20, [1 - i % 3 * 1e-15 for i in range(20)], [float(i) for i in range(20)]):
        with pytest.raises(ValueError, match=r"the loss never falls between the rates 1e-06 and 0.52"):
            rule([1e-6 * 2**i for i in range(20)], losses)


@ALL
def test_curve_that_falls_to_its_end_has_a_rate_within_it(rule: Suggestion) -> None:
    lrs = [1e-6 * 2**i for i in range(20)]
    assert lrs[0] <= rule(lrs, [20.0 - i for i in range(20)]) <= lrs[-1]


@pytest.mark.parametrize(("rule", "expected"), [(valley, 0.1), (steep, 0.1), (minimum, 0.1)])
def test_three_points_are_enough(rule: Suggestion, expected: float) -> None:
    assert rule([0.1, 1.0, 10.0], [3.0, 2.0, 4.0]) == pytest.approx(expected)


@ALL
def test_curve_may_be_tensors(rule: Suggestion) -> None:
    lrs = [1e-6 * 2**i for i in range(20)]
    losses = [float((i - 15) ** 2) for i in range(20)]
    assert rule(torch.tensor(lrs, dtype=torch.float64), torch.tensor(losses)) == pytest.approx(rule(lrs, losses))  # type: ignore[arg-type]


@ALL
@pytest.mark.parametrize(
    ("lrs", "losses", "message"),
    [
        ([0.1, 1.0], [1.0], "lrs and losses must be as many, got 2 and 1"),
        ([], [], "at least 2 points with a finite loss, got 0"),
        ([0.1, 1.0], [math.nan, 1.0], "at least 2 points with a finite loss, got 0"),
        ([1.0, 0.1], [2.0, 1.0], "lrs must be positive and rise"),
        ([0.0, 0.1], [2.0, 1.0], "lrs must be positive and rise"),
    ],
)
def test_what_is_no_curve_is_refused(rule: Suggestion, lrs: list[float], losses: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(lrs, losses)


def test_minimum_at_the_first_rate_says_so() -> None:
    with pytest.raises(ValueError, match=r"nowhere lower than at the first rate, 0\.1; begin with a smaller one"):
        minimum([0.1, 1.0, 10.0], [1.0, 3.0, 2.0])

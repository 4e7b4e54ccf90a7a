"""The lesson on a line through 100 points: the stated figures by hand and by a Learner, beside the formula's."""

from pathlib import Path

import numpy as np
import pytest
from example_runs import EXAMPLES, figure, run_example
from PIL import Image


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("linear_regression")
    return run_example("linear_regression.py", out), out


def test_error_at_the_start_is_the_mean_of_the_squared_targets(printed: tuple[str, Path]) -> None:
    points = np.genfromtxt(EXAMPLES / "points.csv", delimiter=",")
    assert points.shape == (100, 2)
    assert figure(printed[0], "error at the start") == round((points[:, 1] ** 2).mean(), 6) == 5565.107834
    assert figure(printed[0], "standardised, error at the start") == 5565.107834


@pytest.mark.parametrize("way", ["by hand", "by Learner"])
def test_a_thousand_steps_lead_to_the_stated_line(printed: tuple[str, Path], way: str) -> None:
    assert f"error {way}: 112.614810 after 1,000 steps at a rate of 0.0001" in printed[0].splitlines()
    assert figure(printed[0], f"w {way}") == 1.477744
    assert figure(printed[0], f"b {way}") == 0.088937


def test_formula_gives_the_line_of_numpys_least_squares(printed: tuple[str, Path]) -> None:
    x, y = np.genfromtxt(EXAMPLES / "points.csv", delimiter=",", unpack=True)
    w, b = np.polyfit(x, y, 1)
    assert figure(printed[0], "best w") == pytest.approx(w, abs=1e-6)
    assert figure(printed[0], "best b") == pytest.approx(b, abs=1e-6)
    assert figure(printed[0], "best error") == pytest.approx(((w * x + b - y) ** 2).mean(), abs=1e-6)


@pytest.mark.parametrize("way", ["by hand", "by Learner"])
def test_standardised_inputs_need_twenty_steps(printed: tuple[str, Path], way: str) -> None:
    best = figure(printed[0], "best error")
    assert figure(printed[0], f"standardised, error {way}") == pytest.approx(best, abs=2e-6)
    assert f"standardised, error {way}: 110.257383 after 20 steps at a rate of 0.3" in printed[0].splitlines()
    for name in ("w", "b"):
        in_own_units = figure(printed[0], f"standardised, {name} in the inputs' own units")
        assert in_own_units == pytest.approx(figure(printed[0], f"best {name}"), abs=2e-6)


@pytest.mark.parametrize("name", ["", "standardised, "])
def test_both_ways_take_the_same_steps(printed: tuple[str, Path], name: str) -> None:
    assert figure(printed[0], f"{name}largest difference in w and b") <= 1e-12


def test_picture_is_left(printed: tuple[str, Path]) -> None:
    assert printed[0].splitlines()[-1] == f"picture: {printed[1] / 'linear_regression.png'}"
    with Image.open(printed[1] / "linear_regression.png") as picture:
        assert picture.size == (1210, 990)

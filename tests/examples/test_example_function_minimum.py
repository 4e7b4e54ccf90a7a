"""The lesson on x²·sin(x): three ways down to the same minimum, and what four rates do."""

from pathlib import Path

import pytest
from example_runs import SHORT, figure, run_example
from PIL import Image

from minilearn.surfaces import X2_SIN_X


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("function_minimum")
    return run_example("function_minimum.py", out), out


@pytest.mark.parametrize("way", ["by hand", "by SGD", "by Learner"])
def test_every_way_reaches_the_minimum(printed: tuple[str, Path], way: str) -> None:
    (minimum,) = X2_SIN_X.minimum
    assert figure(printed[0], f"x {way}") == pytest.approx(minimum, abs=2e-4 if SHORT else 1e-6)
    assert f"x {way}: {'5.0868' if SHORT else '5.086985'}" in printed[0]


@pytest.mark.parametrize("way", ["SGD", "Learner"])
def test_every_step_is_that_of_the_hand(printed: tuple[str, Path], way: str) -> None:
    assert figure(printed[0], f"{way}, largest difference in x") <= 1e-12


def test_one_rate_is_too_small_two_arrive_and_one_diverges(printed: tuple[str, Path]) -> None:
    small, good, quick, large = (figure(printed[0], f"x at a rate of {lr}") for lr in (0.0005, 0.005, 0.05, 0.35))
    assert 2.5 < small < 2.7
    assert good == pytest.approx(5.087, abs=5e-4)
    assert quick == pytest.approx(5.08699, abs=1e-5)
    assert abs(large) > 1e6
    assert "x at a rate of 0.0005: 2.63343 after 100 steps: too small" in printed[0]
    assert "after 7 steps: diverges" in printed[0]


def test_pictures_are_left(printed: tuple[str, Path]) -> None:
    for name, size in (("function_minimum.png", (1210, 495)), ("learning_rates.png", (1430, 495))):
        assert f"picture: {printed[1] / name}" in printed[0].splitlines()
        with Image.open(printed[1] / name) as picture:
            assert picture.size == size

"""The lesson on y = w·x: both ways are the same, the prediction is 8, and a rate that is too large is named."""

from pathlib import Path

import pytest
from example_runs import SHORT, figure, run_example
from PIL import Image


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("gradient_descent")
    return run_example("gradient_descent.py", out), out


def test_search_finds_the_weight(printed: tuple[str, Path]) -> None:
    assert "best w of 0.0, 0.1, ... 4.0: 2.0 with a cost of 0.0" in printed[0].splitlines()


def test_prediction_goes_from_4_to_8(printed: tuple[str, Path]) -> None:
    assert figure(printed[0], "prediction for 4 before") == 4.0
    # A step with all points multiplies the way that is left by 1 - 0.01 · 2 · mean(x²) = 1 - 0.28 / 3.
    by_full_batch = 8 - 4 * (1 - 0.28 / 3) ** (60 if SHORT else 100)
    for way in ("by hand", "Learner"):
        assert figure(printed[0], f"full batch, {way}") == pytest.approx(by_full_batch, abs=5e-6)
        assert figure(printed[0], f"stochastic, {way}") == pytest.approx(8, abs=1e-5)
        assert figure(printed[0], f"mini-batches, {way}") == pytest.approx(8, abs=1e-3)


@pytest.mark.parametrize("kind", ["full batch", "stochastic", "mini-batches"])
def test_both_ways_take_the_same_steps(printed: tuple[str, Path], kind: str) -> None:
    assert figure(printed[0], f"{kind}, largest difference in w") <= 1e-6
    assert figure(printed[0], f"{kind}, largest difference in the smoothed loss") <= 2e-6


def test_too_large_a_rate_is_named_as_diverging(printed: tuple[str, Path]) -> None:
    # By hand: each step multiplies the distance from 2 by 1 - 0.22 · 28 / 3 = -1.0533.
    assert figure(printed[0], "w after 30 steps at a rate of 0.22") == pytest.approx(2 - 1.053333**30, abs=0.05)
    assert "a Learner at a rate of 0.25: warning: the training is diverging: its loss is rising far above" in printed[0]
    assert "a Learner at a rate of 0.5: DivergenceError: the training loss is not a finite number since" in printed[0]
    assert "Try a learning rate of 0.05" in printed[0]


def test_picture_is_left(printed: tuple[str, Path]) -> None:
    assert printed[0].splitlines()[-1] == f"picture: {printed[1] / 'gradient_descent.png'}"
    with Image.open(printed[1] / "gradient_descent.png") as picture:
        assert picture.size == (1210, 880)


def test_another_seed_takes_other_steps_to_the_same_place(printed: tuple[str, Path], tmp_path: Path) -> None:
    other = run_example("gradient_descent.py", tmp_path, "--seed", "3")
    assert figure(other, "stochastic, largest difference in w") <= 1e-6
    assert figure(other, "stochastic, Learner") == pytest.approx(8, abs=1e-5)

"""The tour of the optimizers: each gets to the minimum of x²·sin(x), in the steps that the table says."""

from pathlib import Path

import pytest
from example_runs import SHORT, run_example
from PIL import Image


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("every_optimizer")
    return run_example("every_optimizer.py", out), out


def table(printed: str) -> dict[str, list[list[str]]]:
    """For each optimizer its two lines: start, steps, x, f(x)."""
    lines = [line for line in printed.splitlines()[1:] if not line.startswith("picture: ")]
    return {line[:15].strip(): [other[15:].split() for other in lines if other[:15] == line[:15]] for line in lines}


def test_there_is_a_line_for_each_optimizer_and_start(printed: tuple[str, Path]) -> None:
    found = table(printed[0])
    assert len(found) == 15
    assert all([line[0] for line in lines] == ["2.5", "5.0"] for lines in found.values())


def test_steps_are_those_it_took(printed: tuple[str, Path]) -> None:
    found = table(printed[0])
    arrived = [name for name, lines in found.items() if all(line[1] != "never" for line in lines)]
    assert len(arrived) == (5 if SHORT else 15)
    assert found["Lion"][1][1] == "14"
    assert found["Lion"][0][1] == ("never" if SHORT else "270")
    for name in arrived:
        assert all(abs(float(line[2]) - 5.0870) <= 0.02 for line in found[name])


def test_picture_is_left(printed: tuple[str, Path]) -> None:
    assert printed[0].splitlines()[-1] == f"picture: {printed[1] / 'every_optimizer.png'}"
    with Image.open(printed[1] / "every_optimizer.png") as picture:
        assert picture.size == (990, 990)

"""The benchmarks' runner: what it measures is true, a missed bar is an exit code, the table is written."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def run() -> Iterator[ModuleType]:
    """benchmarks/run.py, importable as it is when it is run."""
    threads = torch.get_num_threads()
    sys.path.insert(0, str(FOLDER))
    try:
        import run as runner

        yield runner
    finally:
        sys.path.remove(str(FOLDER))
        torch.set_num_threads(threads)


def sums(*values: float) -> Callable[[], Callable[[], list[float]]]:
    """A side that is ready at once and ends with these values."""
    return lambda: lambda: list(values)


def trivial(run: ModuleType, bar: float, **options: Any) -> Any:
    from harness import race

    return run.Case(
        "trivial", "one", "the other", "nothing", lambda s: race(sums(1.0), sums(1.0), 3), bar=bar, **options
    )


def test_bar_that_is_missed_gives_1(run: ModuleType, tmp_path: Path) -> None:
    assert run.main(["--out", str(tmp_path / "table.md")], [trivial(run, bar=0.0)]) == 1
    assert "**missed**" in (tmp_path / "table.md").read_text()


def test_bar_that_is_kept_gives_0(run: ModuleType, tmp_path: Path) -> None:
    assert run.main(["--out", str(tmp_path / "table.md")], [trivial(run, bar=1e9)]) == 0
    assert "**missed**" not in (tmp_path / "table.md").read_text()


def test_figure_that_is_no_number_misses_its_bar(run: ModuleType) -> None:
    from harness import Measured

    assert not trivial(run, bar=1.0).good(Measured(float("nan"), 0.0, 0.0))


def test_table_has_the_bar_the_sides_and_the_machine(run: ModuleType, tmp_path: Path) -> None:
    run.main(["--out", str(tmp_path / "table.md")], [trivial(run, bar=1e9)])
    table = (tmp_path / "table.md").read_text()
    assert "| trivial | nothing | one: " in table
    assert "≤ 1e+09 ×" in table
    assert torch.__version__.split("+")[0] in table


def test_sides_that_end_with_other_sums_fail(run: ModuleType) -> None:
    from harness import race

    with pytest.raises(AssertionError, match="different sums"):
        race(sums(1.0, 2.0), sums(1.0, 2.1), 1)


def test_side_that_ends_with_nothing_fails(run: ModuleType) -> None:
    from harness import race

    with pytest.raises(AssertionError, match="nothing"):
        race(sums(), sums(), 1)


def test_case_that_fails_gives_1_and_the_next_is_measured(
    run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness import race

    broken = run.Case("broken", "one", "another", "nothing", lambda s: race(sums(1.0), sums(2.0), 1), bar=1e9)
    assert run.main(["--out", str(tmp_path / "table.md")], [broken, trivial(run, bar=1e9)]) == 1
    table = (tmp_path / "table.md").read_text()
    assert "- broken: **failed**" in table
    assert "| trivial |" in table
    assert "different sums" in capsys.readouterr().err


def test_case_that_cannot_be_measured_is_skipped_with_its_reason(run: ModuleType, tmp_path: Path) -> None:
    from harness import Skip

    def measure(setting: Any) -> Any:
        raise Skip("there is no such thing yet")

    case = run.Case("later", "one", "another", "nothing", measure, bar=1.0)
    assert run.main(["--out", str(tmp_path / "table.md")], [case]) == 0
    assert "- later: there is no such thing yet" in (tmp_path / "table.md").read_text()


def test_quick_run_leaves_out_the_slow_and_the_table_alone(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    before = (FOLDER / "results.md").read_bytes() if (FOLDER / "results.md").exists() else b""
    run.main(["--quick"], [trivial(run, bar=1e9), trivial(run, bar=0.0, slow=True)])
    assert capsys.readouterr().out.count("trivial") == 1
    assert before == ((FOLDER / "results.md").read_bytes() if (FOLDER / "results.md").exists() else b"")


def test_ratio_is_of_the_rounds_not_of_the_medians(run: ModuleType) -> None:
    from harness import compared

    measured = compared([1.0, 10.0, 2.0], [2.0, 10.0, 4.0])  # a slow moment hits both sides of the second round
    assert (measured.figure, measured.low, measured.high) == (0.5, 0.5, 0.75)


def test_cases_have_names_of_their_own_and_bars(run: ModuleType) -> None:
    names = [case.name for case in run.CASES]
    assert len(set(names)) == len(names)
    assert sum(case.bar is not None for case in run.CASES) > len(names) / 2


def test_linear_job_is_the_same_by_hand_and_by_a_learner(run: ModuleType) -> None:
    import linear
    from harness import same_sums

    torch.set_num_threads(1)
    outcomes = []
    for side in linear.SIDES.values():
        torch.manual_seed(0)
        outcomes.append(side(linear.random_data(), torch.nn.Linear(784, 1), 1))
    same_sums(*outcomes, tolerance=1e-4)

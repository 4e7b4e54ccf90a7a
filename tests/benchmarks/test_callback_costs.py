"""What callbacks cost: each has its cost in its docstring, and the benchmark that measures it runs."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from minilearn import callbacks
from minilearn.callback import Callback

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def costs() -> Iterator[ModuleType]:
    """benchmarks/callbacks.py, importable as it is when it is run."""
    threads = torch.get_num_threads()
    sys.path.insert(0, str(FOLDER))
    try:
        import callbacks as module

        yield module
    finally:
        sys.path.remove(str(FOLDER))
        torch.set_num_threads(threads)


def test_every_optional_callback_is_measured(costs: ModuleType) -> None:
    found = [kind for kind in vars(callbacks).values() if inspect.isclass(kind) and issubclass(kind, Callback)]
    optional = {kind.__name__ for kind in found} - costs.DEFAULT - costs.ON_THEIR_OWN.keys()
    assert {costs.kind_of(name) for name in costs.COSTS} == optional


def test_every_cost_is_in_the_docstring(costs: ModuleType) -> None:
    assert [name for name, cost in costs.COSTS.items() if cost.says not in costs.docstring(name)] == []


def test_figures_that_are_written_are_added_up(costs: ModuleType) -> None:
    assert costs.Cost(callbacks.MixUp, "0.2 ms, and 50 µs a layer", 2).written == 500
    assert costs.Cost(callbacks.CSVLogger, "A batch costs nothing").written == 0


def test_twice_what_is_written_is_told(costs: ModuleType) -> None:
    cost = costs.Cost(callbacks.Cast, "A batch costs about 9 µs")
    assert not costs.is_dearer(cost, 18.0)
    assert costs.is_dearer(cost, 18.1 + costs.NOISE)


def test_a_row_a_callback_is_printed(costs: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert costs.main(["--rounds", "1", "--only", "GatherPreds"]) == 0
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| GatherPreds |")
    assert row.count("|") == 6

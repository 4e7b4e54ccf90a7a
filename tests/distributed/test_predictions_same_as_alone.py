"""Predictions, and what is made of them, are in every process those of one."""

import json
from pathlib import Path

import pytest
from compare import differences
from processes import at_length, in_processes

PREDICTIONS = Path(__file__).parent / "prediction_fits.py"


@pytest.mark.parametrize(("world", "sizes"), [(2, (37,)), pytest.param(4, (32, 3, 1), marks=at_length)])
def test_predictions_come_in_order_and_whole_to_every_process(
    world: int, sizes: tuple[int, ...], tmp_path: Path
) -> None:
    (tmp_path / "alone").mkdir()
    alone = json.loads(in_processes(PREDICTIONS, 1, tmp_path / "alone", 16, *sizes)[0])
    assert not differences(in_processes(PREDICTIONS, world, tmp_path, 16, *sizes, timeout_s=300), alone)

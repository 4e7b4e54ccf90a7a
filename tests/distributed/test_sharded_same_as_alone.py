"""A model that is sharded over processes trains, and is saved and loaded, to the figures of one process."""

import json
from pathlib import Path

import pytest
from compare import differences
from processes import at_length, in_processes

FITS = Path(__file__).parent / "sharded_fits.py"


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=at_length)])
def test_fits_of_a_sharded_model_are_those_of_one_process(world: int, tmp_path: Path) -> None:
    alone = json.loads(in_processes(FITS, 1, tmp_path / "alone", timeout_s=300)[0])
    assert not differences(in_processes(FITS, world, tmp_path / "together", timeout_s=300), alone)

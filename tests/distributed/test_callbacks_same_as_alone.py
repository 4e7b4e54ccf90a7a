"""Fits with callbacks, schedules and losses of many kinds come to the figures of one process."""

import json
from pathlib import Path

import pytest
from compare import differences
from processes import at_length, in_processes

CALLBACK_FITS = Path(__file__).parent / "callback_fits.py"
CASES = {
    2: ("accumulation", "clip", "losses", "unused"),
    4: ("averages", "schedules", "search", "hooked", "norms", "mixed"),
}


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=at_length)])
def test_fits_with_callbacks_are_those_of_one_process(world: int) -> None:
    alone = json.loads(in_processes(CALLBACK_FITS, 1, 16, *CASES[world])[0])
    assert not differences(in_processes(CALLBACK_FITS, world, 16, *CASES[world], timeout_s=300), alone)

"""Every metric has in several processes the figure of one."""

import json
from pathlib import Path

import pytest
from compare import differences
from processes import at_length, in_processes

METRIC_FITS = Path(__file__).parent / "metric_fits.py"


@pytest.mark.parametrize(("world", "sizes"), [(2, (37,)), pytest.param(4, (5,), marks=at_length)])
def test_every_metric_has_the_figure_of_one_process(world: int, sizes: tuple[int, ...]) -> None:
    alone = json.loads(in_processes(METRIC_FITS, 1, 16, *sizes)[0])
    assert not differences(in_processes(METRIC_FITS, world, 16, *sizes, timeout_s=300), alone)

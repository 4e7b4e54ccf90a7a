"""Several processes train to the figures of one, whatever the size of the data set."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from processes import in_processes

FITS = Path(__file__).parent / "fits.py"
GLOBAL_BATCH = 16
CASES = [f"{rows}:{kind}" for rows in (64, 61, 49, 33) for kind in ("tensors", "rows", "torch", "drop", "sum")]
CASES += [f"{rows}:{kind}" for rows in (61, 18) for kind in ("numpy", "stream", "splits")]


def flat(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in flat(value[key])]
    return [number for part in value for number in flat(part)] if isinstance(value, list) else [value]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(in_processes(FITS, 1, GLOBAL_BATCH, *CASES)[0])
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_losses_metrics_and_weights_are_those_of_one_process(world: int, alone: dict[str, Any]) -> None:
    printed = in_processes(FITS, world, GLOBAL_BATCH, *CASES)
    for rank, text in enumerate(printed):
        together = json.loads(text)
        for case, figures in alone.items():
            for name, expected in figures.items():
                there, here = flat(expected), flat(together[case][name])
                assert len(here) == len(there), (rank, case, name)
                far = [(a, b) for a, b in zip(here, there, strict=True) if not math.isclose(a, b, rel_tol=1e-6)]
                assert not far, (rank, case, name, far[:3])

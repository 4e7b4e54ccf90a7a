"""Fits, schedules, searches: minilearn's figures are fastai 2.8.12's, as recorded, to 1e-4."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_cases import CASES

import minilearn.all

RECORDED = json.loads(Path(__file__).with_name("figures.json").read_text())


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def differences(found: Any, wanted: Any, where: str) -> list[str]:
    """Where two nests of figures differ by more than 1e-4 of the figure, or of the largest beside it in its list."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        return [text for name in wanted for text in differences(found[name], wanted[name], f"{where} {name}")]
    if not isinstance(wanted, list):
        return differences([found], [wanted], where)
    if len(found) != len(wanted):
        return [f"{where}: {len(found)} figures, fastai has {len(wanted)}"]
    if wanted and isinstance(wanted[0], list):
        return [text for i, part in enumerate(wanted) for text in differences(found[i], part, f"{where}[{i}]")]
    # A number of a tensor may be next to 0 by chance: it has the tensor's scale.
    floor = 1e-5 * max(map(abs, wanted), default=0.0) if " weights" in where else 1e-9
    return [
        f"{where}[{i}]: {ours:.7g}, fastai has {theirs:.7g}"
        for i, (ours, theirs) in enumerate(zip(found, wanted, strict=True))
        if not abs(ours - theirs) <= max(1e-4 * abs(theirs), floor)
    ]


@pytest.mark.parametrize("name", CASES)
def test_figures_are_those_of_fastai(name: str) -> None:
    found = CASES[name](minilearn.all)
    assert differences(found, RECORDED[name], name) == []


def test_every_recorded_run_is_compared() -> None:
    assert RECORDED.keys() == CASES.keys()

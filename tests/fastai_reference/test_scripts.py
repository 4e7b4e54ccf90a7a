"""Scripts in fastai's manner run with minilearn as they are, and find what they found with fastai 2.8.12."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
SCRIPTS = sorted((HERE / "scripts").glob("*.py"))
RECORDED = json.loads((HERE / "scripts.json").read_text())


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def equal(found: Any, wanted: Any, where: str) -> None:
    """Nests of figures and words, to 1e-4."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for name in wanted:
            equal(found[name], wanted[name], f"{where} {name}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for i, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
            equal(ours, theirs, f"{where}[{i}]")
    elif isinstance(wanted, str):
        assert found == wanted, where
    else:
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-9), where


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_finds_what_it_found_with_fastai(script: Path) -> None:
    torch.manual_seed(0)
    equal(runpy.run_path(str(script))["figures"], RECORDED[script.stem], script.stem)


def test_every_script_was_recorded() -> None:
    assert {script.stem for script in SCRIPTS} == RECORDED.keys()

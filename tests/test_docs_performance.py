"""docs/performance.md: its code runs in its order, and its table is the one that is printed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "performance.md").read_text()


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def parts(table: str) -> list[str]:
    """The names of a profile's lines."""
    return [re.split(r"\s{2,}", line)[0] for line in table.splitlines()]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The page's code sets it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_code_runs_and_prints_the_parts_shown(
    mnist_root: Path, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block, names)
    assert parts(capsys.readouterr().out) == parts(blocks("")[0])


def test_table_shown_adds_up() -> None:
    rows = [line.split() for line in blocks("")[0].splitlines()[1:]]
    *each, total = [float(row[-2].replace(",", "")) for row in rows]
    assert sum(each) == pytest.approx(total, abs=0.1 * len(rows))
    assert all(float(row[-1].rstrip("%")) == pytest.approx(100 * float(row[-2]) / total, abs=0.1) for row in rows)


def test_every_part_shown_is_explained() -> None:
    explained = re.findall(r"^\| ([^|]+?) \|", PAGE, re.MULTILINE)
    callbacks = {"Recorder", "TrainEval", "ProgressCallback"}
    assert set(parts(blocks("")[0])) - callbacks - {"part", "all"} <= set(explained)
    assert all(f"`{name}`" in PAGE for name in callbacks)


def test_links_lead_to_files() -> None:
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", PAGE) if "://" not in target]
    assert targets
    assert all((DOCS / target).exists() for target in targets)

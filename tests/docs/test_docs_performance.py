"""docs/performance.md: its table is the one that is printed."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from doc_pages import ROOT, carry_out, split

PATH = ROOT / "docs" / "performance.md"
PAGE = PATH.read_text()
BLOCKS, _ = split(PAGE)
(TABLE,) = [block.text for block in BLOCKS if block.language == "text"]


def parts(table: str) -> list[str]:
    """The names of a profile's lines."""
    return [re.split(r"\s{2,}", line)[0] for line in table.splitlines()]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The page's code sets it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_first_block_prints_the_parts_shown(mnist_root: Path, one_thread: None) -> None:
    shorter = replace(BLOCKS[0], text=BLOCKS[0].text.replace("profile(1000)", "profile(20)"))
    assert shorter != BLOCKS[0]
    assert parts(carry_out(shorter, PATH, ModuleType("page"))) == parts(TABLE)


def test_table_shown_adds_up() -> None:
    rows = [line.split() for line in TABLE.splitlines()[1:]]
    *each, total = [float(row[-2].replace(",", "")) for row in rows]
    assert sum(each) == pytest.approx(total, abs=0.1 * len(rows))
    assert all(float(row[-1].rstrip("%")) == pytest.approx(100 * float(row[-2]) / total, abs=0.1) for row in rows)


def test_every_part_shown_is_explained() -> None:
    explained = re.findall(r"^\| ([^|]+?) \|", PAGE, re.MULTILINE)
    callbacks = {"Recorder", "TrainEval"}
    assert set(parts(TABLE)) - callbacks - {"part", "all"} <= set(explained)
    assert all(f"`{name}`" in PAGE for name in callbacks)

"""Pages of docs/ that show what their code prints: that is what it prints, in the order of the page."""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ["one-batch", "data", "schedules", "errors", "from-a-loop", "from-lightning-and-keras"]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def pairs(page: str) -> list[tuple[str, str | None]]:
    """A page's code, block by block, each with what the page says that it prints, where it says so."""
    found = re.findall(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", page, re.DOTALL | re.MULTILINE)
    return [(code, shown or None) for code, shown in found]


def same(printed: str, shown: str) -> bool:
    """Whether two texts are alike: in their words exactly, in their numbers nearly, as sums round otherwise elsewhere.

    Lines may be broken at other words: a number may have a digit more.
    """
    printed, shown = " ".join(printed.split()), " ".join(shown.split())
    if NUMBER.sub("#", printed) != NUMBER.sub("#", shown):
        return False
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (printed, shown)]
    return numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.005)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Batches are too small to gain by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", PAGES)
def test_code_prints_what_the_page_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    told = pairs((DOCS / f"{name}.md").read_text())
    assert told
    names: dict[str, Any] = {"__name__": "page"}
    for code, shown in told:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(compile(code, f"{name}.md", "exec"), names)
        assert shown is None or same(printed.getvalue(), shown), f"{code}\nprints\n{printed.getvalue()}"


def headings(page: str) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.+)$", prose, re.M)}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    page = (DOCS / f"{name}.md").read_text()
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", page) if "://" not in target]
    assert targets
    for target in targets:
        file, _, heading = target.partition("#")
        path = DOCS / file if file else DOCS / f"{name}.md"
        assert path.exists()
        assert not heading or path.suffix != ".md" or heading in headings(path.read_text())


@pytest.mark.parametrize(
    ("printed", "shown", "alike"),
    [
        ("loss 0.5001", "loss 0.5", True),
        ("loss 0.6", "loss 0.5", False),
        ("1 of 2", "1 of 3", False),
        ("a 1", "b 1", False),
    ],
)
def test_texts_are_alike_in_words_and_nearly_in_numbers(printed: str, shown: str, alike: bool) -> None:
    assert same(printed, shown) == alike

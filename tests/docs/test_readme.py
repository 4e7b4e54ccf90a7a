"""README.md: what it says of the loop and of the installation is so, and README.zh-CN.md is its translation."""

import re
from collections import Counter
from pathlib import Path

from doc_pages import ROOT, split

from minilearn.callback import EVENTS


def test_events_are_those_of_the_loop() -> None:
    blocks, _ = split((ROOT / "README.md").read_text())
    (events,) = [block.text for block in blocks if block.language == "text" and block.text.startswith("before_fit")]
    shown = list(dict.fromkeys(events.split()))
    assert set(shown) == {event for event in EVENTS if "cancel" not in event and event != "after_create"}


def test_make_installs_what_is_proved_as_the_commands_without_it_do() -> None:
    assert "--constraint constraints.txt" in (ROOT / "Makefile").read_text()


def structure(page: Path) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """The levels of a page's headings, its blocks without their comments, and where its links lead."""
    blocks, prose = split(page.read_text())
    text = "\n".join(prose)
    code = [(block.language, re.sub(r"\s*# .*", "", block.text)) for block in blocks]
    links = re.findall(r"\]\(([^)]+)\)", text)
    return re.findall(r"^#+(?= )", text, re.MULTILINE), code, links


def test_chinese_page_has_the_headings_the_code_and_the_links_of_the_english_one() -> None:
    english, chinese = (structure(ROOT / name) for name in ("README.md", "README.zh-CN.md"))
    assert (english[2].pop(0), chinese[2].pop(0)) == ("README.zh-CN.md", "README.md")
    assert chinese == english
    assert all(english)


def test_chinese_page_names_the_same_things_in_the_same_part() -> None:
    english, chinese = (parts((ROOT / name).read_text()) for name in ("README.md", "README.zh-CN.md"))
    assert chinese == english


def parts(page: str) -> list[Counter[str]]:
    """What is quoted as code, and the list items and table rows, under each heading, each with its number."""
    return [
        Counter(re.findall(r"`[^`]+`|^- |^\|", part, re.MULTILINE))
        for part in re.split(r"^#+ ", "\n".join(split(page)[1]), flags=re.MULTILINE)
    ]


def test_lessons_are_the_examples() -> None:
    listed = re.findall(r"^\| `(\w+\.py)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(
        path.name for path in (ROOT / "examples").glob("*.py") if path.stem != "command_line"
    )

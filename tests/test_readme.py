"""The README's code runs, in its order, and prints what it says."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language; "" for those of none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def figures(table: str) -> list[list[float]]:
    return [[float(cell) for cell in line.split()[:-1]] for line in table.splitlines()[1:]]


def test_code_runs_and_prints_the_table(mnist_root: Path, tmp_path: Path) -> None:
    code = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    shown = blocks("")[0]
    header, *rows = done.stdout.splitlines()
    assert header == shown.splitlines()[0]
    for row, wanted in zip(figures("\n".join([header, *rows[:10]])), figures(shown), strict=True):
        # The random numbers are the same everywhere, the last digits of a sum are not.
        assert all(abs(a - b) <= 0.005 for a, b in zip(row, wanted, strict=True))


def test_plain_commands_are_those_of_the_makefile() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "--constraint constraints.txt" in makefile


def test_links_lead_to_files() -> None:
    root = Path(__file__).parent.parent
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert all((root / target).exists() for target in targets)


def test_events_are_those_of_the_loop() -> None:
    from minilearn.callback import EVENTS

    (events,) = [block for block in blocks("") if block.startswith("before_fit")]
    shown = list(dict.fromkeys(events.split()))
    assert set(shown) == {event for event in EVENTS if "cancel" not in event and event != "after_create"}

"""docs/one-batch.md: what it quotes is the source of the loop, whole, and its links lead to it."""

import inspect
import re
import textwrap
from pathlib import Path

import pytest

from minilearn.callback import CancelException
from minilearn.loop import Loop

PAGE = (Path(__file__).parent.parent.parent / "docs" / "one-batch.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
LINKS = re.findall(r"\[`(\w+)`\]\(\.\./minilearn/loop\.py#L(\d+)-L(\d+)\)", PAGE)


def source(name: str) -> str:
    return textwrap.dedent(inspect.getsource(getattr(Loop, name))).strip()


def quoted() -> dict[str, str]:
    """The methods that the page quotes, by name."""
    found: dict[str, str] = {}
    for block in BLOCKS:
        for method in re.split(r"\n\n\n", block.strip()):
            if taken := re.search(r"^def (\w+)\(self", method, re.MULTILINE):
                found[taken[1]] = method.strip()
    return found


def test_the_way_of_a_batch_is_quoted_without_a_gap() -> None:
    way = "_fit _one_epoch _train _validate _batches one_batch _predict _loss _backward _step event _cleaned_up"
    assert list(quoted()) == way.split()


@pytest.mark.parametrize("name", quoted())
def test_quoted_code_is_the_source(name: str) -> None:
    assert quoted()[name] == source(name)


@pytest.mark.parametrize(("name", "first", "last"), LINKS)
def test_links_lead_to_the_lines_of_the_function(name: str, first: str, last: str) -> None:
    lines, start = inspect.getsourcelines(getattr(Loop, name))
    assert (int(first), int(last)) == (start, start + len(lines) - 1)


def test_every_quoted_function_is_linked() -> None:
    assert {name for name, _, _ in LINKS} == set(quoted())


def test_every_cancel_is_in_the_table() -> None:
    told = re.findall(r"^\| `(Cancel\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(told) == sorted(kind.__name__ for kind in CancelException.__subclasses__())

"""docs/callbacks.md: its tables are those of the classes."""

import re

import pytest
from doc_pages import ROOT

import minilearn.all
from minilearn.callback import EVENTS, Callback
from minilearn.handlers import IN_STEP

PAGE = (ROOT / "docs" / "callbacks.md").read_text()


def rows(header: str) -> list[list[str]]:
    """The cells of the table whose header line begins so, row by row."""
    lines = PAGE[PAGE.index(f"\n| {header} |") :].splitlines()[3:]
    end = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[:end]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


EXPORTED: dict[str, type[Callback]] = {
    name: thing
    for name, thing in vars(minilearn.all).items()
    if name in minilearn.all.__all__ and isinstance(thing, type) and issubclass(thing, Callback)
}
LIBRARY = {cls.__name__: cls for cls in EXPORTED.values() if cls is not Callback}
TABLE = {quoted(cells[0])[0]: cells for cells in rows("callback")}


def test_every_event_is_in_the_table_in_its_order() -> None:
    assert [quoted(cells[0]) for cells in rows("event")] == [[event] for event in EVENTS]


def test_every_callback_is_in_the_table_once() -> None:
    assert len(TABLE) == len(rows("callback"))
    assert TABLE.keys() == LIBRARY.keys()


@pytest.mark.parametrize("name", TABLE)
def test_callback_is_there_under_all_its_names(name: str) -> None:
    assert set(quoted(TABLE[name][0])) == {given for given, cls in EXPORTED.items() if cls is LIBRARY[name]}


@pytest.mark.parametrize("name", TABLE)
def test_events_are_those_of_the_class(name: str) -> None:
    assert quoted(TABLE[name][2]) == [event for event in EVENTS if hasattr(LIBRARY[name], event)]


@pytest.mark.parametrize("name", TABLE)
def test_compiled_is_the_whole_step_where_the_callback_does_not_act_in_it(name: str) -> None:
    cls = LIBRARY[name]
    acts = cls.acts_in_step and any(hasattr(cls, event) for event in IN_STEP)
    assert TABLE[name][4].split(",")[0] == ("the model" if acts else "whole")


@pytest.mark.parametrize("name", TABLE)
def test_state_is_told_where_there_is_one(name: str) -> None:
    cls = LIBRARY[name]
    assert (TABLE[name][5] != "–") == (cls.state_dict is not Callback.state_dict)
    assert (cls.state_dict is Callback.state_dict) == (cls.load_state_dict is Callback.load_state_dict)


def test_every_cell_says_something() -> None:
    assert [cells for cells in TABLE.values() if len(cells) != 6 or not all(cells)] == []


def test_first_rows_are_the_default_ones() -> None:
    from minilearn.learner import DEFAULT_CALLBACKS

    assert list(TABLE)[: len(DEFAULT_CALLBACKS)] == [cls.__name__ for cls in DEFAULT_CALLBACKS]
    assert [name for name, cells in TABLE.items() if "default" in cells[1]] == list(TABLE)[: len(DEFAULT_CALLBACKS)]

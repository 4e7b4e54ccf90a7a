"""The page of names is held to both sides: to fastai 2.8.12's recorded names, and to minilearn as it is."""

import inspect
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import minilearn.all
from minilearn.callback import EVENTS, Callback, CancelException
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD, Lookahead, OptimWrapper

HERE = Path(__file__).parent
RECORDED = {row["name"]: row for row in json.loads((HERE / "names.json").read_text())}
PAGE = HERE.parents[1] / "docs" / "from-fastai-names.md"
STATES = ("same", "different", "left out")

Entry = tuple[str, str]
"""A name's state and the note on it."""


def table(page: str) -> list[tuple[str, Entry]]:
    """The names of a page's tables, each with its state and note: a row may have several names."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")
    ]
    return [(name, (state, note)) for names, state, note in rows for name in re.findall(r"`([\w.]+)`", names)]


ROWS = table(PAGE.read_text())
ENTRIES = dict(ROWS)


def without(note: str) -> set[str]:
    """The parameters that a note says are left out.

    >>> sorted(without("without `a`, `b`: they have gone; `c` is `d`"))
    ['a', 'b']
    """
    return {name for run in re.findall(r"without ((?:`\w+`(?:, )?)+)", note) for name in re.findall(r"`(\w+)`", run)}


def renamed(note: str) -> dict[str, str]:
    """The parameters that a note says have another name.

    >>> renamed("`a` is `b`, `c` is `d`")
    {'a': 'b', 'c': 'd'}
    """
    return dict(re.findall(r"`(\w+)` is `(\w+)`", note))


# ---- what minilearn has ----


@cache
def state_in_a_batch() -> dict[str, set[str]]:
    """What Learner and Recorder have within a batch, where all their state is there."""
    seen: dict[str, set[str]] = {"Learner": set(), "Recorder": set()}

    class Look(Callback):
        order = 99

        def after_batch(self) -> None:
            for owner, thing in (("Learner", self.learn), ("Recorder", self.learn.recorder)):
                seen[owner].update(name for name in dir(thing) if has(thing, name))

    learn = Learner(loaders(), nn.Linear(3, 1), nn.functional.mse_loss, cbs=Look())
    with learn.no_logging():
        learn.fit(1)
    return seen


def made(owner: str) -> Any:
    """An object of a class whose attributes are made with it; the class itself where none is needed."""
    parameter = [torch.ones(1, requires_grad=True)]
    if owner == "OptimWrapper":
        return OptimWrapper(parameter, lr=0.1)
    if owner in ("Lookahead", "Optimizer"):
        return Lookahead(SGD(parameter, 0.1)) if owner == "Lookahead" else SGD(parameter, 0.1)
    if owner == "DataLoaders":
        return loaders()
    return getattr(minilearn.all, owner)


def loaders() -> DataLoaders:
    rows = TensorDataset(torch.rand(8, 3), torch.rand(8, 1))
    return DataLoaders(DataLoader(rows, 4), DataLoader(rows, 4))


def has(thing: Any, name: str) -> bool:
    """Whether an object has an attribute, and it has a value already."""
    try:
        getattr(thing, name)
    except (AttributeError, ValueError):
        return False
    return True


def find(name: str) -> Any:
    """What minilearn has under a name; a LookupError where it has nothing."""
    owner, _, member = name.partition(".")
    if owner == "event":
        if member not in EVENTS:
            raise LookupError(name)
        return member
    if owner not in minilearn.all.__all__:
        raise LookupError(owner)
    if not member:
        return getattr(minilearn.all, owner)
    thing = made(owner)
    if hasattr(thing, member):
        return getattr(thing, member)
    annotated = any(member in vars(base).get("__annotations__", {}) for base in getattr(thing, "__mro__", ()))
    if annotated or member in state_in_a_batch().get(owner, ()):
        return None
    raise LookupError(name)


def signature_problems(name: str, thing: Any) -> list[str]:
    """In what a signature does not take what fastai's takes."""
    recorded, note = RECORDED[name], ENTRIES[name][1]
    if recorded["parameters"] is None or recorded["kind"] in ("constant", "exception", "event"):
        return []
    if not callable(thing):
        return [f"{name}: it is no {recorded['kind']}"]
    kinds = inspect.Parameter
    ours = [p for p in inspect.signature(thing).parameters.values() if p.name != "self"]
    refused = {p.name for p in ours if p.annotation is None}  # there so that an error can say why it is not taken
    takes = {p.name for p in ours if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)} - refused
    any_name = any(p.kind is kinds.VAR_KEYWORD for p in ours)
    gone, others = without(note), renamed(note)
    wanted = [(others.get(given, given), kind, given in gone) for given, kind, _ in recorded["parameters"]]
    problems = [
        f"{name}: takes no '{given}'"
        for given, kind, left_out in wanted
        if kind in ("", "*") and not left_out and given not in takes and not any_name
    ]
    problems += [f"{name}: takes '{given}', which the page says it does not" for given in sorted(gone & takes)]
    unknown = (gone | others.keys()) - {given for given, *_ in recorded["parameters"]}
    problems += [f"{name}: the page speaks of '{given}', which fastai does not take" for given in sorted(unknown)]
    leading: list[str] = []
    for given, kind, left_out in wanted:
        if kind or (left_out and given not in refused):
            break
        leading.append(given)
    positional = [p.name for p in ours if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    swallows = any(p.kind is kinds.VAR_POSITIONAL for p in ours)
    if positional[: len(leading)] != leading and not problems and not swallows:
        problems.append(f"{name}: takes {', '.join(positional)} by position, fastai takes {', '.join(leading)}")
    return problems


def test_the_page_has_every_recorded_name_once_and_no_other() -> None:
    counts = Counter(name for name, _ in ROWS)
    problems = [f"{name}: not on the page" for name in RECORDED if name not in counts]
    problems += [f"{name}: fastai has no such name" for name in counts if name not in RECORDED]
    problems += [f"{name}: on the page {n} times" for name, n in counts.items() if n > 1]
    assert problems == [], listed(problems)


def test_every_name_is_the_same_or_has_a_reason() -> None:
    problems = [f"{name}: '{state}' is no state" for name, (state, _) in ROWS if state not in STATES]
    problems += [f"{name}: {state}, and no reason" for name, (state, note) in ROWS if state != "same" and not note]
    assert problems == [], listed(problems)


def test_names_that_are_the_same_exist_and_take_what_fastais_take() -> None:
    problems = []
    for name, (state, _) in ROWS:
        if state == "same":
            try:
                problems += signature_problems(name, find(name))
            except LookupError as missing:
                problems.append(f"{missing}: missing")
    assert problems == [], listed(list(dict.fromkeys(problems)))


def test_names_that_differ_exist() -> None:
    problems = []
    for name, (state, _) in ROWS:
        if state == "different":
            try:
                find(name)
            except LookupError as missing:
                problems.append(f"{missing}: missing")
    assert problems == [], listed(problems)


def test_names_that_are_left_out_do_not_exist() -> None:
    problems = []
    for name, (state, _) in ROWS:
        if state == "left out" and (name.partition(".")[0] == name or name.partition(".")[0] in minilearn.all.__all__):
            try:
                find(name)
                problems.append(f"{name}: it is there, the page says it is left out")
            except LookupError:
                pass
    assert problems == [], listed(problems)


def test_every_cancellation_of_fastai_is_a_cancellation() -> None:
    names = [name for name in RECORDED if name.startswith("Cancel")]
    assert len(names) == 7
    assert all(issubclass(find(name), CancelException) for name in names)


def listed(problems: list[str]) -> str:
    """Problems one a line, for whoever puts them right."""
    return f"\n{len(problems)} problems:\n" + "\n".join(problems)

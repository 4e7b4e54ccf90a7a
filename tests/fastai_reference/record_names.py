"""Writes names.json: the public names of fastai 2.8.12's Learner core, with their signatures.

The core is what ``from fastai.basics import *; from fastai.callback.all import *`` gives of fastai's own names, without
the block API of `fastai.data`, and what is public on the classes in `OPENED`. Beside classes' own attributes these are
what a Learner and its Recorder have during and after a fit, and the events.

Run by hand, where fastai is installed: ``python tests/fastai_reference/record_names.py``.
"""

import inspect
import json
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

WANTED = "2.8.12"
OPENED = [
    "Learner",
    "Recorder",
    "Callback",
    "Optimizer",
    "OptimWrapper",
    "Lookahead",
    "DataLoaders",
    "Metric",
    "Hook",
    "Hooks",
    "TrackerCallback",
    "Interpretation",
    "ClassificationInterpretation",
    "BaseLoss",
]
OF_DATA = ["DataLoaders", "DataLoader", "TfmdDL", "Normalize", "IntToFloatTensor", "URLs", "untar_data"]
"""Of `fastai.data` all else is the block API, or a part of it."""

Entry = dict[str, Any]


def text(value: Any) -> str:
    """A default as text, without addresses."""
    if value is inspect.Parameter.empty:
        return ""
    if inspect.isfunction(value) or inspect.isclass(value):
        return str(value.__name__)
    shown = repr(value)
    return f"<{type(value).__name__}>" if " at 0x" in shown else shown


def parameters(thing: Any, events: frozenset[str] = frozenset()) -> list[list[str]] | None:
    """A signature's parameters: name, kind, default as text ("" where there is none); None where it has no signature.

    The many parameters of a callback's base class, a function for each event, are given as one.
    """
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return None
    kind = inspect.Parameter
    kinds = {kind.KEYWORD_ONLY: "*", kind.VAR_POSITIONAL: "args", kind.VAR_KEYWORD: "kwargs"}
    rows = [[name, kinds.get(found.kind, ""), text(found.default)] for name, found in signature.parameters.items()]
    if events and events <= signature.parameters.keys():
        rows = [*(row for row in rows if row[0] not in events), ["events", "kwargs", ""]]
    return rows


def entry(name: str, kind: str, module: str, parameters: list[list[str]] | None = None) -> Entry:
    """A name's row."""
    return {"name": name, "kind": kind, "parameters": parameters, "module": module}


def kind_of(thing: Any) -> str:
    """What a top-level name stands for."""
    if inspect.isclass(thing):
        return "exception" if issubclass(thing, BaseException) else "class"
    return "function" if callable(thing) else "constant"


def homes() -> dict[str, str]:
    """The module of fastai that says of each name, in its `__all__` or `_all_`, that it is its own."""
    found: dict[str, str] = {}
    for home, module in sorted(sys.modules.items()):
        if not home.startswith("fastai."):
            continue
        for name in [*getattr(module, "__all__", ()), *getattr(module, "_all_", ())]:
            found.setdefault(name, home)
    return found


def members(cls: type, module: str, inherited: set[type], events: frozenset[str]) -> list[Entry]:
    """What is public on a class, without its events; of its bases what is fastai's, but for those in `inherited`."""
    found = []
    for name in sorted(dir(cls)):
        owner = next((base for base in cls.__mro__ if name in vars(base)), None)
        if name[0] == "_" or name in events or owner is None or owner in inherited - {cls}:
            continue
        if not owner.__module__.startswith("fastai."):
            continue
        value = inspect.getattr_static(cls, name)
        full = f"{cls.__name__}.{name}"
        if isinstance(value, property):
            found.append(entry(full, "property", module))
        elif callable(getattr(cls, name)):
            bound = inspect.ismethod(getattr(cls, name))
            found.append(entry(full, "method", module, (parameters(getattr(cls, name)) or [])[not bound :]))
        else:
            found.append(entry(full, "attribute", module))
    return found


def attributes(names: dict[str, Any]) -> list[Entry]:
    """What a Learner and its Recorder have of their own in a batch and after a fit, callbacks by their names too."""
    seen: dict[str, set[str]] = {"Learner": set(), "Recorder": set()}

    class Watch(names["Callback"]):  # type: ignore[misc]
        def after_batch(self) -> None:
            look()

    def look() -> None:
        seen["Learner"] |= vars(learn).keys() - {"watch", "param_scheduler"}  # the latter is there for this fit
        seen["Recorder"] |= vars(learn.recorder).keys()

    rows = TensorDataset(torch.rand(8, 3), torch.rand(8, 1))
    dls = names["DataLoaders"](DataLoader(rows, 4), DataLoader(rows, 4))
    learn = names["Learner"](dls, nn.Linear(3, 1), nn.functional.mse_loss, cbs=Watch())
    with learn.no_logging(), learn.no_bar():
        learn.fit_one_cycle(1)
    look()
    return [
        entry(f"{owner}.{name}", "attribute", "fastai.learner")
        for owner, found in seen.items()
        for name in sorted(found)
        if not name.startswith("_") and not hasattr(names[owner], name)
    ]


def inventory(modules: list[ModuleType]) -> list[Entry]:
    """All rows, sorted by module and name."""
    names = {name: value for module in modules for name, value in vars(module).items() if not name.startswith("_")}
    events = frozenset(name for name in vars(names["event"]) if name[0] != "_")
    opened = {names[name] for name in OPENED}
    found = []
    for name, home in homes().items():
        of_data = home.startswith("fastai.data.") and name not in OF_DATA
        if name not in names or of_data or isinstance(names[name], ModuleType):
            continue
        thing = names[name]
        found.append(entry(name, kind_of(thing), home, parameters(thing, events) if callable(thing) else None))
        if name in OPENED:
            found += members(thing, home, opened, events)
    found += [entry(f"event.{name}", "event", "fastai.callback.core") for name in events]
    found += attributes(names)
    once = {row["name"]: row for row in reversed(found)}
    return sorted(once.values(), key=lambda row: (row["module"], row["name"]))


def main() -> None:
    """Records every name."""
    import fastai
    from fastai import basics
    from fastai.callback import all as callbacks

    assert fastai.__version__ == WANTED, f"the names are those of fastai {WANTED}, not {fastai.__version__}"
    out = Path(__file__).with_name("names.json").resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        rows = inventory([basics, callbacks])
    out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(f"{len(rows)} names")


if __name__ == "__main__":
    main()

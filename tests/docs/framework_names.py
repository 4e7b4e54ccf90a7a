"""Whether the names that a page's tables give for Lightning and Keras are there.

`python framework_names.py PAGE` prints those that are not; it imports both, so a test runs it in a process of its own.
"""

import ast
import inspect
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

from doc_pages import split, warnings_of_others_aside


def left_columns(page: str) -> Iterator[tuple[str, str]]:
    """The head of each row's table, and a piece of code in the row's first cell."""
    head = None
    for line in split(page)[1]:
        if not line.startswith("|"):
            head = None
            continue
        cell = line.split("|")[1].strip()
        if head is None:
            head = cell
        else:
            yield from ((head, code) for code in re.findall(r"`([^`]+)`", cell))


def unknown(code: str, homes: Sequence[object]) -> list[str]:
    """The names in a piece of code that none of `homes` has, as an attribute or as a parameter; "…" is anything.

    Arguments by position are not looked at, those by keyword are: the function that is called must have them.
    """
    (statement,) = ast.parse(code.replace("…", "...")).body
    return list(_unknown(statement, homes))


def _unknown(node: ast.AST, homes: Sequence[object]) -> Iterator[str]:
    match node:
        case ast.Expr(value=value) | ast.Subscript(value=value):
            yield from _unknown(value, homes)
        case ast.Assign(targets=[target], value=value):
            yield from _unknown(target, homes)
            yield from _unknown(value, homes)
        case ast.Call(func=called, keywords=keywords):
            yield from _unknown(called, homes)
            known = parameters(find(called, homes))
            for keyword in keywords:
                if keyword.arg not in known:
                    yield f"{ast.unparse(called)}({keyword.arg}=)"
                yield from _unknown(keyword.value, homes)
        case ast.Name() | ast.Attribute():
            if find(node, homes) is None:
                yield ast.unparse(node)


def find(node: ast.AST, homes: Sequence[object]) -> object | None:
    """What a dotted name stands for; of a call, what is called."""
    match node:
        case ast.Call(func=called):
            return find(called, homes)
        case ast.Attribute(value=value, attr=name):
            return getattr(find(value, homes), name, None)
        case ast.Name(id=name):
            found = (getattr(home, name, parameters(home).get(name)) for home in homes)
            return next((each for each in found if each is not None), None)
    return None


def parameters(home: object) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(home).parameters) if callable(home) else {}


def homes_of_tables() -> dict[str, list[object]]:
    """By a table's head, where the names of its first column are."""
    import lightning as L
    from lightning.pytorch import callbacks
    from lightning.pytorch.tuner import Tuner

    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import numpy as np

    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(loss="mse")
    history = model.fit(np.zeros((1, 1)), np.zeros((1, 1)), verbose=0)  # some attributes are set by a fit
    instances = SimpleNamespace(model=model, history=history, keras=keras, layer=keras.layers.Layer)
    return {
        "LightningModule": [SimpleNamespace(self=L.LightningModule, trainer=L.Trainer), L.LightningModule, L],
        "Trainer(…)": [L.Trainer, SimpleNamespace(trainer=L.Trainer, L=L, Tuner=Tuner)],
        "Lightning": [callbacks],
        "hook": [L.Callback],
        "Keras": [model, instances, keras.optimizers.AdamW, keras.optimizers.schedules],
        "Keras callback": [keras.callbacks],
        "method": [SimpleNamespace(self=instances), keras.callbacks.Callback, keras.callbacks.Callback.on_epoch_end],
    }


if __name__ == "__main__":
    from minilearn.operators import ready_for_torchvision

    warnings_of_others_aside()
    ready_for_torchvision()
    homes = homes_of_tables()
    looked_at = list(left_columns(Path(sys.argv[1]).read_text()))
    assert {head for head, _ in looked_at} == set(homes)
    for head, code in looked_at:
        for name in unknown(code, homes[head]):
            print(f"{head}: {name}")

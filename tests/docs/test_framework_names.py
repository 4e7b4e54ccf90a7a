"""The names of Lightning and Keras on the page that compares are names that they have."""

import importlib.util
from pathlib import Path

import framework_names
import pytest
from doc_pages import ROOT, apart
from framework_names import left_columns, unknown


class Trainer:
    def __init__(self, max_epochs: int = 1, **others: int) -> None: ...

    def fit(self, model: object, ckpt_path: str = "") -> None: ...


def test_names_of_lightning_and_keras_are_theirs(tmp_path: Path) -> None:
    if missing := [name for name in ("lightning", "keras") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {' and '.join(missing)}: pip install -e '.[test]'")
    page = ROOT / "docs" / "from-lightning-and-keras.md"
    assert apart(tmp_path, framework_names.__file__, str(page)) == ""


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("max_epochs=3", []),
        ("max_epoch=3", ["max_epoch"]),
        ("fit(…, ckpt_path=…)", []),
        ("fit(anything, at_all)", []),
        ("fit(…, checkpoint=…)", ["fit(checkpoint=)"]),
        ("fits(model)", ["fits"]),
        ("Trainer(max_epochs=Trainer(epochs=1))", ["Trainer(epochs=)"]),
        ("Trainer(others=1)", []),
        ("Trainer(max_epochs=1).fit(model)", []),
        ("Trainer(max_epochs=1).train(model)", ["Trainer(max_epochs=1).train"]),
        ("Trainer.trains = False", ["Trainer.trains"]),
        ('fit["loss"]', []),
        ('loss["fit"]', ["loss"]),
        ('"16-mixed"', []),
    ],
)
def test_name_that_is_neither_attribute_nor_parameter_is_found(code: str, wrong: list[str]) -> None:
    class Module:
        pass

    Module.Trainer = Trainer  # type: ignore[attr-defined]
    assert unknown(code, [Trainer, Module]) == wrong


def test_code_is_read_from_first_cells_with_the_heads_of_their_tables() -> None:
    page = "| A | B |\n|---|---|\n| `a`, `b` of c | `d` |\n\ntext `e`\n\n| C | D |\n|---|---|\n| no code | `f` |\n| `g` | |\n"
    assert list(left_columns(page)) == [("A", "a"), ("A", "b"), ("C", "g")]

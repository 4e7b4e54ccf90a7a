"""docs/reliability.md: a run that is done returns at once when the same lines are carried out again."""

from pathlib import Path
from types import ModuleType

import pytest
from doc_pages import ROOT, carry_out, split

PAGE = ROOT / "docs" / "reliability.md"


def test_lines_carried_out_again_return_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit, fit_with_callback, *_ = [block for block in split(PAGE.read_text())[0] if block.language == "python"]
    program = ModuleType("page")
    carry_out(fit, PAGE, program)
    carry_out(fit_with_callback, PAGE, program)
    assert sorted(path.name for path in (tmp_path / "out" / "runs").iterdir()) == ["line", "often"]
    assert "this fit is done" in carry_out(fit, PAGE, ModuleType("page"))

"""docs/reliability.md: its code runs in its order, and again."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "reliability.md").read_text()


def test_code_of_the_page_runs_and_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("import torch\n", "import torch\ntorch.manual_seed(0)\n"), names)
    assert sorted(path.name for path in (tmp_path / "out" / "runs").iterdir()) == ["line", "often"]
    capsys.readouterr()
    again: dict[str, Any] = {}
    exec(blocks[0].replace("import torch\n", "import torch\ntorch.manual_seed(0)\n"), again)
    assert "this fit is done" in capsys.readouterr().out

"""Whatever a Learner is asked for in two processes comes to its end, and they agree."""

import json
from pathlib import Path

from processes import in_processes

METHODS = Path(__file__).parent / "every_method.py"


def test_all_methods_come_to_their_end_and_leave_the_processes_alike(tmp_path: Path) -> None:
    first, second = (json.loads(text) for text in in_processes(METHODS, 2, tmp_path, timeout_s=200))
    assert first == second
    assert sum(map(sum, first["matrix"])) == 64

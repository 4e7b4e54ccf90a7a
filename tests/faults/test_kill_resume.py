"""The long script in short: twenty kills."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="processes are forked")
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not() -> None:
    script = [sys.executable, str(HERE / "kill_resume.py"), "--kills", "20", "--seed", "1"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 kills" in done.stdout

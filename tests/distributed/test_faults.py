"""A process that fails, dies, hangs or goes its own way brings the job down, and it shows why."""

import subprocess
import time
from pathlib import Path

import pytest
from processes import at_length, torchrun

PARTING = Path(__file__).parent / "parting.py"
TABLE = "ChildFailedError"
"""Where torchrun's own summary begins."""


def run(case: str, folder: Path) -> tuple["subprocess.CompletedProcess[str]", float]:
    started = time.monotonic()
    done = torchrun(PARTING, 2, folder, case, timeout_s=200)
    assert done.returncode == 1
    assert "by itself" not in done.stdout
    return done, time.monotonic() - started


def test_an_error_in_one_process_is_told_with_its_rank_and_not_buried(tmp_path: Path) -> None:
    done, _ = run("error", tmp_path)
    own, _, summary = done.stderr.partition(TABLE)
    assert own.count("OSError: row 77 is not there") == 1
    assert "while fetching training batch 19 of 50" in own
    assert own.count("on rank 0 of 2") == 1
    assert own.count("rank 1 of 2: another process has ended") == 1
    assert "Connection closed" not in own
    assert "OSError: row 77 is not there" in summary  # from the error's file


def test_a_killed_process_ends_the_job(tmp_path: Path) -> None:
    done, _ = run("die", tmp_path)
    own, _, summary = done.stderr.partition(TABLE)
    assert own.count("rank 1 of 2: another process has ended") == 1
    assert "Connection closed" not in own
    assert "SIGKILL" in summary


def test_a_process_that_hangs_is_waited_for_so_long(tmp_path: Path) -> None:
    done, seconds = run("hang", tmp_path)
    assert "rank 1 of 2 has waited 5 s (timeout_s) for the other processes, for the sum of the gradients" in done.stderr
    assert seconds < 95  # the sleep takes 100


def test_a_callback_that_ends_the_fit_in_one_process_is_no_silent_hang(tmp_path: Path) -> None:
    done, _ = run("alone", tmp_path)
    assert "has waited 5 s (timeout_s) for the other processes" in done.stderr
    assert "as where a callback ends the fit in one process alone" in done.stderr


def test_an_error_of_all_is_told_by_rank_0_alone(tmp_path: Path) -> None:
    done, _ = run("nan", tmp_path)
    own, _, _ = done.stderr.partition(TABLE)
    assert own.count("DivergenceError: rank 1: the training loss is not a finite number") == 1
    assert "another process has ended" not in own


@pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=at_length)])
def test_a_killed_job_that_torchrun_starts_again_ends_as_an_undisturbed_one(nodes: int) -> None:
    import sys

    script = Path(__file__).parent / "kill_restart.py"
    command = [sys.executable, str(script), "--kills", "2" if nodes == 1 else "1", "--nodes", str(nodes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of them not as undisturbed" in done.stdout

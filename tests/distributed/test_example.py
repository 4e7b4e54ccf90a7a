"""An example, unchanged, in several processes: killed, and started again."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from processes import ROOT, launched, torchrun

EXAMPLE = ROOT / "examples" / "mnist_mlp.py"
DATA = os.environ.get("MINILEARN_DATA", "")

pytestmark = pytest.mark.skipif(
    not DATA or not Path(DATA, "MNIST", "raw").is_dir(), reason="MINILEARN_DATA names no folder that holds MNIST/raw"
)


def scores(printed: str) -> list[str]:
    """The share of images that the last network gets right, once for each process."""
    return re.findall(r"cross-entropy, one cycle: (\d\.\d{4}) of the 10,000 test images", printed)


@pytest.mark.parametrize("world", [2, 4])
def test_it_runs_in_several_processes(world: int, tmp_path: Path) -> None:
    done = torchrun(EXAMPLE, world, "--short", "--out", tmp_path, timeout_s=500, MPLBACKEND="agg")
    assert done.returncode == 0, done.stderr
    found = scores(done.stdout)
    assert len(found) == world
    assert len(set(found)) == 1
    assert float(found[0]) > 0.9
    assert done.stdout.count("train_loss") == 2  # a table a Learner
    assert [file.name for file in tmp_path.iterdir()] == ["mnist_mlp.png"]


def test_it_goes_on_when_a_process_was_killed(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    arguments = ("--short", "--out", tmp_path, "--checkpoint", runs)
    job = launched(EXAMPLE, 2, *arguments, options=("--max-restarts", 1), MPLBACKEND="agg")
    until = time.monotonic() + 300
    while not any((runs / "squared_error").glob("*.safetensors")) and time.monotonic() < until and job.poll() is None:
        time.sleep(0.05)
    told = subprocess.run(
        ["ps", "-ww", "-o", "pid=,command=", "--ppid", f"{job.pid}"], capture_output=True, text=True, check=False
    )
    workers = [int(line.split()[0]) for line in told.stdout.splitlines() if str(EXAMPLE) in line]
    assert len(workers) == 2, json.dumps(told.stdout)
    os.kill(workers[1], signal.SIGKILL)
    out, err = job.communicate(timeout=500)
    assert job.returncode == 0, err
    assert "this fit is done" in out or "going on from" in out
    assert len(set(scores(out))) == 1

"""Runs an example as a reader does: in a process of its own, in its short form unless MINILEARN_EXAMPLES is "full"."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SHORT = os.environ.get("MINILEARN_EXAMPLES") != "full"


def run_example(name: str, out: Path, *args: str, **env: str) -> str:
    """What an example printed; it must print nothing to stderr, warn of nothing, and end well."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), "--out", str(out), *["--short"] * SHORT, *args],
        env={**os.environ, "MPLBACKEND": "agg", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{done.stdout}\n{done.stderr}"
    return done.stdout


def figure(printed: str, name: str) -> float:
    """The number that a line ``name: number …`` tells; there must be just one such line."""
    (line,) = [line for line in printed.splitlines() if line.startswith(f"{name}: ")]
    return float(line.removeprefix(f"{name}: ").split()[0])


def refused_without_mnist(name: str, out: Path) -> str:
    """What an example says on stderr where MNIST is neither on the machine nor to be had; it must end, and not well."""
    # No server is asked: the proxy that is named here does not exist.
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--short", "--out", str(out)],
        env={**os.environ, "MINILEARN_DATA": "", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "MNIST is not on this machine" in done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr

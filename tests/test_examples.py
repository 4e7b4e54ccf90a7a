"""The examples run as their docstrings say, and reach what they promise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *args],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )


def accuracy(out: str) -> float:
    (line,) = [line for line in out.splitlines() if line.startswith("validation accuracy")]
    return float(line.split()[-1])


def test_mnist_sample_on_mnist(mnist_root: Path, tmp_path: Path) -> None:
    done = run("mnist_sample.py", "--out", str(tmp_path))
    assert done.stderr == ""
    assert "data: MNIST; 12,396 images to train on, 2,038 to validate on" in done.stdout
    assert accuracy(done.stdout) >= 0.98
    with Image.open(tmp_path / "mnist_sample.png") as picture:
        assert picture.size[0] > 1000


def test_mnist_sample_unshuffled_is_the_lessons_setting(mnist_root: Path, tmp_path: Path) -> None:
    assert accuracy(run("mnist_sample.py", "--no-shuffle", "--out", str(tmp_path)).stdout) >= 0.96


def test_mnist_sample_without_mnist_says_what_it_used_instead(tmp_path: Path) -> None:
    # No server is asked: the proxy that is named here does not exist.
    nowhere = {"MINILEARN_DATA": "", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    done = run("mnist_sample.py", "--out", str(tmp_path / "new" / "folder"), **nowhere)
    assert "MNIST is not on this machine and cannot be downloaded" in done.stdout
    assert "To use it, put its four files" in done.stdout
    assert "data: not MNIST but the digits that come with minilearn" in done.stdout
    assert accuracy(done.stdout) >= 0.95
    assert (tmp_path / "new" / "folder" / "mnist_sample.png").exists()


@pytest.mark.parametrize(
    "example",
    [path for path in sorted(EXAMPLES.glob("*.py")) if path.name != "command_line.py"],  # which is a part of the others
    ids=lambda path: path.name,
)
def test_example_is_short_documented_and_explains_itself(example: Path) -> None:
    text = example.read_text()
    assert len(text.splitlines()) <= 150
    assert f"python examples/{example.name}" in text.split('"""')[1]
    options = run(example.name, "--help").stdout
    assert "--out" in options
    assert "--seed" in options or "set_seed" not in text  # an example without random numbers has nothing to seed


def test_mnist_optimizers_prints_what_is_promised_and_what_was_reached(mnist_root: Path, tmp_path: Path) -> None:
    done = run("mnist_optimizers.py", "--only", "Adam", "--seed", "3", "--runs", "2", "--out", str(tmp_path))
    assert done.stderr == ""
    name, _, promised, median, lowest = done.stdout.splitlines()[1].split()
    assert name == "Adam"
    assert float(promised) <= float(lowest) <= float(median)
    with Image.open(tmp_path / "mnist_optimizers.png") as picture:
        assert picture.size[0] > 800

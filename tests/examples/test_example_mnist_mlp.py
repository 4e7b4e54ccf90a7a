"""The network of three layers on MNIST: the same by hand as with a Learner, and much better with one cycle."""

import subprocess
import sys
from pathlib import Path

from example_runs import EXAMPLES, SHORT, figure, run_example
from PIL import Image


def test_mnist_mlp_reaches_its_numbers_both_ways(mnist_root: Path, tmp_path: Path) -> None:
    printed = run_example("mnist_mlp.py", tmp_path)
    by_hand, learner = figure(printed, "by hand"), figure(printed, "Learner")
    low, high = (0.75, 0.84) if SHORT else (0.88, 0.89)
    assert low <= by_hand <= high
    assert abs(by_hand - learner) <= 0.001
    assert figure(printed, "largest difference of a weight") <= 1e-3
    assert figure(printed, "cross-entropy, one cycle") >= (0.95 if SHORT else 0.975)
    assert f"picture: {tmp_path / 'mnist_mlp.png'}" in printed
    with Image.open(tmp_path / "mnist_mlp.png") as picture:
        assert picture.size[0] > 1000


def test_mnist_mlp_says_where_mnist_is_missing_and_ends_with_an_error(tmp_path: Path) -> None:
    # No server is asked: the proxy that is named here does not exist.
    nowhere = {"MINILEARN_DATA": "", "XDG_DATA_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-W", "error", str(EXAMPLES / "mnist_mlp.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, env=nowhere, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MNIST is not on this machine and cannot be downloaded" in done.stderr
    assert "Traceback" not in done.stderr

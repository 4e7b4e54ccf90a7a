"""LeNet-5 on MNIST: a convolution and penalties by hand, a good score, and weights that a penalty brings near zero."""

from pathlib import Path

from example_runs import SHORT, figure, run_example
from PIL import Image


def test_lenet_reaches_its_number_and_penalties_bring_weights_near_zero(mnist_root: Path, tmp_path: Path) -> None:
    printed = run_example("lenet.py", tmp_path)
    assert figure(printed, "convolution by hand, furthest from torch's") <= 1e-5
    assert figure(printed, "penalties by hand, weights furthest from those with l1 and wd") <= 1e-5
    assert figure(printed, "LeNet-5") >= (0.90 if SHORT else 0.989)

    none, l1, l2 = (figure(printed, f"{name}, weights within 0.01 of zero") for name in ("none", "L1", "L2"))
    if SHORT:  # thirty-two steps: the penalties have just begun
        assert l1 > none + 0.005
    else:
        assert l1 >= 1 / 3
        assert l1 > l2 > none + 0.02
        for name in ("none", "L1", "L2"):
            assert figure(printed, f"{name} on 10,000 images") >= 0.965
    assert f"picture: {tmp_path / 'lenet.png'}" in printed
    with Image.open(tmp_path / "lenet.png") as picture:
        assert picture.size[0] > 1000

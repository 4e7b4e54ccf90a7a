"""The lesson on 3s and 7s: its three stages do the same sums, and a second layer gets further."""

from pathlib import Path

import pytest
from example_runs import SHORT, figure, refused_without_mnist, run_example
from PIL import Image

STAGES = ("by hand", "optimizer", "Learner")


@pytest.fixture(scope="module")
def run(mnist_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("sgd") / "new" / "folder"
    return run_example("sgd_from_scratch.py", out), out


def test_the_three_stages_agree_after_every_epoch(run: tuple[str, Path]) -> None:
    printed, _ = run
    lines = printed.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("epoch") and "by hand" in line)
    n_epoch = 5 if SHORT else 10
    rows = [line.split() for line in lines[head + 1 : head + 1 + n_epoch]]
    assert [row[0] for row in rows] == [str(epoch) for epoch in range(n_epoch)]
    assert all(row[1] == row[2] == row[3] for row in rows)
    assert float(rows[0][1]) < float(rows[-1][1])
    assert figure(printed, "accuracies apart") <= 1e-6
    assert figure(printed, "weights apart") <= 1e-5


def test_what_the_learners_own_table_says_is_what_is_compared(run: tuple[str, Path]) -> None:
    printed, _ = run
    tables = [line.split() for line in printed.splitlines() if line.split()[-1:] and ":" in line.split()[-1]]
    last = [row for row in tables if row[0] == ("4" if SHORT else "9")]
    reached = [round(float(row[3]), 4) for row in last]
    assert reached == [figure(printed, "Learner"), figure(printed, "two layers")]


def test_one_layer_and_two_reach_what_is_promised(run: tuple[str, Path]) -> None:
    # Over seeds 0 to 4 one layer reached 0.9769 to 0.9804 in the short form, 0.9794 to 0.9799 in full; two layers
    # 0.9818 to 0.9838, and 0.9823 to 0.9858.
    printed, _ = run
    assert {figure(printed, stage) for stage in STAGES} == {figure(printed, "by hand")}
    assert figure(printed, "by hand") >= (0.975 if SHORT else 0.979)
    assert figure(printed, "two layers") >= (0.98 if SHORT else 0.982)


def test_the_picture_is_where_it_says(run: tuple[str, Path]) -> None:
    printed, out = run
    assert f"picture: {out / 'sgd_from_scratch.png'}" in printed
    with Image.open(out / "sgd_from_scratch.png") as picture:
        assert picture.size[0] > 1000


def test_without_mnist_it_says_so_and_what_goes_without(tmp_path: Path) -> None:
    assert "mnist_sample.py goes without it" in refused_without_mnist("sgd_from_scratch.py", tmp_path)

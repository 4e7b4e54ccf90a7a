"""Pictures: what is drawn, and that it fits."""

import itertools
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from minilearn.optim import SGD
from minilearn.plots import (
    plot_images,
    plot_loss,
    plot_lr_find,
    plot_metrics,
    plot_optimizers,
    plot_sched,
    save_picture,
    show_image,
)

pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def close_figures() -> object:
    """Every test leaves no figure open."""
    yield
    pyplot.close("all")


def test_loss_is_drawn_against_the_batch() -> None:
    ax = plot_loss([3.0, 2.0, 1.0], stride=4, skip_start=1)
    (line,) = ax.lines
    assert list(line.get_xdata()) == [4, 8]
    assert list(line.get_ydata()) == [2.0, 1.0]
    assert ax.get_xlabel() == "batch"


def test_metrics_have_a_curve_each_with_its_last_value() -> None:
    ax = plot_metrics([0, 1], {"accuracy": [0.5, 0.75], "other": [None, 1.0]}, ylabel="share")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "accuracy: 0.7500 at the end",
        "other: 1.0000 at the end",
    ]
    assert ax.get_ylabel() == "share"


def test_schedule_has_a_panel_for_each_hyperparameter() -> None:
    ax = plot_sched({"lr": [0.1, 0.2, 0.3], "mom": [0.9, 0.8, 0.9]}, stride=4)
    lr, mom = ax.child_axes
    assert [panel.get_ylabel() for panel in (lr, mom)] == ["lr", "mom"]
    assert list(lr.lines[0].get_xdata()) == [0, 4, 8]
    assert list(mom.lines[0].get_ydata()) == [0.9, 0.8, 0.9]
    assert mom.get_xlabel() == "batch"


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_panels_of_a_schedule_lie_apart_within_the_axes(n: int) -> None:
    ax = plot_sched({f"hyper {i}": [0.0, 1e-5] for i in range(n)})
    ax.figure.draw_without_rendering()
    boxes = [panel.get_position() for panel in ax.child_axes]
    assert all(above.y0 > below.y1 for above, below in itertools.pairwise(boxes))
    whole = ax.get_position()
    assert boxes[0].y1 == pytest.approx(whole.y1)
    assert boxes[-1].y0 == pytest.approx(whole.y0)


def test_schedule_is_drawn_where_it_is_told() -> None:
    ax = pyplot.figure().add_subplot()
    assert plot_sched({"lr": [0.1]}, ax=ax) is ax


@pytest.mark.parametrize("shape", [(5, 784), (5, 28, 28)])
def test_images_stand_in_a_grid_with_the_wrong_ones_marked(shape: tuple[int, ...]) -> None:
    ax = plot_images(torch.rand(shape), ["a", "b", "c", "d", "e"], wrong=[True] + [False] * 4, columns=3)
    cells = ax.child_axes
    assert [cell.get_title() for cell in cells] == ["a", "b", "c", "d", "e"]
    assert all(cell.images[0].get_array().shape == (28, 28) for cell in cells)
    assert [cell.spines["left"].get_linewidth() > 1 for cell in cells] == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("shape", "drawn"), [((4, 5), (4, 5)), ((1, 4, 5), (4, 5)), ((3, 4, 5), (4, 5, 3)), ((6, 5, 3), (6, 5, 3))]
)
def test_show_image_takes_channels_first_or_last(shape: tuple[int, ...], drawn: tuple[int, ...]) -> None:
    assert show_image(torch.rand(shape), title="t").images[0].get_array().shape == drawn


def test_pictures_are_drawn_where_they_are_asked_to() -> None:
    _, ax = pyplot.subplots()
    assert plot_loss([1.0], ax=ax) is ax
    assert show_image(torch.rand(2, 2), ax=ax) is ax


def test_search_is_drawn_over_a_logarithmic_axis_with_what_it_suggests() -> None:
    lrs, losses = [10.0**i for i in range(-9, 3)], [12.0 - i for i in range(12)]
    ax = plot_lr_find(lrs, losses, {"valley": 1e-5, "none": math.nan, "between": 10**-4.5})
    curve, valley, between = ax.lines
    assert ax.get_xscale() == "log"
    assert list(curve.get_xdata()) == lrs[:-5]
    assert (valley.get_xdata()[0], valley.get_ydata()[0]) == (1e-5, pytest.approx(8.0))
    assert between.get_ydata()[0] == pytest.approx(7.5)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["valley: 1.00e-05", "between: 3.16e-05"]


def test_short_search_is_drawn_whole() -> None:
    ax = plot_lr_find([0.1, 1.0, 10.0], [3.0, 2.0, 4.0])
    assert len(ax.lines[0].get_xdata()) == 3
    assert ax.get_legend() is None


def test_paths_of_optimizers_differ_in_colour_and_marker_and_say_how_low_they_came() -> None:
    several = {f"rate {i}": partial(SGD, lr=0.01 * (i + 1)) for i in range(8)}
    ax = plot_optimizers(several, "valley", steps=10)
    paths = ax.lines[:8]
    assert len({line.get_color() for line in paths}) == len({line.get_marker() for line in paths}) == 8
    assert all(len(line.get_xdata()) == 11 for line in paths)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    # rate 0: x is 0.99 and y 0.75 of what it was, each step; (x² + 25·y²) / 2 from (-5, 1.2).
    assert labels[0] == f"rate 0: {(25 * 0.99**20 + 36 * 0.75**20) / 2:.3g}"
    assert labels[-3:] == [f"rate 7: {(25 * 0.92**20 + 36) / 2:.3g}", "start", "minimum"]
    assert [list(line.get_xdata()) for line in ax.lines[8:]] == [[-5.0], [0.0]]


def test_path_that_leaves_the_picture_does_not_widen_it_and_says_so() -> None:
    ax = plot_optimizers({"wild": partial(SGD, lr=1.0)}, "rosenbrock", steps=50)
    assert ax.get_xlim() == (-1.7, 1.5)
    assert ax.get_legend().get_texts()[0].get_text() == "wild: left the picture"


def test_path_that_leaves_the_picture_ends_there() -> None:
    # y is -1.25 times what it was, each step: 1.2, -1.5, 1.875, and then ever further out, while x stays in the window.
    ax = plot_optimizers({"swings": partial(SGD, lr=0.09)}, "valley", steps=50)
    assert ax.lines[0].get_ydata() == pytest.approx([1.2, -1.5, 1.875])
    assert ax.get_legend().get_texts()[0].get_text() == "swings: left the picture"


def test_paths_on_a_curve_have_a_height_each() -> None:
    same = partial(SGD, lr=0.01)
    ax = plot_optimizers({"a": same, "b": same}, "x2_sin_x", 2.5, steps=20)
    _, a, b, _, minima = ax.lines
    assert list(a.get_xdata()) == list(b.get_xdata())
    assert all(high > low for low, high in zip(a.get_ydata(), b.get_ydata(), strict=True))
    assert len(minima.get_xdata()) == 2


@pytest.mark.parametrize(
    ("several", "error", "message"),
    [
        ([SGD], TypeError, "opt_funcs must be optimizers by name"),
        ({str(i): SGD for i in range(9)}, ValueError, "opt_funcs must be at most 8, .* got 9"),
    ],
)
def test_optimizers_that_cannot_be_told_apart_are_refused(
    several: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plot_optimizers(several)  # type: ignore[arg-type]


def test_picture_is_saved_in_a_folder_that_is_made(tmp_path: Path) -> None:
    from PIL import Image

    figure, _ = pyplot.subplots(figsize=(4, 3))
    path = save_picture(figure, tmp_path / "new" / "picture.png")
    with Image.open(path) as picture:
        assert picture.size == (440, 330)
    pyplot.close(figure)

"""Pictures: what is drawn, and that it fits."""

import itertools

import pytest
import torch

from minilearn.plots import plot_images, plot_loss, plot_metrics, plot_sched, show_image

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

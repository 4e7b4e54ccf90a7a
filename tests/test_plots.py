"""Pictures: what is drawn, and that it fits."""

import itertools
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from minilearn.optim import SGD
from minilearn.plots import (
    PALETTE,
    plot_descent,
    plot_histogram,
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


def test_raw_losses_are_drawn_below_their_corrected_moving_average() -> None:
    raw, averages = plot_loss([4.0, 2.0, 1.0], smooth=0.5).lines
    assert list(raw.get_ydata()) == [4.0, 2.0, 1.0]
    # Halves of what is there and what comes, over the share that has come in: 2/.5, (1+1)/.75, (1+.5)/.875.
    assert averages.get_ydata() == pytest.approx([4.0, 2 / 0.75, 1.5 / 0.875])


def test_losses_left_out_at_the_start_count_in_the_moving_average() -> None:
    ax = plot_loss([4.0, 2.0, 1.0], smooth=0.5, skip_start=2, stride=10, valid=[(15, 3.0), (30, None)])
    raw, average, valid = ax.lines
    assert (list(raw.get_xdata()), list(average.get_xdata()), list(valid.get_xdata())) == ([20], [20], [14])
    assert average.get_ydata() == pytest.approx([1.5 / 0.875])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "training, each batch",
        "training, moving average (0.5)",
        "validation",
    ]


@pytest.mark.parametrize("smooth", [0, 1, 1.5])
def test_moving_average_that_would_not_move_is_refused(smooth: float) -> None:
    with pytest.raises(ValueError, match=r"smooth must be in \(0, 1\), got"):
        plot_loss([1.0], smooth=smooth)


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


def square(points: torch.Tensor) -> torch.Tensor:
    return (points**2).sum(dim=-1)


def path_of(ax: object, name: str) -> list[list[float]]:
    (line,) = [line for line in ax.lines if line.get_label() == name]  # type: ignore[attr-defined]
    return [list(line.get_xdata()), list(line.get_ydata())]


def mark_of(ax: object, name: str) -> tuple[float, float]:
    ((x,), (y,)) = path_of(ax, f"_{name}")
    return x, y


@pytest.mark.parametrize(
    "path", [[4.0, 2.0, -1.0], torch.tensor([[4.0], [2.0], [-1.0]]), torch.tensor([4, 2, -1]).numpy()]
)
def test_path_of_one_variable_lies_on_its_curve(path: object) -> None:
    ax = plot_descent(path, square)
    curve = ax.lines[0]
    assert curve.get_ydata() == pytest.approx(curve.get_xdata() ** 2)
    assert path_of(ax, "descent") == [[4.0, 2.0, -1.0], [16.0, 4.0, 1.0]]
    assert (mark_of(ax, "start"), mark_of(ax, "end")) == ((4.0, 16.0), (-1.0, 1.0))
    assert ax.get_xlim() == (-2.25, 5.25)  # a quarter of the way from -1 to 4 to each side


def test_path_of_two_variables_lies_over_contours() -> None:
    ax = plot_descent([[2.0, 1.0], [1.0, 1.0], [0.0, 0.0]], square, window=((-3, 3), (-2, 2)))
    assert path_of(ax, "descent") == [[2.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
    assert (mark_of(ax, "start"), mark_of(ax, "end")) == ((2.0, 1.0), (0.0, 0.0))
    assert (ax.get_xlim(), ax.get_ylim()) == ((-3, 3), (-2, 2))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["descent", "start", "end"]


def test_second_path_comes_into_the_picture_in_another_colour_and_changes_nothing_else() -> None:
    ax = plot_descent([2.0, 1.0], square, name="slow")
    ax.set(xlabel="w", ylabel="cost")
    limits, drawn = ax.get_xlim(), len(ax.lines)
    assert plot_descent([2.0, 2.4], square, name="wrong way", ax=ax) is ax
    assert len(ax.lines) == drawn + 2  # a path and the mark of its start, no curve
    assert (ax.get_xlim(), ax.get_xlabel(), ax.get_ylabel()) == (limits, "w", "cost")
    assert [text.get_text() for text in ax.get_legend().get_texts()][:2] == ["slow", "wrong way, leaves the picture"]
    colours = [line.get_color() for line in ax.lines if line.get_label() in ("slow", "wrong way, leaves the picture")]
    assert colours == list(PALETTE[:2])


def test_path_that_diverges_ends_where_it_leaves_and_has_no_end_mark() -> None:
    ax = plot_descent([1.0, -2.0, 4.0, -8.0, 16.0, math.inf, math.nan], square, window=(-3, 3), name="wild")
    assert path_of(ax, "wild, leaves the picture") == [[1.0, -2.0, 4.0], [1.0, 4.0, 16.0]]
    assert "_end" not in [line.get_label() for line in ax.lines]


def test_long_path_is_drawn_whole_with_some_of_its_steps_marked() -> None:
    ax = plot_descent([2.0 * 0.99**i for i in range(1000)], square)
    (line,) = [line for line in ax.lines if line.get_label() == "descent"]
    assert len(line.get_xdata()) == 1000
    assert 20 <= len(line.get_markevery()) <= 40


def test_path_that_stands_still_has_a_window() -> None:
    ax = plot_descent([[1.0, 1.0]], square)
    assert (ax.get_xlim(), ax.get_ylim()) == ((0.5, 1.5), (0.5, 1.5))


def test_surface_may_be_named() -> None:
    assert plot_descent([2.5, 5.0], "x2_sin_x").get_title() == "x²·sin(x)"


@pytest.mark.parametrize(
    ("path", "surface", "window", "message"),
    [
        ([[1.0, 2.0, 3.0]], square, None, r"path must be \(points,\), .* got \(1, 3\)"),
        ([math.nan], square, None, "path has no finite point"),
        ([1.0], "valley", None, "path must have 2 numbers a point for narrow valley"),
        ([1.0], "vally", None, "no surface 'vally'; did you mean 'valley'"),
        ([1.0], lambda x: x**2, None, r"a height for each point: \(400,\) for points \(400, 1\), got \(400, 1\)"),
        ([1.0], square, (3, 1), r"window must be \(low, high\) for each of 1 variables, got \(3, 1\)"),
        ([[1.0, 1.0]], square, (0, 1), r"window must be \(low, high\) for each of 2 variables"),
    ],
)
def test_descent_that_cannot_be_drawn_is_refused(path: object, surface: object, window: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_descent(path, surface, window=window)  # type: ignore[arg-type]


def test_ninth_path_is_refused() -> None:
    ax = None
    for _ in range(8):
        ax = plot_descent([1.0, 0.5], square, ax=ax)
    with pytest.raises(ValueError, match="at most 8 paths"):
        plot_descent([1.0, 0.5], square, ax=ax)


def test_histograms_have_the_same_bins_and_count_every_finite_value() -> None:
    ax = plot_histogram({"a": torch.tensor([[0.0, 1.0], [1.0, math.nan]]), "b": torch.tensor([4])}, bins=4)
    a, b = (patch.get_data() for patch in ax.patches)
    assert list(a.edges) == list(b.edges) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert list(a.values) == [1, 2, 0, 0]
    assert list(b.values) == [0, 0, 0, 1]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_histogram_of_one_tensor_needs_no_legend() -> None:
    ax = plot_histogram(torch.full((3,), 2.0, requires_grad=True), log=True)
    assert ax.get_legend() is None
    assert (ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "value", "count")


@pytest.mark.parametrize(
    ("values", "bins", "message"),
    [
        (torch.empty(0), 5, "values has no finite number"),
        ({"a": torch.ones(1), "b": torch.tensor([math.nan])}, 5, r"values\['b'\] has no finite number"),
        ({str(i): torch.ones(1) for i in range(9)}, 5, "values must be at most 8, .* got 9"),
        (torch.ones(1), 0, "bins must be a whole number of at least 1, got 0"),
    ],
)
def test_histogram_of_nothing_is_refused(values: object, bins: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_histogram(values, bins=bins)  # type: ignore[arg-type]


def test_picture_is_saved_in_a_folder_that_is_made(tmp_path: Path) -> None:
    from PIL import Image

    figure, _ = pyplot.subplots(figsize=(4, 3))
    path = save_picture(figure, tmp_path / "new" / "picture.png")
    with Image.open(path) as picture:
        assert picture.size == (440, 330)
    pyplot.close(figure)

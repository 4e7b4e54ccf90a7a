"""Paths on curves and over contours."""

import math
from functools import partial

import pytest
import torch

from minilearn.optim import SGD
from minilearn.plots import PALETTE, plot_descent, plot_optimizers


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

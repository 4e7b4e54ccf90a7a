"""The picture of a confusion matrix."""

import matplotlib.colors
import pytest
import torch

from minilearn.plots import plot_confusion

COUNTS = [[8, 2, 0], [0, 1, 0], [0, 4, 6]]


def texts_of(ax: object) -> dict[tuple[float, float], str]:
    """The cells' texts by row and column."""
    return {text.get_position()[::-1]: text.get_text() for text in ax.texts}  # type: ignore[attr-defined]


def test_each_cell_with_rows_has_its_count_at_actual_and_predicted_class() -> None:
    ax = plot_confusion(COUNTS, ["a", "b", "c"])
    assert texts_of(ax) == {(0, 0): "8", (0, 1): "2", (1, 1): "1", (2, 1): "4", (2, 2): "6"}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "actual")


def test_normalized_cells_are_percentages_of_the_actual_class() -> None:
    ax = plot_confusion(torch.tensor(COUNTS), normalize=True)
    assert texts_of(ax) == {(0, 0): "80.0", (0, 1): "20.0", (1, 1): "100.0", (2, 1): "40.0", (2, 2): "60.0"}
    assert "%" in ax.get_title()


def test_class_without_rows_is_an_empty_line() -> None:
    assert texts_of(plot_confusion([[3, 0], [0, 0]], normalize=True)) == {(0, 0): "100.0"}


@pytest.mark.parametrize("classes", [2, 10, 37])
def test_counts_fit_their_cells_and_names_the_figure(classes: int) -> None:
    ax = plot_confusion(torch.full((classes, classes), 100), [f"a long name {i}" for i in range(classes)])
    ax.figure.draw_without_rendering()
    cell = ax.get_window_extent().width / classes
    widths = [text.get_window_extent().width for text in ax.texts]
    assert max(widths) < cell
    assert min(text.get_fontsize() for text in ax.texts) >= 7.5  # at half size more than 5 pixels high
    edges = ax.get_tightbbox()
    assert edges.x0 >= 0
    assert edges.y0 >= 0


def test_text_stands_out_from_its_cell() -> None:
    ax = plot_confusion([[9, 1], [5, 5]])
    shades = ax.images[0].cmap(ax.images[0].norm(ax.images[0].get_array()))
    for text in ax.texts:
        column, row = text.get_position()
        on, of = (sum(matplotlib.colors.to_rgb(colour)) / 3 for colour in (shades[row, column], text.get_color()))
        assert abs(on - of) > 0.4, (row, column)


@pytest.mark.parametrize(
    ("matrix", "vocab", "message"),
    [
        ([[1, 2, 3]], None, r"matrix must be \(classes, classes\), got \(1, 3\)"),
        ([[1, 2], [3, 4]], ["a"], "vocab must have a name for each of 2 classes, got 1"),
    ],
)
def test_matrix_that_is_none_is_refused(matrix: object, vocab: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_confusion(matrix, vocab)  # type: ignore[arg-type]

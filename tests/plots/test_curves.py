"""Figures against batch, epoch and rate, and histograms: what is drawn, and that it fits."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch

from minilearn.plots import plot_histogram, plot_loss, plot_lr_find, plot_metrics, plot_sched

pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
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
        "accuracy: 0.75 at the end",
        "other: 1 at the end",
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


def test_a_single_epoch_has_no_fractions_on_its_axis() -> None:
    ax = plot_metrics([0], {"accuracy": [0.5]})
    left, right = ax.get_xlim()
    assert [tick for tick in ax.get_xticks() if left <= tick <= right] == [0]

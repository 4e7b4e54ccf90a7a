"""Pictures of how activations are spread. Each function draws into `ax`, or into a new figure, and returns the axes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from minilearn.plots.ground import BLUE, GREEN, ORANGE, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_layer_stats(
    batches: Sequence[int],
    means: Sequence[float],
    stds: Sequence[float],
    shares: Sequence[float],
    *,
    title: str = "",
    ax: "Axes | None" = None,
) -> "Axes":
    """A layer's mean, standard deviation and share near zero against the batch, side by side.

    Args:
        batches: the batches' numbers.
        means: a figure a batch, as are `stds` and `shares`; nan where there is none.
        stds: standard deviations.
        shares: shares near zero, in [0, 1].
        title: a text above.
        ax: where to draw; it is divided up.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

    ax = new_axes(ax, (12, 3))
    ax.set_axis_off()
    ax.set_title(title, pad=22)
    panels = (("mean", means, BLUE), ("standard deviation", stds, ORANGE), ("near zero", shares, GREEN))
    for i, (name, figures, colour) in enumerate(panels):
        panel = ax.inset_axes((0.03 + i * 0.35, 0, 0.27, 1))
        panel.plot(list(batches), list(figures), color=colour, linewidth=1.4)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("batch")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        if figures is shares:
            panel.set_ylim(0, 1)
            panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        tidy(panel)
    return ax


def draw_histograms(
    logs: Tensor,
    span: tuple[float, float],
    batches: Sequence[int],
    *,
    title: str = "",
    inches: tuple[float, float] = (10, 5),
    ax: "Axes | None" = None,
) -> "Axes":
    """Histograms side by side, a column a batch, bright where many values are: fastai's "colorful dimension".

    Args:
        logs: logarithms of the counts, (bins, batches).
        span: the smallest and the largest value in a histogram.
        batches: the batches' numbers.
        title: a text above.
        inches: width and height of a new figure.
        ax: where to draw.
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    ax = new_axes(ax, inches)
    step = (batches[-1] - batches[0]) / max(len(batches) - 1, 1) or 1.0
    edges = (batches[0] - step / 2, batches[-1] + step / 2, *span)
    picture = ax.imshow(logs.numpy(), origin="lower", aspect="auto", extent=edges, cmap="viridis", interpolation="none")
    ax.set(xlabel="batch", ylabel="activation", title=title)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    bar = ax.figure.colorbar(picture, ax=ax, pad=0.02)
    bar.set_label("log(1 + count)")
    return ax


def draw_histogram(
    counts: Sequence[float], span: tuple[float, float], *, title: str = "", ax: "Axes | None" = None
) -> "Axes":
    """One histogram.

    Args:
        counts: how many values are in each bin.
        span: the smallest and the largest value in it.
        title: a text above.
        ax: where to draw.
    """
    ax = new_axes(ax)
    width = (span[1] - span[0]) / len(counts)
    ax.bar([span[0] + i * width for i in range(len(counts))], list(counts), width, align="edge", color=BLUE)
    ax.set(xlabel="activation", ylabel="count", title=title, xlim=span)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    tidy(ax)
    return ax

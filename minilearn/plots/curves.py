"""Figures against the batch, the epoch or the learning rate; how often which values are in a tensor."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from minilearn.errors import in_range, whole
from minilearn.plots.ground import BLUE, COLOURS, DASHES, MARKERS, ORANGE, PALE_BLUE, PALETTE, new_axes, tidy
from minilearn.tensors import tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_loss(
    losses: Sequence[float],
    *,
    stride: int = 1,
    skip_start: int = 0,
    smooth: float | None = None,
    valid: Sequence[tuple[int, float | None]] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """The training loss against the batch.

    Args:
        losses: a figure a batch, such as ``learn.recorder.losses``, which are a moving average already; with `smooth`
            the batches' own.
        stride: how many batches lie between two figures, such as ``learn.recorder.stride``.
        skip_start: how many figures at the start to leave out, where they would squeeze the rest.
        smooth: how much of the moving average stays from batch to batch, in (0, 1), such as 0.9; the losses are drawn
            pale, and over them their exponential moving average, corrected for its start at zero. None draws them as
            they are. The figures that are left out at the start count in it.
        valid: the validation loss at the end of each epoch, with the number of batches that were done by then; one that
            is None is left out.
        ax: where to draw.
    """
    ax = new_axes(ax)
    batches = [i * stride for i in range(skip_start, len(losses))]
    if smooth is None:
        ax.plot(batches, losses[skip_start:], color=BLUE, linewidth=1.8, label="training, moving average")
        ax.set(xlabel="batch", ylabel="loss (moving average)", title="training loss")
    else:
        average = _moving_average(losses, in_range("smooth", smooth, 0, 1, open_low=True))
        ax.plot(batches, losses[skip_start:], color=PALE_BLUE, linewidth=1.0, label="training, each batch")
        ax.plot(
            batches, average[skip_start:], color=BLUE, linewidth=1.8, label=f"training, moving average ({smooth:g})"
        )
        ax.set(xlabel="batch", ylabel="loss", title="training loss")
    if valid:
        marks = [(batch - 1, loss) for batch, loss in valid if loss is not None]
        ax.plot(*zip(*marks, strict=True), color=ORANGE, marker="o", markersize=4, linewidth=1.4, label="validation")
        ax.set(ylabel="loss", title="loss")
    if valid or smooth is not None:
        ax.legend(frameon=False)
    tidy(ax)
    return ax


def _moving_average(figures: Sequence[float], beta: float) -> list[float]:
    """The exponential moving average after each figure, divided by the share that has come into it by then."""
    averages, total = [], 0.0
    for i, figure in enumerate(figures):
        total = beta * total + (1 - beta) * float(figure)
        averages.append(total / (1 - beta ** (i + 1)))
    return averages


def plot_lr_find(
    lrs: Sequence[float],
    losses: Sequence[float],
    suggestions: Mapping[str, float] | None = None,
    *,
    skip_end: int = 5,
    ax: "Axes | None" = None,
) -> "Axes":
    """The loss against the learning rate, with each suggested rate marked and named.

    Args:
        lrs: the rates, rising; the axis is logarithmic.
        losses: the loss at each, such as ``learn.lr_search.losses``.
        suggestions: rates by name; one that is nan is left out.
        skip_end: how many points at the end to leave out, where the loss has blown up; none of fewer than 10 points.
        ax: where to draw.
    """
    import numpy as np

    ax = new_axes(ax)
    n = len(lrs) - skip_end if len(lrs) >= 10 else len(lrs)
    shown, heights = list(lrs[:n]), list(losses[:n])
    ax.plot(shown, heights, color=BLUE, linewidth=1.8)
    known = {name: lr for name, lr in (suggestions or {}).items() if math.isfinite(lr)}
    for (name, lr), colour, marker in zip(known.items(), PALETTE[1:] * len(known), MARKERS * len(known), strict=False):
        height = float(np.interp(math.log(lr), np.log(shown), heights))
        ax.plot([lr], [height], marker, color=colour, markersize=9, markeredgecolor="white", label=f"{name}: {lr:.2e}")
    ax.set(xscale="log", xlabel="learning rate", ylabel="loss (moving average)", title="learning-rate search")
    tidy(ax)
    if known:
        ax.legend(frameon=False)
    return ax


def plot_metrics(
    epochs: Sequence[int], curves: Mapping[str, Sequence[float | None]], *, ylabel: str = "", ax: "Axes | None" = None
) -> "Axes":
    """Figures against the epoch, a curve each, with their last value beside their name.

    Args:
        epochs: the epochs' numbers.
        curves: for each name a figure an epoch; None where there is none.
        ylabel: what the figures are, with their unit.
        ax: where to draw.
    """
    from matplotlib.ticker import MaxNLocator

    ax = new_axes(ax)
    for (name, figures), colour in zip(curves.items(), COLOURS * len(curves), strict=False):
        known = [math.nan if figure is None else figure for figure in figures]
        label = f"{name}: {known[-1]:.4g} at the end" if known else name
        ax.plot(list(epochs), known, marker="o", markersize=5, color=colour, linewidth=1.8, label=label)
    ax.set(xlabel="epoch", ylabel=ylabel, title="after each epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # one epoch alone: no fractions of it
    ax.legend(frameon=False)
    tidy(ax)
    return ax


def plot_sched(hypers: Mapping[str, Sequence[float]], *, stride: int = 1, ax: "Axes | None" = None) -> "Axes":
    """Hyperparameters against the batch, one below the other, as their scales have nothing in common.

    Args:
        hypers: for each name a figure a batch, such as ``learn.recorder.hps``.
        stride: how many batches lie between two figures, such as ``learn.recorder.stride``.
        ax: where to draw; it is divided up.
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    ax = new_axes(ax, (6, max(4.0, 1.9 * len(hypers))))
    ax.set_axis_off()
    ax.set_title("schedule")
    gap = 0.25 / max(len(hypers), 1)
    high = (1 + gap) / max(len(hypers), 1) - gap
    for i, ((name, figures), colour) in enumerate(zip(hypers.items(), COLOURS * len(hypers), strict=False)):
        panel = ax.inset_axes((0, 1 - high - i * (high + gap), 1, high))
        panel.plot([batch * stride for batch in range(len(figures))], list(figures), color=colour, linewidth=1.8)
        panel.set_ylabel(name)
        panel.yaxis.set_label_coords(-0.12, 0.5)
        panel.ticklabel_format(axis="y", scilimits=(-3, 5))
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        if i + 1 == len(hypers):
            panel.set_xlabel("batch")
        else:
            panel.tick_params(labelbottom=False)
        tidy(panel)
    return ax


def plot_histogram(
    values: Tensor | Mapping[str, Tensor], *, bins: int = 50, log: bool = False, ax: "Axes | None" = None
) -> "Axes":
    """How often which values are in tensors, such as a model's weights: an outline each, over the same bins.

    Args:
        values: a tensor of any shape, or tensors by name, at most eight; what is nan or infinite is left out.
        bins: how many bins there are between the least and the greatest of all values.
        log: whether the axis of the counts is logarithmic, where a few bins hold almost everything.
        ax: where to draw.
    Raises:
        ValueError: there are more than eight tensors, or no number in one of them.
    """
    import numpy as np

    several = values if isinstance(values, Mapping) else {"": values}
    if len(several) > len(PALETTE):
        raise ValueError(f"values must be at most {len(PALETTE)}, to be told apart in one picture, got {len(several)}")
    flat = {name: tensor(part).detach().cpu().double().flatten() for name, part in several.items()}
    known = {name: part[part.isfinite()].numpy() for name, part in flat.items()}
    if empty := [name for name, part in known.items() if not len(part)]:
        raise ValueError(f"values{f'[{empty[0]!r}]' if empty[0] else ''} has no finite number")
    edges = np.histogram_bin_edges(np.concatenate(list(known.values())), whole("bins", bins, 1))
    ax = new_axes(ax)
    alone = len(known) == 1
    for (name, part), colour, dashes in zip(known.items(), PALETTE, DASHES, strict=False):
        counts, _ = np.histogram(part, edges)
        ax.stairs(counts, edges, color=colour, linewidth=1.8, label=name, linestyle=dashes)
        if alone:
            ax.stairs(counts, edges, color=colour, alpha=0.25, fill=True)
    ax.set(xlabel="value", ylabel="count")
    if log:
        ax.set_yscale("log")
    else:
        ax.yaxis.set_major_formatter("{x:,.0f}")
    if not alone or isinstance(values, Mapping):
        ax.legend(frameon=False)
    tidy(ax)
    return ax

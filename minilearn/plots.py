"""Pictures of numbers. Each function draws into `ax`, or into a new figure, and returns the axes."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
"""Of the palette by Okabe and Ito: told apart by colour-blind readers too."""


def plot_loss(losses: Sequence[float], *, stride: int = 1, skip_start: int = 0, ax: "Axes | None" = None) -> "Axes":
    """The training loss against the batch.

    Args:
        losses: a figure a batch, such as ``learn.recorder.losses``.
        stride: how many batches lie between two figures, such as ``learn.recorder.stride``.
        skip_start: how many figures at the start to leave out, where they would squeeze the rest.
        ax: where to draw.
    """
    ax = _axes(ax)
    ax.plot([i * stride for i in range(skip_start, len(losses))], losses[skip_start:], color=BLUE, linewidth=1.8)
    ax.set(xlabel="batch", ylabel="loss (moving average)", title="training loss")
    _tidy(ax)
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

    ax = _axes(ax)
    for (name, figures), colour in zip(curves.items(), COLOURS * len(curves), strict=False):
        known = [math.nan if figure is None else figure for figure in figures]
        label = f"{name}: {known[-1]:.4f} at the end" if known else name
        ax.plot(list(epochs), known, marker="o", markersize=5, color=colour, linewidth=1.8, label=label)
    ax.set(xlabel="epoch", ylabel=ylabel, title="after each epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False)
    _tidy(ax)
    return ax


def plot_sched(hypers: Mapping[str, Sequence[float]], *, stride: int = 1, ax: "Axes | None" = None) -> "Axes":
    """Hyperparameters against the batch, one below the other, as their scales have nothing in common.

    Args:
        hypers: for each name a figure a batch, such as ``learn.recorder.hps``.
        stride: how many batches lie between two figures, such as ``learn.recorder.stride``.
        ax: where to draw; it is divided up.
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    ax = _axes(ax, height=max(4.0, 1.9 * len(hypers)))
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
        _tidy(panel)
    return ax


def plot_images(
    images: Tensor,
    titles: Sequence[str] = (),
    *,
    wrong: Sequence[bool] = (),
    columns: int = 8,
    ax: "Axes | None" = None,
) -> "Axes":
    """A grid of grey images with a line of text above each; those that are `wrong` in a frame of their own colour.

    Args:
        images: (images, height, width) or (images, height · width) for square ones; small is black.
        titles: a text an image.
        wrong: whether to mark it, an image.
        columns: images a row.
        ax: where to draw; it is divided up.
    """
    ax = _axes(ax)
    ax.set_axis_off()
    side = math.isqrt(images.shape[-1])
    grey = images.reshape(len(images), side, -1) if images.ndim == 2 else images
    rows = math.ceil(len(grey) / columns)
    for i, image in enumerate(grey.detach().cpu().numpy()):
        row, column = divmod(i, columns)
        cell = ax.inset_axes((column / columns, 1 - (row + 1) / rows, 0.86 / columns, 0.74 / rows))
        cell.imshow(image, cmap="gray", interpolation="nearest")
        cell.set(xticks=[], yticks=[])
        marked = i < len(wrong) and wrong[i]
        for spine in cell.spines.values():
            spine.set(color=ORANGE if marked else "#BBBBBB", linewidth=3 if marked else 0.8)
        if i < len(titles):
            cell.set_title(titles[i], fontsize=9, pad=3, color=ORANGE if marked else "black")
    return ax


def show_image(image: Any, *, title: str = "", ax: "Axes | None" = None, cmap: str = "gray") -> "Axes":
    """One image.

    Args:
        image: a PIL image, or an array or tensor (height, width), (height, width, channels) or (channels, height,
            width).
        title: a text above it.
        ax: where to draw.
        cmap: matplotlib's name of the colours for an image without channels.
    """
    ax = _axes(ax)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        if image.ndim == 3 and image.shape[0] in (1, 3, 4):
            image = image.movedim(0, -1)
        if image.ndim == 3 and image.shape[-1] == 1:
            image = image.squeeze(-1)
        image = image.numpy()
    ax.imshow(image, cmap=cmap)
    ax.set_axis_off()
    ax.set_title(title)
    return ax


def _axes(ax: "Axes | None", height: float = 4) -> "Axes":
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6, height), layout="constrained")[1]


def _tidy(ax: "Axes") -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    ax.set_axisbelow(True)

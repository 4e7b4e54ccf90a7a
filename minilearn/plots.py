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
PALETTE = (BLUE, ORANGE, GREEN, "#E69F00", "#56B4E9", PURPLE, "#000000", "#8C6D1F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Colours and markers for up to eight curves: the whole of that palette, and a brown for its yellow, which is pale."""


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

    ax = _axes(ax)
    n = len(lrs) - skip_end if len(lrs) >= 10 else len(lrs)
    shown, heights = list(lrs[:n]), list(losses[:n])
    ax.plot(shown, heights, color=BLUE, linewidth=1.8)
    known = {name: lr for name, lr in (suggestions or {}).items() if math.isfinite(lr)}
    for (name, lr), colour, marker in zip(known.items(), PALETTE[1:] * len(known), MARKERS * len(known), strict=False):
        height = float(np.interp(math.log(lr), np.log(shown), heights))
        ax.plot([lr], [height], marker, color=colour, markersize=9, markeredgecolor="white", label=f"{name}: {lr:.2e}")
    ax.set(xscale="log", xlabel="learning rate", ylabel="loss (moving average)", title="learning-rate search")
    _tidy(ax)
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


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6, 4), layout="constrained")[1]


def _tidy(ax: "Axes") -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    ax.set_axisbelow(True)

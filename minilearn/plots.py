"""Pictures of numbers. Each function draws into `ax`, or into a new figure, and returns the axes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minilearn.surfaces import OptFunc, Surface, as_surface, descend
from minilearn.tensors import tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
"""Of the palette by Okabe and Ito: told apart by colour-blind readers too."""
PALETTE = (BLUE, ORANGE, GREEN, "#E69F00", "#56B4E9", PURPLE, "#000000", "#8C6D1F")
MARKERS = ("o", "s", "^", "D", "v", "X", "P", "p")
"""Colours and markers for up to eight curves: the whole of that palette, and a brown for its yellow, which is pale."""


def plot_loss(
    losses: Sequence[float],
    *,
    stride: int = 1,
    skip_start: int = 0,
    valid: Sequence[tuple[int, float | None]] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """The training loss against the batch.

    Args:
        losses: a figure a batch, such as ``learn.recorder.losses``.
        stride: how many batches lie between two figures, such as ``learn.recorder.stride``.
        skip_start: how many figures at the start to leave out, where they would squeeze the rest.
        valid: the validation loss at the end of each epoch, with the number of batches that were done by then; one that
            is None is left out.
        ax: where to draw.
    """
    ax = _axes(ax)
    batches = [i * stride for i in range(skip_start, len(losses))]
    ax.plot(batches, losses[skip_start:], color=BLUE, linewidth=1.8, label="training, moving average")
    ax.set(xlabel="batch", ylabel="loss (moving average)", title="training loss")
    if valid:
        marks = [(batch - 1, loss) for batch, loss in valid if loss is not None]
        ax.plot(*zip(*marks, strict=True), color=ORANGE, marker="o", markersize=4, linewidth=1.4, label="validation")
        ax.set(ylabel="loss", title="loss")
        ax.legend(frameon=False)
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


def plot_optimizers(
    opt_funcs: Mapping[str, OptFunc],
    surface: Surface | str = "valley",
    start: Sequence[float] | float | None = None,
    steps: int = 100,
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """The paths of optimizers from one start, over the contours of a surface or along the curve of one variable.

    Along a curve each path has its own height above it, so that none hides another.

    Args:
        opt_funcs: optimizers by name, at most eight: ``{"Adam": partial(Adam, lr=0.1)}``.
        surface: a `Surface`, or its name: valley, saddle, rosenbrock, x2_sin_x.
        start: where they begin; the surface's own start by default.
        steps: how many steps each takes.
        ax: where to draw.
    Raises:
        ValueError: there are more than eight optimizers, no such surface, or `start` has another number of variables.
        TypeError: `opt_funcs` has no names.
    """
    if not isinstance(opt_funcs, Mapping):
        raise TypeError(f'opt_funcs must be optimizers by name, {{"SGD": partial(SGD, lr=0.1)}}, got {opt_funcs!r}')
    if len(opt_funcs) > len(PALETTE):
        raise ValueError(
            f"opt_funcs must be at most {len(PALETTE)}, to be told apart in one picture, got {len(opt_funcs)}"
        )
    surface = as_surface(surface)
    paths = {name: descend(opt_func, surface, start, steps) for name, opt_func in opt_funcs.items()}
    ax = _axes(ax, (8, 5))
    on_curve = surface.dims == 1
    (_draw_curve if on_curve else _draw_contours)(ax, surface)
    for i, (name, whole_path) in enumerate(paths.items()):
        path = _up_to_the_edge(whole_path, surface.window)
        heights = surface(path)
        left = len(path) < len(whole_path) or not bool(_inside(path[-1], surface.window))
        label = f"{name}: {'left the picture' if left else f'{heights[-1].item():.3g}'}"
        lift = (0.03 + 0.035 * i) * (ax.get_ylim()[1] - ax.get_ylim()[0]) if on_curve else 0.0
        xs, ys = path[:, 0], heights + lift if on_curve else path[:, 1]
        ax.plot(
            *(coordinate.where(coordinate.isfinite(), math.nan).tolist() for coordinate in (xs, ys)),
            color=PALETTE[i],
            linewidth=3.2 - 0.3 * i,  # of two that coincide both are seen
            marker=MARKERS[i],
            markersize=7,
            markeredgecolor="white",
            markeredgewidth=0.6,
            markevery=_marked(path, surface.window),
            label=label,
            zorder=3 + i,
        )
    at_start = next(iter(paths.values()))[:1] if paths else None
    for points, marker, label in ((at_start, "o", "start"), (tensor(surface.minima), "*", "minimum")):
        if points is not None:
            ys = surface(points) if on_curve else points[:, 1]
            (mark,) = ax.plot(points[:, 0], ys, marker, color="white", markeredgecolor="black", label=label)
            mark.set(markersize=9 if marker == "o" else 17, linestyle="none", zorder=20)
    ax.set_title(surface.name)
    title = f"height after {steps} steps"
    ax.legend(title=title, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0), alignment="left")
    return ax


def _draw_curve(ax: "Axes", surface: Surface) -> None:
    ((low, high),) = surface.window
    x = torch.linspace(low, high, 400)
    ax.plot(x, surface(x.unsqueeze(-1)), color="#999999", linewidth=1.5)
    ax.set(xlim=(low, high), xlabel="x", ylabel="f(x)")
    ax.margins(y=0.1)
    ax.autoscale(False)
    _tidy(ax)


def _draw_contours(ax: "Axes", surface: Surface) -> None:
    (left, right), (bottom, top) = surface.window
    x, y = torch.linspace(left, right, 300), torch.linspace(bottom, top, 300)
    heights = surface(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1))  # (300, 300)
    least, most = heights.min().item(), heights.max().item()
    if surface.log_levels:
        levels = torch.logspace(math.log10(most) - 4, math.log10(most), 14)
        colours = heights.clamp(min=levels[0].item()).log()
        levels = levels.log()
    else:
        colours, levels = heights, torch.linspace(least, most, 18)
    ax.contourf(x, y, colours, levels=levels.tolist(), cmap="Greys", alpha=0.25, extend="both")
    ax.contour(x, y, colours, levels=levels.tolist(), colors="#777777", linewidths=0.5, linestyles="solid")
    ax.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y")
    ax.autoscale(False)


def _inside(points: Tensor, window: tuple[tuple[float, float], ...]) -> Tensor:
    """Which points, (…, dims), lie in a window: (…,)."""
    low, high = tensor(window).T
    inside: Tensor = ((points >= low) & (points <= high)).all(dim=-1)
    return inside


def _up_to_the_edge(path: Tensor, window: tuple[tuple[float, float], ...]) -> Tensor:
    """A path up to the step that leads out of a window for good: what swings around it would hide all others."""
    inside = _inside(path, window).nonzero()
    return path[: int(inside[-1]) + 2] if len(inside) else path[:1]


def _marked(path: Tensor, window: tuple[tuple[float, float], ...], n: int = 12) -> list[int]:
    """The steps at which a path gets a mark: about `n`, evenly spaced along its way, as its steps shrink at the end."""
    low, high = tensor(window).T
    moves = ((path[1:] - path[:-1]) / (high - low)).norm(dim=-1).nan_to_num(posinf=0.0).clamp(max=1.0)
    way = moves.cumsum(0)
    if not len(way) or not way[-1] > 0:
        return [0]
    marks = torch.searchsorted(way, torch.linspace(0, way[-1].item(), n, dtype=way.dtype)[1:]) + 1
    return sorted(set(marks.clamp(max=len(way)).tolist()))


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

    ax = _axes(ax, (6, max(4.0, 1.9 * len(hypers))))
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
    """A grid of images with a line of text above each; those that are `wrong` in a frame of their own colour.

    Args:
        images: (images, height, width), (images, height · width) for square ones, small is black; or (images, height,
            width, 3) in [0, 1].
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


def viewable(images: Tensor) -> Tensor:
    """Images of any scale with each one's numbers from 0 to 1, as `plot_images` takes them, on the CPU.

    Args:
        images: (batch, channels, height, width) with 1 or 3 channels, of any scale and dtype.
    Returns:
        float (batch, height, width), or (batch, height, width, 3).
    """
    images = images.detach().cpu().float()
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    scaled = ((images - low) / (high - low).clamp_min(1e-12)).nan_to_num()
    return scaled[:, 0] if images.shape[1] == 1 else scaled.movedim(1, -1)


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


def save_picture(figure: "Figure", path: str | Path) -> Path:
    """Writes a figure into a file, whose folder is made; where there is a display, shows it there too until it is shut.

    Args:
        figure: of matplotlib's pyplot.
        path: the file; its ending is the format: .png, .svg, .pdf.
    Returns:
        The file.
    """
    from matplotlib import pyplot

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    if getattr(type(figure.canvas), "required_interactive_framework", None):  # a window's canvas; a file's has none
        pyplot.show()
    return path


def _axes(ax: "Axes | None", inches: tuple[float, float] = (6, 4)) -> "Axes":
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=inches, layout="constrained")[1]


def _tidy(ax: "Axes") -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    ax.set_axisbelow(True)

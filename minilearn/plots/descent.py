"""The way down a surface, drawn along its curve or over its contours."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minilearn.plots.ground import MARKERS, PALETTE, new_axes, tidy
from minilearn.surfaces import OptFunc, Surface, as_surface, descend
from minilearn.tensors import tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

Heights = Callable[[Tensor], Any]
Window = tuple[tuple[float, float], ...]
PATH = "path"
"""What a path's line is known by among the lines of its axes."""


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
    ax = new_axes(ax, (8, 5))
    on_curve = surface.dims == 1
    _draw_ground(ax, surface, surface.window)
    for i, (name, whole_path) in enumerate(paths.items()):
        path = _up_to_the_edge(whole_path, surface.window)
        heights = surface(path)
        left = _leaves(whole_path, path, surface.window)
        lift = (0.03 + 0.035 * i) * (ax.get_ylim()[1] - ax.get_ylim()[0]) if on_curve else 0.0
        line = _draw_path(ax, path, heights + lift, i)
        line.set(marker=MARKERS[i], markersize=7, markevery=_marked(path, surface.window))
        line.set_label(f"{name}: {'left the picture' if left else f'{heights[-1].item():.3g}'}")
    at_start = next(iter(paths.values()))[:1] if paths else None
    for points, marker, label in ((at_start, "o", "start"), (tensor(surface.minima), "*", "minimum")):
        if points is not None:
            ys = surface(points) if on_curve else points[:, 1]
            (mark,) = ax.plot(points[:, 0], ys, marker, color="white", markeredgecolor="black", label=label)
            mark.set(markersize=9 if marker == "o" else 17, linestyle="none", zorder=20)
    title = f"height after {steps} steps"
    ax.legend(title=title, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0), alignment="left")
    return ax


def plot_descent(
    path: Any,
    surface: Surface | str | Heights,
    *,
    window: Sequence[Any] | None = None,
    name: str = "descent",
    ax: "Axes | None" = None,
) -> "Axes":
    """A path with its steps, its start and its end, on the curve of one variable or over the contours of two.

    Called again with the same `ax` it adds another path to the picture, in another colour; curve, contours, window and
    the axes' labels stay as they are then. A path is drawn up to where it leaves the window for good, and its name says
    so. Of many steps about forty are marked, evenly along the way.

    Args:
        path: the points one after the other, (points,) or (points, 1) on a curve, (points, 2) over contours: a tensor,
            an array or a list. Those that are nan or infinite are left out.
        surface: a `Surface`, its name (valley, saddle, rosenbrock, x2_sin_x), or a function of points (…, dims) that
            gives their heights (…); points have the path's dtype.
        window: from where to where it is drawn: (low, high) for each variable, or a pair alone for a curve; by default
            around the path.
        name: what the path is called in the legend.
        ax: where to draw.
    Raises:
        ValueError: the path has another shape or no finite point, there is no such surface, or it gives heights of
            another shape; the window is none, or the picture has eight paths already.

    >>> ax = plot_descent([2.5, 2.0, 1.8], lambda x: (x[..., 0] - 1) ** 2, name="lr 0.1")
    >>> ax = plot_descent([2.5, 1.0, 1.1], lambda x: (x[..., 0] - 1) ** 2, name="lr 0.5", ax=ax)
    """
    points = _as_points(path)
    dims = points.shape[1]
    heights_of = as_surface(surface) if isinstance(surface, (Surface, str)) else surface
    if isinstance(heights_of, Surface) and heights_of.dims != dims:
        raise ValueError(f"path must have {heights_of.dims} numbers a point for {heights_of.name}, got {dims}")
    ax = new_axes(ax, (7, 4.5))
    earlier = [line for line in ax.lines if line.get_gid() == PATH]
    if len(earlier) == len(PALETTE):
        raise ValueError(f"a picture has at most {len(PALETTE)} paths, to be told apart")
    if not earlier:
        _draw_ground(ax, heights_of, _as_window(window, points))
    seen = (ax.get_xlim(), ax.get_ylim())[:dims]
    shown = _up_to_the_edge(points, seen)
    ys = _heights(heights_of, shown) if dims == 1 else shown[:, 1]
    line = _draw_path(ax, shown, ys, len(earlier))
    steps = range(len(shown)) if len(shown) <= 40 else _marked(shown, seen, 40)
    line.set(gid=PATH, marker="o", markersize=4.5, markevery=list(steps))
    left = _leaves(points, shown, seen)
    line.set_label(f"{name}, leaves the picture" if left else name)
    ends: list[tuple[int, str, Any, str]] = [(0, "o", "white", "start"), (-1, "D", line.get_color(), "end")]
    for at, marker, colour, label in ends[: 1 if left else 2]:
        x, y = shown[at, 0].item(), ys[at].item()
        (mark,) = ax.plot([x], [y], marker, color=colour, markeredgecolor="black", markersize=9, zorder=20)
        mark.set_label(f"_{label}")
    _draw_legend(ax)
    return ax


def _draw_legend(ax: "Axes") -> None:
    """A legend of the paths, and what their two marks mean, once for all of them."""
    from matplotlib.lines import Line2D

    lines = [line for line in ax.lines if line.get_gid() == PATH]
    marks = [
        Line2D(
            [], [], linestyle="none", marker=marker, color=colour, markeredgecolor="black", markersize=9, label=label
        )
        for marker, colour, label in (("o", "white", "start"), ("D", "#999999", "end"))
    ]
    ax.legend(handles=[*lines, *marks], frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def _as_points(path: Any) -> Tensor:
    """A path as (points, dims), finite and of a floating-point dtype, on the CPU.

    Raises:
        ValueError: it is none.
    """
    points = tensor(path).detach().cpu()
    points = points if points.is_floating_point() else points.to(torch.get_default_dtype())
    points = points.unsqueeze(-1) if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] not in (1, 2):
        raise ValueError(f"path must be (points,), (points, 1) or (points, 2), got {tuple(points.shape)}")
    points = points[points.isfinite().all(dim=1)]
    if not len(points):
        raise ValueError("path has no finite point")
    return points


def _as_window(window: Sequence[Any] | None, points: Tensor) -> Window:
    """The window that is meant: by default around the points, with a quarter of their extent to each side."""
    if window is None:
        low, high = points.amin(0), points.amax(0)
        margin = 0.25 * (high - low)
        margin = margin.where(margin > 0, torch.full_like(margin, 0.5 * max(float(margin.max()), 1.0)))
        return tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))
    pairs = (window,) if len(window) == 2 and not isinstance(window[0], Sequence) else window
    dims = points.shape[1]
    if len(pairs) != dims or not all(len(pair) == 2 and pair[0] < pair[1] for pair in pairs):
        raise ValueError(f"window must be (low, high) for each of {dims} variables, got {window!r}")
    return tuple((float(low), float(high)) for low, high in pairs)


def _heights(surface: Surface | Heights, points: Tensor) -> Tensor:
    """The heights at points (…, dims): (…,).

    Raises:
        ValueError: they have another shape.
    """
    with torch.no_grad():
        heights = tensor(surface(points)).cpu()
    if heights.shape != points.shape[:-1]:
        shapes = f"{tuple(points.shape[:-1])} for points {tuple(points.shape)}, got {tuple(heights.shape)}"
        raise ValueError(f"surface must give a height for each point: {shapes}")
    return heights


def _draw_ground(ax: "Axes", surface: Surface | Heights, window: Window) -> None:
    (_draw_curve if len(window) == 1 else _draw_contours)(ax, surface, window)
    if isinstance(surface, Surface):
        ax.set_title(surface.name)


def _draw_curve(ax: "Axes", surface: Surface | Heights, window: Window) -> None:
    ((low, high),) = window
    x = torch.linspace(low, high, 400)
    ax.plot(x, _heights(surface, x.unsqueeze(-1)), color="#999999", linewidth=1.5)
    ax.set(xlim=(low, high), xlabel="x", ylabel="f(x)")
    ax.margins(y=0.1)
    ax.autoscale(False)
    tidy(ax)


def _draw_contours(ax: "Axes", surface: Surface | Heights, window: Window) -> None:
    (left, right), (bottom, top) = window
    x, y = torch.linspace(left, right, 300), torch.linspace(bottom, top, 300)
    heights = _heights(surface, torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1))  # (300, 300)
    known = heights[heights.isfinite()]
    if not len(known):
        raise ValueError("surface has no finite height within the window")
    least, most = known.min().item(), known.max().item()
    if isinstance(surface, Surface) and surface.log_levels:
        levels = torch.logspace(math.log10(most) - 4, math.log10(most), 14)
        colours = heights.clamp(min=levels[0].item()).log()
        levels = levels.log()
    elif isinstance(surface, Surface):
        colours, levels = heights, torch.linspace(least, most, 18)
    else:  # evenly spaced in the root of the height: the contours of a bowl are then as far apart at its foot as above
        colours, levels = (heights - least).clamp(min=0).sqrt(), torch.linspace(0, math.sqrt(most - least) or 1.0, 18)
    ax.contourf(x, y, colours, levels=levels.tolist(), cmap="Greys", alpha=0.25, extend="both")
    ax.contour(x, y, colours, levels=levels.tolist(), colors="#777777", linewidths=0.5, linestyles="solid")
    ax.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y")
    ax.autoscale(False)


def _draw_path(ax: "Axes", path: Tensor, heights: Tensor, i: int) -> "Line2D":
    """Path number `i`, thinner than the one before it, so that of two that coincide both are seen.

    A path of one variable, (points, 1), lies at `heights`; one of two, (points, 2), where it is.
    """
    xs, ys = path[:, 0], heights if path.shape[1] == 1 else path[:, 1]
    (line,) = ax.plot(
        *(coordinate.where(coordinate.isfinite(), math.nan).tolist() for coordinate in (xs, ys)),
        color=PALETTE[i],
        linewidth=3.2 - 0.3 * i,
        markeredgecolor="white",
        markeredgewidth=0.6,
        zorder=3 + i,
    )
    return line


def _inside(points: Tensor, window: Window) -> Tensor:
    """Which points, (…, dims), lie in a window: (…,)."""
    low, high = tensor(window).T
    inside: Tensor = ((points >= low) & (points <= high)).all(dim=-1)
    return inside


def _up_to_the_edge(path: Tensor, window: Window) -> Tensor:
    """A path up to the step that leads out of a window for good: what swings around it would hide all others."""
    inside = _inside(path, window).nonzero()
    return path[: int(inside[-1]) + 2] if len(inside) else path[:1]


def _leaves(path: Tensor, shown: Tensor, window: Window) -> bool:
    """Whether a path that is shown up to the edge goes on outside of the window."""
    return len(shown) < len(path) or not bool(_inside(shown[-1], window))


def _marked(path: Tensor, window: Window, n: int = 12) -> list[int]:
    """The steps at which a path gets a mark: about `n`, evenly spaced along its way, as its steps shrink at the end."""
    low, high = tensor(window).T
    moves = ((path[1:] - path[:-1]) / (high - low)).norm(dim=-1).nan_to_num(posinf=0.0).clamp(max=1.0)
    way = moves.cumsum(0)
    if not len(way) or not way[-1] > 0:
        return [0]
    marks = torch.searchsorted(way, torch.linspace(0, way[-1].item(), n, dtype=way.dtype)[1:]) + 1
    return sorted(set(marks.clamp(max=len(way)).tolist()))

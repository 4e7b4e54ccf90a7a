"""What every picture stands on: colours, axes and their lines, a figure in a file."""

from pathlib import Path
from typing import TYPE_CHECKING

from minilearn import distributed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
"""Of the palette by Okabe and Ito: told apart by colour-blind readers too."""
PALETTE = (BLUE, ORANGE, GREEN, "#E69F00", "#56B4E9", PURPLE, "#000000", "#8C6D1F")
MARKERS = ("o", "s", "^", "D", "v", "X", "P", "p")
"""Colours and markers for up to eight curves: the whole of that palette, and a brown for its yellow, which is pale."""
DASHES = ("-", "--", "-.", ":", "-", "--", "-.", ":")
"""For up to eight outlines that lie on each other, where a marker would hide them."""
PALE_BLUE = "#9ECAE8"
"""What lies behind a blue curve and is of the same kind: single figures behind their average."""


def new_axes(ax: "Axes | None", inches: tuple[float, float] = (6, 4)) -> "Axes":
    """`ax` itself, or the axes of a new figure of this width and height."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=inches, layout="constrained")[1]


def tidy(ax: "Axes") -> None:
    """Leaves the two spines that carry figures, and draws pale lines behind what is drawn."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    ax.set_axisbelow(True)


def save_picture(figure: "Figure", path: str | Path) -> Path:
    """Writes a figure into a file, whose folder is made; where there is a display, shows it there too until it is shut.

    Of several processes rank 0 does.

    Args:
        figure: of matplotlib's pyplot.
        path: the file; its ending is the format: .png, .svg, .pdf.
    Returns:
        The file.
    """
    from matplotlib import pyplot

    path = Path(path)
    if not distributed.is_main():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    if getattr(type(figure.canvas), "required_interactive_framework", None):  # a window's canvas; a file's has none
        pyplot.show()
    return path

"""Which class was taken for which."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minilearn.plots.ground import new_axes
from minilearn.tensors import tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DIGIT = 0.62
"""How wide a digit is, in its font's size, about."""


def plot_confusion(
    matrix: Any, vocab: Sequence[Any] | None = None, *, normalize: bool = False, ax: "Axes | None" = None
) -> "Axes":
    """A confusion matrix: how many rows of each class, from top to bottom, were taken for which, from left to right.

    A cell in which there is none stays empty. Cells are shaded by the root of their share of their class, so that a few
    mistakes are seen beside many right answers, and rare classes beside frequent ones.

    Args:
        matrix: counts, (classes, classes), the actual classes in the rows: a tensor, an array or a list.
        vocab: names of the classes; by default their numbers.
        normalize: percentages of each actual class in place of counts.
        ax: where to draw; a new figure is as large as its classes need.
    Raises:
        ValueError: the matrix is not square, or `vocab` has not a name for each class.
    """
    counts = tensor(matrix).detach().cpu().double()
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not len(counts):
        raise ValueError(f"matrix must be (classes, classes), got {tuple(counts.shape)}")
    n = len(counts)
    names = [str(name) for name in (range(n) if vocab is None else vocab)]
    if len(names) != n:
        raise ValueError(f"vocab must have a name for each of {n} classes, got {len(names)}")
    shares = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
    longest = max(map(len, names))
    inches = max(3.0, n * (0.55 if n <= 12 else 0.4))
    ax = new_axes(ax, (inches + 0.6 + 0.09 * longest, inches + 0.9 + 0.09 * longest))
    ax.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    decimals = 1 if n <= 12 else 0
    texts = [
        (i, j, f"{100 * shares[i, j].item():.{decimals}f}" if normalize else f"{counts[i, j].item():g}")
        for i, j in counts.nonzero().tolist()
    ]
    size = _font_size(ax, n, max((len(text) for *_, text in texts), default=1))
    for i, j, text in texts:
        shade = "white" if shares[i, j] > 0.3 else "black"
        ax.text(j, i, text, ha="center", va="center", fontsize=size, color=shade)
    ax.set(xlabel="predicted", ylabel="actual")
    ax.set_title(f"confusion matrix, {'% of each actual class' if normalize else 'rows'}")
    label_size = min(11.0, 1.2 * size)
    ax.set_xticks(range(n), names, fontsize=label_size, rotation=90 if longest > 4 else 0)
    ax.set_yticks(range(n), names, fontsize=label_size)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def _font_size(ax: "Axes", n: int, digits: int) -> float:
    """The size in points at which so many digits fill most of a cell, of `n` in a row, at most 12."""
    box = ax.get_window_extent()
    cell = 72 * min(box.width, box.height) / ax.figure.dpi / n
    return math.floor(10 * max(4.0, min(12.0, 0.45 * cell, 0.9 * cell / (DIGIT * digits)))) / 10

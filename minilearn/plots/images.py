"""Images: one, and a grid of them."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from minilearn.plots.ground import ORANGE, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    ax = new_axes(ax)
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
    ax = new_axes(ax)
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

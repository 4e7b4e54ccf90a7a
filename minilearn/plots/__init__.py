"""Pictures of numbers. Each function draws into `ax`, or into a new figure, and returns the axes."""

from minilearn.plots.curves import plot_histogram, plot_loss, plot_lr_find, plot_metrics, plot_sched
from minilearn.plots.descent import plot_descent, plot_optimizers
from minilearn.plots.ground import (
    BLUE,
    COLOURS,
    DASHES,
    GREEN,
    MARKERS,
    ORANGE,
    PALE_BLUE,
    PALETTE,
    PURPLE,
    save_picture,
)
from minilearn.plots.images import plot_images, show_image, viewable

__all__ = [
    "BLUE",
    "COLOURS",
    "DASHES",
    "GREEN",
    "MARKERS",
    "ORANGE",
    "PALETTE",
    "PALE_BLUE",
    "PURPLE",
    "plot_descent",
    "plot_histogram",
    "plot_images",
    "plot_loss",
    "plot_lr_find",
    "plot_metrics",
    "plot_optimizers",
    "plot_sched",
    "save_picture",
    "show_image",
    "viewable",
]

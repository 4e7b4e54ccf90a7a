"""Axes that are given are drawn into; a figure becomes a file."""

from pathlib import Path

import pytest
import torch

from minilearn.plots import plot_loss, save_picture, show_image

pyplot = pytest.importorskip("matplotlib.pyplot")


def test_pictures_are_drawn_where_they_are_asked_to() -> None:
    _, ax = pyplot.subplots()
    assert plot_loss([1.0], ax=ax) is ax
    assert show_image(torch.rand(2, 2), ax=ax) is ax


def test_picture_is_saved_in_a_folder_that_is_made(tmp_path: Path) -> None:
    from PIL import Image

    figure, _ = pyplot.subplots(figsize=(4, 3))
    path = save_picture(figure, tmp_path / "new" / "picture.png")
    with Image.open(path) as picture:
        assert picture.size == (440, 330)
    pyplot.close(figure)

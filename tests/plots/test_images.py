"""Images, one and many."""

import pytest
import torch

from minilearn.plots import plot_images, show_image


@pytest.mark.parametrize("shape", [(5, 784), (5, 28, 28)])
def test_images_stand_in_a_grid_with_the_wrong_ones_marked(shape: tuple[int, ...]) -> None:
    ax = plot_images(torch.rand(shape), ["a", "b", "c", "d", "e"], wrong=[True] + [False] * 4, columns=3)
    cells = ax.child_axes
    assert [cell.get_title() for cell in cells] == ["a", "b", "c", "d", "e"]
    assert all(cell.images[0].get_array().shape == (28, 28) for cell in cells)
    assert [cell.spines["left"].get_linewidth() > 1 for cell in cells] == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("shape", "drawn"), [((4, 5), (4, 5)), ((1, 4, 5), (4, 5)), ((3, 4, 5), (4, 5, 3)), ((6, 5, 3), (6, 5, 3))]
)
def test_show_image_takes_channels_first_or_last(shape: tuple[int, ...], drawn: tuple[int, ...]) -> None:
    assert show_image(torch.rand(shape), title="t").images[0].get_array().shape == drawn

"""Batches and rows with their losses, as pictures or as tables. Answers are in tests/test_predictions.py."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from minilearn.data import DataLoader, DataLoaders
from minilearn.plots import plot_top_losses, show_batch


def titles(ax: Any) -> list[str]:
    return [cell.get_title() for cell in ax.child_axes]


def table(ax: Any) -> list[list[str]]:
    cells = ax.tables[0].get_celld()
    height, width = (max(place) + 1 for place in zip(*cells, strict=True))
    return [[cells[i, j].get_text().get_text() for j in range(width)] for i in range(height)]


def shown(ax: Any, i: int) -> Tensor:
    return torch.as_tensor(ax.child_axes[i].images[0].get_array())


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 8, 8), (3, 64)])
def test_batch_of_images_is_pictures_with_their_classes(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape) * 100  # of any scale
    ax = show_batch(images, torch.tensor([2, 0, 1]), max_n=2, vocab=["cat", "dog", "owl"])
    assert titles(ax) == ["owl", "cat"]
    torch.testing.assert_close(shown(ax, 1), images[1].reshape(8, 8))


def test_images_with_colours_are_brought_to_the_range_that_can_be_drawn() -> None:
    ax = show_batch(torch.randn(1, 3, 8, 8) * 5)
    assert (shown(ax, 0).min(), shown(ax, 0).max()) == (0, 1)


def test_batch_with_maps_has_them_beside_the_images() -> None:
    maps = torch.zeros(2, 8, 8, dtype=torch.int64)
    maps[1] = 2
    ax = show_batch(torch.rand(2, 3, 8, 8), maps)
    assert titles(ax) == ["input", "target", "", ""]
    assert not torch.equal(shown(ax, 1), shown(ax, 3))


def test_batch_of_numbers_is_a_table() -> None:
    ax = show_batch((torch.tensor([[1.5, 2.0], [3.0, 4.0]]),), (torch.tensor([0.25, 1.0]),))
    assert table(ax) == [["input", "target"], ["1.5, 2", "0.25"], ["3, 4", "1"]]


def test_batch_without_targets_is_shown_too() -> None:
    assert table(show_batch(torch.tensor([[1.5], [2.0]]))) == [["input"], ["1.5"], ["2"]]


def test_top_losses_say_target_answer_loss_and_probability() -> None:
    preds = torch.tensor([[0.9, 0.1], [0.25, 0.75]])
    ax = plot_top_losses(torch.rand(2, 8, 8), torch.tensor([1, 1]), preds, torch.tensor([2.3026, 0.2877]), vocab="ab")
    assert titles(ax) == ["b → a\nloss 2.3, p 0.90", "b → b\nloss 0.288, p 0.75"]
    assert [cell.spines["left"].get_linewidth() > 1 for cell in ax.child_axes] == [True, False]


def test_top_losses_of_answers_have_no_probability() -> None:
    ax = plot_top_losses(torch.rand(1, 8, 8), torch.tensor([1]), torch.tensor([0]), torch.tensor([0.5]))
    assert titles(ax) == ["1 → 0\nloss 0.5"]


def test_top_losses_of_numbers_are_a_table() -> None:
    ax = plot_top_losses(torch.tensor([[1.5]]), torch.tensor([1]), torch.tensor([[0.9, 0.1]]), torch.tensor([2.3]))
    assert table(ax) == [["input", "target", "prediction", "loss", "probability"], ["1.5", "1", "0", "2.3", "0.90"]]


def test_top_losses_of_maps_are_three_pictures_a_row() -> None:
    maps = torch.zeros(1, 8, 8, dtype=torch.int64)
    ax = plot_top_losses(torch.rand(1, 1, 8, 8), maps, maps.clone(), torch.tensor([0.5]))
    assert titles(ax) == ["input", "target", "prediction, 100% right, loss 0.5"]


@pytest.mark.parametrize("columns", [2, 8])
def test_titles_lie_within_their_cells(columns: int) -> None:
    rows = torch.zeros(8, dtype=torch.int64)
    ax = plot_top_losses(torch.rand(8, 8, 8), rows, rows, torch.rand(8), vocab=["a long name"], columns=columns)
    ax.figure.draw_without_rendering()
    boxes = [cell.title.get_window_extent() for cell in ax.child_axes[:columns]]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_loaders_show_what_the_model_gets_and_a_loader_what_it_gives() -> None:
    x, y = torch.rand(4, 8, 8), torch.tensor([0, 1, 1, 0])
    dls = DataLoaders.from_tensors(x, y, shuffle=False, batch_tfms=lambda x: -x)
    dls.vocab = ["no", "yes"]  # type: ignore[attr-defined]
    ax = dls.show_batch(max_n=2)
    assert titles(ax) == ["no", "yes"]
    torch.testing.assert_close(shown(ax, 0), -x[0])
    torch.testing.assert_close(shown(dls.train.show_batch(), 0), x[0])


def test_one_row_may_be_shown_as_each_of_its_random_transforms_makes_it() -> None:
    x = torch.rand(4, 8, 8)
    dls = DataLoaders.from_tensors(x, torch.tensor([5, 6, 7, 8]), shuffle=False, batch_tfms=Numbered())
    ax = dls.show_batch(max_n=6, unique=True)
    assert titles(ax) == ["5"] * 6
    torch.testing.assert_close(shown(ax, 4), x[0] + 4)


class Numbered:
    """Adds to each row its number in the batch; in training alone."""

    train_only = True

    def __call__(self, x: Tensor) -> Tensor:
        return x + torch.arange(len(x)).reshape(-1, 1, 1)


def test_batch_that_is_given_is_shown() -> None:
    loader = DataLoader((torch.rand(2, 3), torch.rand(2)), 2)
    assert table(loader.show_batch((torch.tensor([[7.0]]), torch.tensor([8.0])))) == [["input", "target"], ["7", "8"]]
    with pytest.raises(ValueError, match="max_n must be a whole number of at least 1, got 0"):
        loader.show_batch(max_n=0)

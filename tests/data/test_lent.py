"""Batches that are only lent: the data set's own rows, where nobody changes them."""

import pytest
import torch
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.data import DataLoader, DataLoaders
from minilearn.learner import Learner


def same_batches(some: list[tuple[Tensor, ...]], others: list[tuple[Tensor, ...]]) -> bool:
    return all(all(map(torch.equal, a, b)) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("drop_last", [False, True])
def test_lent_batches_are_the_loaders_batches(drop_last: bool) -> None:
    dl = DataLoader((torch.rand(10, 3), torch.arange(10)), 4, drop_last=drop_last)
    assert same_batches(list(dl), list(dl.lent()))


def test_lent_rows_are_not_copied_after_the_first_batch() -> None:
    x = torch.rand(10, 3)
    first, second, third = (part.data_ptr() for part in DataLoader(x, 4).lent())
    assert (second, third) == (x[4:].data_ptr(), x[8:].data_ptr())
    assert first != x.data_ptr()


def test_shuffled_rows_are_copies_though_lent() -> None:
    x = torch.rand(10, 3)
    for batch in DataLoader(x, 4, shuffle=True).lent():
        batch.zero_()
    assert x.all()


def test_a_model_that_changes_its_input_leaves_the_validation_set_alone() -> None:
    x = torch.rand(10, 3)
    kept = x.clone()

    class InPlace(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2))

    learn = Learner(DataLoaders.from_tensors(x, x, x, x, bs=4), InPlace(3, 3), nn.functional.mse_loss)
    with learn.no_logging():
        learn.fit(2)
    assert torch.equal(x, kept)


def test_a_later_batch_that_is_changed_in_place_is_an_error() -> None:
    batches = DataLoader(torch.rand(10, 3), 4).lent()
    next(batches)
    next(batches).zero_()
    with pytest.raises(ValueError, match="rows of the data set were changed in place"):
        list(batches)


def test_validation_runs_in_inference_mode() -> None:
    x = torch.rand(10, 3)
    learn = Learner(DataLoaders.from_tensors(x, x, x, x, bs=4), nn.Linear(3, 3), nn.functional.mse_loss)
    with learn.no_logging():
        wanted = learn.validate()
        with torch.inference_mode():
            assert learn.validate() == wanted


def test_input_that_is_safe_is_not_copied_and_its_change_is_an_error() -> None:
    x, y = torch.rand(10, 3), torch.arange(10)
    batches = DataLoader((x, y), 4).lent(safe=True)
    first = next(batches)
    assert first[0].data_ptr() == x.data_ptr()
    assert first[1].data_ptr() != y.data_ptr()
    first[0].zero_()
    with pytest.raises(ValueError, match="rows of the data set were changed in place"):
        list(batches)


class Doubles(Callback):
    """Writes to the batch."""

    def before_batch(self) -> None:
        self.xb[0].mul_(2)


def test_a_callback_that_changes_its_input_leaves_the_validation_set_alone() -> None:
    x = torch.rand(10, 3)
    kept = x.clone()
    learn = Learner(DataLoaders.from_tensors(x, x, x, x, bs=4), nn.Linear(3, 3), nn.functional.mse_loss, cbs=Doubles)
    with learn.no_logging():
        learn.fit(1)
    assert torch.equal(x, kept)

"""`ShortEpoch` and `SkipToEpoch`."""

from typing import Any

import pytest
import torch
from conftest import events_log
from torch import nn
from torch.nn import functional as F

from minilearn.callback import Callback
from minilearn.callbacks import ProgressCallback, ShortEpoch, SkipToEpoch
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD


class Count(Callback):
    acts_in_step = False

    def before_fit(self) -> None:
        self.batches = {True: 0, False: 0}
        self.epochs: list[int] = []

    def before_train(self) -> None:
        self.epochs.append(self.epoch)

    def after_batch(self) -> None:
        self.batches[self.training] += 1


def learner(train: int = 40, valid: int = 20, **options: Any) -> Learner:
    torch.manual_seed(0)
    x = torch.rand(train, 3)
    dls = DataLoaders.from_tensors(x, x[:, :1], x[:valid], x[:valid, :1], bs=1, shuffle=False)
    learn = Learner(dls, nn.Linear(3, 1), F.mse_loss, SGD, 0.1, **options)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda text: None
    return learn


@pytest.mark.parametrize(
    ("pct", "train", "valid"), [(0.01, 1, 1), (0.1, 4, 2), (0.11, 5, 3), (0.7, 28, 14), (1.0, 40, 20)]
)
def test_a_share_of_the_batches_is_done(pct: float, train: int, valid: int) -> None:
    learn, count = learner(), Count()
    learn.fit(2, cbs=[ShortEpoch(pct), count])
    assert count.batches == {True: 2 * train, False: 2 * valid}


def test_validation_can_be_whole() -> None:
    learn, count = learner(), Count()
    learn.fit(1, cbs=[ShortEpoch(0.1, short_valid=False), count])
    assert count.batches == {True: 4, False: 20}


def test_the_rows_have_the_figures_of_the_batches_done() -> None:
    learn = learner()
    learn.fit(2, 0.0, cbs=ShortEpoch(0.1))
    assert None not in [figure for row in learn.recorder.values for figure in row]


def test_the_parts_end_as_cancelled() -> None:
    learn = learner(train=3, valid=3)
    log, seen = events_log()
    learn.fit(1, cbs=[ShortEpoch(0.5), log])
    assert [event for event in seen if not event.endswith(("batch", "step", "ward", "pred", "loss"))] == [
        "before_fit",
        "before_epoch",
        "before_train",
        "after_cancel_train",
        "after_train",
        "before_validate",
        "after_cancel_validate",
        "after_validate",
        "after_epoch",
        "after_fit",
        "cleanup_fit",
    ]


def test_a_loader_without_a_length_is_refused() -> None:
    batches = [(torch.rand(2, 3), torch.rand(2, 1)) for _ in range(3)]

    class NoLength:
        def __iter__(self) -> Any:
            return iter(batches)

    learn = Learner([NoLength()], nn.Linear(3, 1), F.mse_loss)
    with learn.no_logging(), pytest.raises(ValueError, match="ShortEpoch needs a loader that has a length"):
        learn.fit(1, cbs=ShortEpoch())


@pytest.mark.parametrize("pct", [0, -0.1, 1.5])
def test_a_share_out_of_range_is_refused(pct: float) -> None:
    with pytest.raises(ValueError, match=r"pct must be in .0, 1\], got"):
        ShortEpoch(pct)


def test_epochs_are_left_out() -> None:
    learn, count = learner(train=4, valid=4), Count()
    learn.fit(5, cbs=[SkipToEpoch(3), count])
    assert count.epochs == [3, 4]
    assert learn.recorder.epochs == [0, 1, 2, 3, 4]
    assert learn.recorder.values[:3] == [[None, None]] * 3
    assert None not in learn.recorder.values[3]


def test_what_is_left_out_is_left_out_of_a_schedule_as_by_start_epoch() -> None:
    one, other = learner(train=4, valid=4), learner(train=4, valid=4)
    one.fit_one_cycle(4, 0.1, cbs=SkipToEpoch(2))
    other.fit_one_cycle(4, 0.1, start_epoch=2)
    assert one.recorder.lrs == other.recorder.lrs
    assert torch.equal(one.model.weight, other.model.weight)


def test_an_epoch_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="epoch must be a whole number of at least 0, got -1"):
        SkipToEpoch(-1)

"""What used to bite around a fit, in a callback and in the history, and no longer does."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import nn

from minilearn.callback import (
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelTrainException,
    CancelValidException,
)
from minilearn.callbacks import Recorder
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.metrics import mae
from minilearn.optim import SGD
from minilearn.tensors import set_seed


def learner(cbs: Any = None, **kwargs: Any) -> Learner:
    torch.manual_seed(0)
    learn = Learner(line_dls(), nn.Linear(3, 1), F.mse_loss, SGD, cbs=cbs, **kwargs)
    learn.logger = lambda line: None
    return learn


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_of_a_broken_fit_is_left_on_the_learner(error: type[BaseException]) -> None:
    class Break(Callback):
        def after_backward(self) -> None:
            raise error

    learn = learner()
    before = set(vars(learn)) | {"opt", "_made"}
    with pytest.raises(error):
        learn.fit(1, cbs=Break)
    assert set(vars(learn)) <= before
    assert not any(isinstance(cb, Break) for cb in learn.cbs)
    assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters())
    assert not learn.model.training


def test_failed_assertion_in_a_callback_is_an_assertion_error() -> None:
    class Check(Callback):
        def before_batch(self) -> None:
            assert False  # noqa: B011, PT015 -- the very thing

    with pytest.raises(AssertionError) as caught:
        learner(Check).fit(1)
    assert "raised in Check.before_batch" in caught.value.__notes__


def test_misspelt_event_is_refused_when_its_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"after_bacth is not an event; did you mean 'after_batch'\?"):
        type("Typo", (Callback,), {"after_bacth": lambda self: None})


def test_typo_on_the_learner_is_not_blamed_on_the_model() -> None:
    with pytest.raises(AttributeError, match=r"Learner has no attribute 'fitt'; did you mean 'fit'\?"):
        learner().fitt  # noqa: B018 -- reading it is the test


def test_callbacks_of_one_class_live_side_by_side() -> None:
    class Count(Callback):
        def __init__(self) -> None:
            self.batches = 0

        def after_batch(self) -> None:
            self.batches += 1

    one, another = Count(), Count()
    learner([one, another]).fit(1)
    assert one.batches == another.batches == 3


@pytest.mark.parametrize(
    ("event", "cancel", "missing"),
    [
        ("before_train", CancelTrainException, []),
        ("before_validate", CancelValidException, [1, 2]),
        ("before_epoch", CancelEpochException, [0, 1, 2]),
    ],
)
def test_row_of_a_cancelled_part_lines_up_with_the_header(
    event: str, cancel: type[Exception], missing: list[int]
) -> None:
    def raise_in_second_epoch(self: Callback) -> None:
        if self.epoch == 1:
            raise cancel

    cancelling = type("Cancelling", (Callback,), {event: raise_in_second_epoch, "order": Recorder.order + 1})
    learn = learner(cancelling, metrics=mae)
    learn.fit(3)
    rows = learn.recorder.values
    assert [len(row) for row in rows] == [len(learn.recorder.metric_names) - 2] * 3
    assert [i for i, figure in enumerate(rows[1]) if figure is None] == missing


def test_cancelled_batch_has_no_loss_in_the_history() -> None:
    class CancelSecond(Callback):
        def before_batch(self) -> None:
            if self.training and self.iter == 1:
                raise CancelBatchException

    learn = learner(CancelSecond)
    learn.fit(2)
    assert len(learn.recorder.losses) == 2, "one batch of two in each epoch"


@pytest.mark.parametrize("fit", ["fit", "fit_flat_cos", "fit_one_cycle"])
def test_start_epoch_leaves_no_empty_rows_and_every_fit_knows_it(fit: str) -> None:
    whole, rest = learner(), learner()
    getattr(whole, fit)(4, 0.1)
    getattr(rest, fit)(4, 0.1, start_epoch=2)
    assert len(rest.recorder.values) == 2
    assert rest.recorder.epochs == [2, 3]
    assert rest.recorder.lrs == whole.recorder.lrs[4:]


def test_batch_cancelled_after_its_step_leaves_no_gradients_to_the_next() -> None:
    class Cancel(Callback):
        def after_step(self) -> None:
            raise CancelBatchException

    plain, cancelling = learner(), learner(Cancel)
    for learn in (plain, cancelling):
        learn.fit(2, 0.1)
    torch.testing.assert_close(plain.model.weight, cancelling.model.weight, rtol=0, atol=0)


def test_validation_between_two_fits_leaves_the_history_alone() -> None:
    learn = learner(metrics=mae)
    learn.fit(2)
    before = [list(row) for row in learn.recorder.values], list(learn.recorder.losses), learn.recorder.metric_names
    learn.validate()
    assert (learn.recorder.values, learn.recorder.losses, learn.recorder.metric_names) == before


def test_seed_gives_a_shuffled_run_again() -> None:
    rows = list(zip(torch.arange(40.0)[:, None], torch.arange(40.0)[:, None], strict=True))

    def run() -> list[float]:
        torch.manual_seed(3)
        dls = DataLoaders.from_dsets(rows, bs=4)
        return [x.item() for _ in range(2) for batch in dls.train for x in batch[0]]

    first, second = run(), run()
    assert first == second
    assert first[:40] != first[40:]


def test_set_seed_gives_a_whole_run_again() -> None:
    def run() -> torch.Tensor:
        set_seed(5)
        x = torch.randn(64, 3)
        learn = Learner(DataLoaders.from_tensors(x, x.sum(1, keepdim=True), bs=8), nn.Linear(3, 1), F.mse_loss)
        learn.logger = lambda line: None
        learn.fit(2)
        weight: torch.Tensor = learn.model.weight
        return weight

    torch.testing.assert_close(run(), run(), rtol=0, atol=0)


def test_search_takes_a_list_of_rates() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    learn = Learner(
        line_dls(), model, F.mse_loss, SGD, splitter=lambda m: [list(m[0].parameters()), list(m[1].parameters())]
    )

    class Look(Callback):
        run_search = True

        def before_step(self) -> None:
            seen.append([group["lr"] for group in self.opt.param_groups if not group["no_wd"]])

    seen: list[list[float]] = []
    learn.add_cb(Look())
    learn.lr_find(start_lr=[1e-8, 1e-7], end_lr=[0.1, 1.0], num_it=20, stop_div=False, show_plot=False)
    assert seen[10] == pytest.approx([1e-8 * 1e7**0.5, 1e-7 * 1e7**0.5])
    assert learn.lr_search.lrs[10] == pytest.approx(seen[10][1])


def test_search_with_few_batches_suggests_a_rate_or_says_why_not() -> None:
    learn = learner()
    (lr,) = learn.lr_find(start_lr=1e-3, end_lr=1.0, num_it=10, show_plot=False)
    assert 1e-3 <= lr <= 1.0
    with pytest.raises(ValueError, match="num_it must be a whole number of at least 10, got 5"):
        learn.lr_find(num_it=5)

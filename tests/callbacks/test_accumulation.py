"""Gradients accumulated over several batches: the numbers of large ones, and nothing left behind."""

import json
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import events_log, line_dls
from torch import Tensor, nn

from minilearn.callback import (
    Callback,
    CancelBackwardException,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
)
from minilearn.callbacks import GradientAccumulation, MixedPrecision
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD, Adam, Lookahead


def learner(dls: Any, cbs: Any = (), opt_func: Any = SGD, **options: Any) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return Learner(dls, model, F.mse_loss, opt_func, cbs=cbs, lr=0.1, **options)


def fit(learn: Learner, *args: Any, **options: Any) -> Learner:
    with learn.no_logging():
        learn.fit(*args, **options)
    return learn


def weights(learn: Learner) -> Tensor:
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def assert_as_large(small: Learner, large: Learner) -> None:
    torch.testing.assert_close(weights(small), weights(large), rtol=1e-5, atol=1e-6)


def first_rows(n: int, bs: int) -> DataLoaders:
    """The first rows of line_dls(20, 4) alone: other sizes have other numbers."""
    x, y = line_dls(20, 4, 4).train.dataset[:n]
    return DataLoaders.from_tensors(x, y, bs=bs, shuffle=False, device="cpu")


class NoLength:
    """A loader that does not say how long it is."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        return iter(self.loader)


# Rows, rows a batch, samples a step, and the rows of the large batch that it is the step of.
SIZES = {
    "whole": (32, 4, 8, 8),
    "a batch each": (32, 8, 8, 8),
    "larger batches than asked for": (32, 8, 3, 8),
    "no whole number of batches": (36, 3, 8, 9),
    "a rest": (20, 4, 8, 8),
    "a ragged rest": (21, 4, 8, 8),
    "less than a step": (6, 4, 100, 6),
}


@pytest.mark.parametrize(
    "opt_func", [SGD, Adam, lambda p, lr: Lookahead(Adam(p, lr), k=2)], ids=["SGD", "Adam", "Look"]
)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
def test_small_batches_train_as_large_ones_do(sizes: tuple[int, ...], opt_func: Any) -> None:
    rows, bs, n_acc, large = sizes
    small = fit(learner(line_dls(rows, 4, bs), GradientAccumulation(n_acc), opt_func), 3)
    assert_as_large(small, fit(learner(line_dls(rows, 4, large), opt_func=opt_func), 3))


def test_a_loader_without_a_length_has_its_rest_stepped() -> None:
    train, valid = line_dls(20, 4, 4)
    small = fit(learner([NoLength(train), valid], GradientAccumulation(8)), 3)
    assert_as_large(small, fit(learner(line_dls(20, 4, 8)), 3))


def test_batches_of_changing_sizes_count_by_their_rows() -> None:
    x, y = torch.randn(10, 3), torch.randn(10, 1)
    parts = [(x[a:b], y[a:b]) for a, b in ((0, 1), (1, 4), (4, 6), (6, 10))]
    small = fit(learner([parts], GradientAccumulation(10)), 3)
    assert_as_large(small, fit(learner([[(x, y)]]), 3))


def test_dict_batches_count_by_their_targets() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.line = nn.Linear(3, 1)

        def forward(self, a: Tensor) -> Tensor:
            return self.line(a)

    x, y = torch.randn(8, 3), torch.randn(8, 1)
    found = []
    for bs, cbs in ((2, [GradientAccumulation(8)]), (8, [])):
        loader = [{"a": x[i : i + bs], "y": y[i : i + bs]} for i in range(0, 8, bs)]
        found.append(fit(Learner([loader], Named(), F.mse_loss, SGD, cbs=cbs, lr=0.1), 3))
    assert_as_large(*found)


def test_the_recorded_loss_is_the_batchs_own() -> None:
    small = fit(learner(line_dls(8, 4, 4), GradientAccumulation(8)), 1, 1e-9)
    plain = fit(learner(line_dls(8, 4, 4)), 1, 1e-9)
    assert small.recorder.losses == pytest.approx(plain.recorder.losses)


def test_events_of_a_batch_that_waits_of_a_step_and_of_the_rest() -> None:
    log, events = events_log()
    fit(learner(line_dls(12, 4, 4), [GradientAccumulation(8), log]), 1)
    start = ["before_batch", "after_pred", "after_loss", "before_backward", "after_backward", "before_step"]
    assert events[events.index("before_train") : events.index("before_validate")] == [
        "before_train",
        *(*start, "after_cancel_batch", "after_batch"),
        *(*start, "after_step", "after_batch"),
        *(*start, "after_cancel_batch", "after_batch"),
        *("after_train", "before_step", "after_step"),
    ]


def test_the_rate_of_one_cycle_moves_with_each_batch() -> None:
    learn = learner(line_dls(32, 4, 4), GradientAccumulation(16))
    plain = learner(line_dls(32, 4, 4))
    for one in (learn, plain):
        with one.no_logging():
            one.fit_one_cycle(1, 0.1)
    assert learn.recorder.lrs == plain.recorder.lrs


def test_with_a_scaler_small_batches_train_as_large_ones_do() -> None:
    mixed = [MixedPrecision("fp16", init_scale=64.0) for _ in range(2)]
    small = fit(learner(line_dls(20, 4, 4), [mixed[0], GradientAccumulation(8)]), 3)
    large = fit(learner(line_dls(20, 4, 8), [mixed[1]]), 3)
    torch.testing.assert_close(weights(small), weights(large), rtol=2e-2, atol=2e-3)


class CancelAt(Callback):
    """Cancels something at an event of one training batch."""

    run_valid = False

    def __init__(self, event: str, cancel: type[Exception], batch: int, order: int = 0) -> None:
        self.event, self.cancel, self.batch = event, cancel, batch
        type(self).order = order

    def at(self, event: str) -> None:
        if event == self.event and self.iter == self.batch and self.epoch == 0:
            raise self.cancel

    def after_pred(self) -> None:
        self.at("after_pred")

    def before_backward(self) -> None:
        self.at("before_backward")

    def before_step(self) -> None:
        self.at("before_step")

    def after_batch(self) -> None:
        self.at("after_batch")


def test_what_is_left_is_stepped_when_training_is_cut_short() -> None:
    cut = CancelAt("after_batch", CancelTrainException, 2)
    small = fit(learner(line_dls(20, 4, 4), [GradientAccumulation(8), cut]), 1)
    assert_as_large(small, fit(learner(first_rows(12, bs=8)), 1))


def test_a_batch_cut_short_before_its_gradients_does_not_count() -> None:
    cut = CancelAt("after_pred", CancelTrainException, 3)
    small = fit(learner(line_dls(20, 4, 4), [GradientAccumulation(8), cut]), 1)
    assert_as_large(small, fit(learner(first_rows(12, bs=8)), 1))


@pytest.mark.parametrize("order", [GradientAccumulation.order - 1, GradientAccumulation.order + 1])
@pytest.mark.parametrize("cancel", [CancelBackwardException, CancelBatchException])
def test_a_batch_whose_backward_pass_is_cancelled_does_not_count(cancel: type[Exception], order: int) -> None:
    x, y = line_dls(20, 4, 4).train.dataset[:20]
    cut = CancelAt("before_backward", cancel, 1, order)
    small = fit(learner(line_dls(20, 4, 4), [GradientAccumulation(8), cut]), 1)
    rest = torch.cat([x[:4], x[8:]]), torch.cat([y[:4], y[8:]])
    large = DataLoaders.from_tensors(*rest, bs=8, shuffle=False, device="cpu")
    assert_as_large(small, fit(learner(large), 1))


def test_a_step_that_another_callback_cancels_drops_its_samples() -> None:
    x, y = line_dls(20, 4, 4).train.dataset[:20]
    cut = CancelAt("before_step", CancelStepException, 1, order=GradientAccumulation.order - 1)
    small = fit(learner(line_dls(20, 4, 4), [GradientAccumulation(8), cut]), 1)
    assert_as_large(small, fit(learner(DataLoaders.from_tensors(x[8:], y[8:], bs=8, shuffle=False, device="cpu")), 1))


@pytest.mark.parametrize("cancel", [CancelEpochException, CancelFitException, ValueError, KeyboardInterrupt])
def test_what_is_left_of_a_fit_that_was_cut_short_is_dropped(cancel: type[BaseException]) -> None:
    acc = GradientAccumulation(8)
    learn = learner(line_dls(20, 4, 4), [acc, CancelAt("after_batch", cancel, 2)])  # type: ignore[arg-type]
    with suppress(ValueError, KeyboardInterrupt):
        fit(learn, 1)
    assert acc.count == 0
    assert all(p.grad is None for p in learn.model.parameters())
    learn.remove_cb(CancelAt)
    fresh = learner(line_dls(20, 4, 4), GradientAccumulation(8))
    fresh.model.load_state_dict(learn.model.state_dict())
    assert_as_large(fit(learn, 1), fit(fresh, 1))


def test_the_rest_that_a_callback_cancels_leaves_nothing_behind() -> None:
    class Cancel(Callback):
        order = GradientAccumulation.order + 1

        def before_step(self) -> None:
            raise CancelBatchException

    learn = learner(line_dls(12, 4, 4), [GradientAccumulation(100), Cancel])
    before = weights(learn)
    assert torch.equal(weights(fit(learn, 2)), before)


def test_state_comes_back_through_json_in_the_midst_of_a_step() -> None:
    states, grads = [], []

    class Save(Callback):
        def after_batch(self) -> None:
            if self.training and self.iter == 0:
                states.append(json.dumps(acc.state_dict()))
                grads.append([p.grad.clone() for p in self.model.parameters()])

    acc = GradientAccumulation(8)
    dls = line_dls(8, 4, 4)
    whole = fit(learner(dls, [acc, Save]), 1)

    class GoOn(Callback):
        def before_train(self) -> None:
            resumed.load_state_dict(json.loads(states[0]))
            for p, grad in zip(self.model.parameters(), grads[0], strict=True):
                p.grad = grad

    resumed = GradientAccumulation(8)
    rest = fit(learner([list(dls.train)[1:], dls.valid], [resumed, GoOn]), 1)
    assert json.loads(states[0]) == {"count": 4}
    assert torch.equal(weights(whole), weights(rest))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_with_compile_the_numbers_are_eagers() -> None:
    eager = fit(learner(line_dls(20, 4, 4), GradientAccumulation(8)), 3)
    compiled = fit(learner(line_dls(20, 4, 4), GradientAccumulation(8), compile=True), 3)
    assert compiled.compiled is not None
    assert "training" in {key[0] for key in compiled.compiled._graphs}
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=1e-5, atol=1e-6)


def test_an_optimizer_that_evaluates_the_loss_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="GradientAccumulation: LBFGS evaluates the loss itself"):
        fit(learner(line_dls(), GradientAccumulation(8), torch.optim.LBFGS), 1)


def test_n_acc_is_a_whole_number_from_1_on() -> None:
    with pytest.raises(ValueError, match="n_acc must be a whole number of at least 1, got 0"):
        GradientAccumulation(0)

"""`CollectData`."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minilearn.callback import Callback, CancelBatchException
from minilearn.callbacks import CollectData, CollectDataCallback
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD


def learner() -> Learner:
    torch.manual_seed(0)
    x, y = torch.rand(20, 3), torch.rand(20, 1)
    learn = Learner(DataLoaders.from_tensors(x, y, x[:5], y[:5], bs=5, shuffle=False), nn.Linear(3, 1), F.mse_loss, SGD)
    learn.logger = lambda text: None
    return learn


def test_each_batch_is_kept_with_prediction_and_loss() -> None:
    learn, collect = learner(), CollectDataCallback()
    learn.fit(2, 0.0, cbs=collect)
    assert len(collect.data) == 2 * (4 + 1)
    xb, yb, pred, loss = collect.data[1]
    wanted = [(x, y) for x, y in learn.dls.train][1]
    assert torch.equal(xb[0], wanted[0])
    assert torch.equal(yb[0], wanted[1])
    torch.testing.assert_close(pred, learn.model(xb[0]).detach())
    torch.testing.assert_close(loss, F.mse_loss(pred, yb[0]))
    assert not pred.requires_grad


def test_only_the_last_batches_are_kept_where_that_is_asked_for() -> None:
    learn, collect = learner(), CollectData(max_batches=3)
    learn.fit(1, cbs=collect)
    assert len(collect.data) == 3
    assert torch.equal(collect.data[-1][0][0], collect.data[-1][0][0])
    assert torch.equal(collect.data[0][0][0], [x for x, _ in learn.dls.train][2])


def test_a_second_fit_begins_anew() -> None:
    learn, collect = learner(), CollectData()
    learn.add_cb(collect)
    learn.fit(1)
    learn.fit(1)
    assert len(collect.data) == 5


def test_a_cancelled_batch_has_no_prediction() -> None:
    class Cancel(Callback):
        def before_batch(self) -> None:
            if self.iter == 2:
                raise CancelBatchException

    learn, collect = learner(), CollectData()
    learn.fit(1, cbs=[collect, Cancel()])
    assert collect.data[2][2:] == (None, None)
    assert collect.data[1][2] is not None


def test_an_answer_of_another_kind_is_kept_as_it_is() -> None:
    class Answer:
        def __init__(self, value: torch.Tensor) -> None:
            self.value = value

    class Net(nn.Linear):
        def forward(self, x: torch.Tensor) -> Answer:  # type: ignore[override]
            return Answer(super().forward(x))

    learn, collect = learner(), CollectData()
    learn.model, learn.loss_func = Net(3, 1), lambda pred, y: F.mse_loss(pred.value, y)
    learn.fit(1, cbs=collect)
    assert isinstance(collect.data[0][2], Answer)


def test_less_than_one_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="max_batches must be a whole number of at least 1, got 0"):
        CollectData(0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_looks_on_at_a_compiled_step() -> None:
    def go(compile: bool) -> CollectData:
        learn, collect = learner(), CollectData()
        if compile:
            learn = Learner(learn.dls, learn.model, F.mse_loss, SGD, compile=True)
            learn.logger = lambda text: None
        learn.fit(2, 0.1, cbs=collect)
        return collect

    torch._dynamo.reset()
    for one, other in zip(go(False).data, go(True).data, strict=True):
        torch.testing.assert_close(one, other)

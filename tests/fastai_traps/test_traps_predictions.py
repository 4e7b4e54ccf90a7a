"""What bites in fastai 2.8 when a Learner predicts or validates, and does not here."""

import copy

import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset

from minilearn.callback import Callback
from minilearn.callbacks import Recorder
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.metrics import mse


class Tracker(Callback):
    "Keeps the best validation loss, from a fit's beginning on, as trackers do."

    order = Recorder.order + 1

    def before_fit(self) -> None:
        self.best = float("inf")

    def after_epoch(self) -> None:
        self.best = min(self.best, self.learn.recorder.values[-1][1] or 0.0)


def fitted() -> tuple[Learner, Tracker]:
    tracker = Tracker()
    learn = Learner(line_dls(), nn.Linear(3, 1), F.mse_loss, metrics=mse, cbs=tracker)
    with learn.no_logging():
        learn.fit(2, 0.1)
    return learn, tracker


def test_validate_and_get_preds_leave_the_recorder_and_the_trackers_best_value() -> None:
    learn, tracker = fitted()
    before = copy.deepcopy((learn.recorder.values, learn.recorder.losses, learn.recorder.lrs, tracker.best))
    learn.validate()
    learn.get_preds()
    learn.predict(torch.zeros(3))
    assert (learn.recorder.values, learn.recorder.losses, learn.recorder.lrs, tracker.best) == before


def test_validate_and_get_preds_work_with_a_tracker_before_any_fit() -> None:
    learn = Learner(line_dls(), nn.Linear(3, 1), F.mse_loss, cbs=Tracker())
    assert len(learn.validate()) == 1
    assert len(learn.get_preds()[0]) == 4


def test_a_tracker_without_a_recorder_does_not_stop_predictions() -> None:
    learn = Learner(line_dls(), nn.Linear(3, 1), F.mse_loss, cbs=Tracker(), default_cbs=False)
    assert len(learn.get_preds()[0]) == 4


X, Y = torch.randn(6, 3), torch.randn(6, 1)


def test_get_preds_and_friends_take_torchs_loaders() -> None:
    dl = torch.utils.data.DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
    learn = Learner(DataLoaders(dl, dl), nn.Linear(3, 1), F.mse_loss)
    expected = learn.model(X).detach()
    torch.testing.assert_close(learn.get_preds(ds_idx=0)[0], expected)
    torch.testing.assert_close(learn.get_preds(dl=dl)[0], expected)
    torch.testing.assert_close(learn.predict(X[0])[2], expected[0])
    assert len(learn.validate(dl=dl)) == 1
    assert learn.show_results(dl=dl).tables


def test_get_preds_takes_dict_batches() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    preds, targets = Learner(line_dls(), Named(), F.mse_loss).get_preds(dl=[{"x": X[:4], "y": Y[:4]}])
    assert torch.equal(preds, 2 * X[:4])
    assert torch.equal(targets, Y[:4])


def test_get_preds_takes_a_loader_without_a_length() -> None:
    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter(zip(X, Y, strict=True))

    dl = torch.utils.data.DataLoader(Stream(), batch_size=4)
    assert torch.equal(Learner(line_dls(), nn.Identity(), F.mse_loss).get_preds(dl=dl)[0], X)


def test_model_without_parameters_predicts() -> None:
    assert torch.equal(Learner(line_dls(), nn.Identity(), F.mse_loss).get_preds(dl=[(X, Y)])[0], X)

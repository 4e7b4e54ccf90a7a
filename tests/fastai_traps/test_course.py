"""fastai's traps around weights, data and the course of a fit: each is gone."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minilearn.callback import EVENTS, IN_BATCH, Callback
from minilearn.callbacks import CutMix, MixUp, ProgressCallback, TerminateOnNaN, TerminateOnNaNCallback, set_bn_eval
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD


def learner(loss_func: Any, **options: Any) -> Learner:
    torch.manual_seed(0)
    x, y = torch.randn(12, 1, 4, 4), torch.arange(12) % 3
    dls = DataLoaders.from_tensors(x, y, x[:4], y[:4], bs=4, shuffle=False)
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), loss_func, SGD, 0.1, **options)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda text: None
    return learn


@pytest.mark.parametrize("mix", [MixUp, CutMix])
@pytest.mark.parametrize(
    "loss_func", [nn.CrossEntropyLoss(), F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1)]
)
def test_mixup_takes_torchs_own_losses(mix: Any, loss_func: Any) -> None:
    learn = learner(loss_func)
    learn.fit(2, cbs=mix())
    assert learn.loss_func is loss_func
    assert len(learn.recorder.losses) == 6


def test_the_loss_is_the_users_after_an_error_under_mixup() -> None:
    class Fails(Callback):
        def after_pred(self) -> None:
            raise ZeroDivisionError

    learn = learner(F.cross_entropy)
    with pytest.raises(ZeroDivisionError):
        learn.fit(1, cbs=[MixUp(), Fails()])
    assert learn.loss_func is F.cross_entropy


def test_cutmix_leaves_the_data_as_it_is() -> None:
    batches = [(torch.randn(4, 1, 4, 4), torch.arange(4) % 3)]
    before = batches[0][0].clone()
    learn = learner(F.cross_entropy)
    learn.dls = DataLoaders(batches)
    learn.fit(3, cbs=CutMix())
    assert torch.equal(batches[0][0], before)


def logs(**flags: bool) -> tuple[type[Callback], list[tuple[str, bool]]]:
    """A callback that writes down each event and whether it came in training."""
    seen: list[tuple[str, bool]] = []

    def writer(event: str) -> Any:
        return lambda self: seen.append((event, self.training))

    events = {event: writer(event) for event in EVENTS if event != "after_create"}
    return type("Log", (Callback,), {**events, **flags, "acts_in_step": False, "__module__": __name__}), seen


ONLY_TRAINING = {event for event in EVENTS if "backward" in event or event.endswith("step")}


@pytest.mark.parametrize("training", [True, False])
def test_run_train_and_run_valid_hold_for_every_event_that_comes_in_both_parts(training: bool) -> None:
    log, seen = logs(run_train=training, run_valid=not training)
    learner(F.cross_entropy).fit(1, cbs=log)
    assert {(event, part) for event, part in seen if event in IN_BATCH} == {
        (event, training) for event in IN_BATCH if "cancel" not in event
    }


def test_events_of_training_alone_and_around_the_batches_come_whatever_the_flags_are() -> None:
    log, seen = logs(run_train=False, run_valid=False)
    learner(F.cross_entropy).fit(1, cbs=log)
    came = [event for event, _ in seen]
    assert set(came) == {
        event for event in EVENTS if event not in IN_BATCH and "cancel" not in event and event != "after_create"
    }
    assert set(came) >= {event for event in ONLY_TRAINING if "cancel" not in event}


def test_set_bn_eval_hands_on_its_argument_to_layers_within() -> None:
    model = nn.Sequential(nn.Sequential(nn.BatchNorm1d(3))).requires_grad_(False).eval()
    set_bn_eval(model, use_eval=False)
    assert model[0][0].training


def test_terminating_on_nan_reads_no_loss_of_its_own() -> None:
    """A loss whose value is asked for by anyone but the Recorder is an error here."""

    class Guarded(Callback):
        order = TerminateOnNaN.order - 0.5  # between the Recorder and TerminateOnNaN

        def after_loss(self) -> None:
            if self.training:
                self.learn.loss_grad = self.loss
                self.learn.loss = Unreadable()

    class Unreadable:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"read: {name}")

        def __bool__(self) -> bool:
            raise AssertionError("read")

    learn = learner(F.cross_entropy)
    learn.fit(1, cbs=[TerminateOnNaNCallback(), Guarded()])
    assert len(learn.recorder.values) == 1


def test_terminating_on_nan_ends_the_fit_at_once_on_a_cpu() -> None:
    ended = []

    class Watch(Callback):
        def after_cancel_fit(self) -> None:
            ended.append(self.train_iter)

    learn = learner(lambda pred, y: F.cross_entropy(pred, y) * float("nan"))
    learn.fit(3, cbs=[TerminateOnNaN(), Watch()])
    assert ended == [0]

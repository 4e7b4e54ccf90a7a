"""Model and batches on the device that was asked for. "meta" stands for one that is not the CPU."""

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import nn

from minilearn.callback import Callback, CancelFitException
from minilearn.callbacks import DevicePlacement
from minilearn.learner import Learner
from minilearn.tensors import default_device


class Look(Callback):
    """Keeps the devices of the first batch, then ends the fit: meta tensors hold no numbers."""

    def after_pred(self) -> None:
        self.seen = {self.x.device.type, self.y.device.type, self.pred.device.type, self.model.weight.device.type}
        raise CancelFitException


@pytest.mark.parametrize("by", ["callback", "loaders"])
def test_model_and_batch_go_where_they_are_asked_to(by: str) -> None:
    look, dls = Look(), line_dls()
    cbs: list[Callback] = [look]
    if by == "callback":
        cbs.append(DevicePlacement("meta"))
    else:
        dls.to("meta")
    learn = Learner(dls, nn.Linear(3, 1), F.mse_loss, cbs=cbs)
    with learn.no_logging():
        learn.fit(1)
    assert look.seen == {"meta"}


def test_default_is_the_best_device_there_is() -> None:
    look, dls = Look(), line_dls()
    dls.device = None
    learn = Learner(dls, nn.Linear(3, 1), F.mse_loss, cbs=look)
    with learn.no_logging():
        learn.fit(1)
    assert look.seen == {default_device().type}


def test_loss_that_holds_weights_goes_with_the_model() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.ones(2))
    learn = Learner(line_dls().to("meta"), nn.Linear(3, 2), loss, cbs=Look)
    with learn.no_logging():
        learn.fit(1)
    assert loss.weight.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_no_batch_waits_for_the_gpu() -> None:
    dls = line_dls(train_rows=400, valid_rows=40)
    dls.device = None
    learn = Learner(dls, nn.Linear(3, 1), F.mse_loss, metrics=F.l1_loss)

    class Strict(Callback):
        order = -50

        def after_batch(self) -> None:
            torch.cuda.set_sync_debug_mode("error")

        def after_train(self) -> None:
            torch.cuda.set_sync_debug_mode("default")

        after_validate = cleanup_fit = after_train

    with learn.no_logging():
        learn.fit(2, cbs=Strict)
    assert len(learn.recorder.values) == 2

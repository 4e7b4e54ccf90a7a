"""Model and batches on the device that was asked for. "meta" stands for one that is not the CPU."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import nn

from minilearn.callback import Callback, CancelFitException
from minilearn.callbacks import DevicePlacement
from minilearn.callbacks.device import SIDE_BYTES, Mover, is_on, is_room_for, is_worth_a_stream
from minilearn.data import DataLoaders, IntToFloat, digits
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


def add_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def times_ten(x: torch.Tensor) -> torch.Tensor:
    return 10 * x


class Noise:
    """Stands for any random transform."""

    train_only = True

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x + 100


class Seen(Callback):
    """Keeps the first input of training and of validation, as a callback finds it in `before_batch`."""

    def before_fit(self) -> None:
        self.first: dict[bool, torch.Tensor] = {}

    def before_batch(self) -> None:
        self.first.setdefault(self.training, self.x)


def fit_quietly(dls: DataLoaders, model: nn.Module | None = None, **kwargs: object) -> Learner:
    learn = Learner(dls, model or nn.Linear(3, 1), F.mse_loss, **kwargs)  # type: ignore[arg-type]
    with learn.no_logging():
        learn.fit(1)
    return learn


def test_transforms_are_done_in_order_before_callbacks_see_the_batch() -> None:
    seen, dls = Seen(), line_dls()
    dls.batch_tfms = [add_one, times_ten]
    fit_quietly(dls, cbs=seen)
    assert torch.equal(seen.first[True], 10 * (dls.one_batch()[0] + 1))
    assert torch.equal(seen.first[False], 10 * (next(iter(dls.valid))[0] + 1))


def test_train_only_transform_is_left_out_in_validation() -> None:
    seen, dls = Seen(), line_dls()
    dls.batch_tfms = [Noise(), times_ten]
    fit_quietly(dls, cbs=seen)
    assert torch.equal(seen.first[True], 10 * (dls.one_batch()[0] + 100))
    assert torch.equal(seen.first[False], 10 * next(iter(dls.valid))[0])


def test_targets_are_not_transformed() -> None:
    dls = line_dls()
    dls.batch_tfms = [times_ten]
    targets = []

    class Targets(Callback):
        def after_pred(self) -> None:
            targets.append(self.y)

    fit_quietly(dls, cbs=Targets)
    assert torch.equal(targets[0], dls.one_batch()[1])


def test_transforms_are_done_on_the_device() -> None:
    devices = []

    def look(x: torch.Tensor) -> torch.Tensor:
        devices.append(x.device.type)
        return x

    dls = line_dls()
    dls.batch_tfms = [look]
    look_cb = Look()
    fit_quietly(dls.to("meta"), cbs=look_cb)
    assert devices == ["meta"]


def test_transform_that_holds_weights_goes_to_the_device() -> None:
    dls, tfm = line_dls(), nn.BatchNorm1d(3)
    dls.batch_tfms = [tfm]
    fit_quietly(dls.to("meta"), cbs=Look)
    assert tfm.weight.device.type == "meta"


def test_training_on_bytes_is_training_on_their_floats() -> None:
    data = digits()
    x, valid_x = ((part * 255).to(torch.uint8) for part in (data.train_x, data.valid_x))
    weights = []
    for as_bytes in (True, False):
        torch.manual_seed(0)
        xs, tfms = ((x, valid_x), IntToFloat()) if as_bytes else ((x / 255, valid_x / 255), None)
        dls = DataLoaders.from_tensors(xs[0], data.train_y, xs[1], data.valid_y, batch_tfms=tfms)
        learn = Learner(dls, nn.Linear(784, 10), F.cross_entropy)
        with learn.no_logging():
            learn.fit(1)
        weights.append(learn.model.weight)
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    "batch",
    [(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1)), {"x": torch.zeros(2, 3), "y": torch.zeros(2, 1)}],
)
def test_transforms_for_several_inputs_are_refused(batch: object) -> None:
    dls = DataLoaders([batch], n_inp=2, batch_tfms=add_one)
    with pytest.raises(ValueError, match=r"batch_tfms are for batches with one input tensor, got .*before_batch sets"):
        fit_quietly(dls)


def test_mover_passes_through_where_there_is_no_gpu() -> None:
    xb, yb = (torch.zeros(2, 3),), (torch.zeros(2, 1),)
    moved = Mover(torch.device("cpu"))(xb, yb)
    assert moved[0] is xb
    assert moved[1] is yb


def test_only_large_pinned_tensors_are_worth_a_stream() -> None:
    large = torch.zeros(SIDE_BYTES, dtype=torch.uint8)
    assert [is_worth_a_stream(part) for part in (large, large[1:], "text", large.to("meta"))] == [False] * 4


def test_room_is_for_the_same_shape_and_dtype() -> None:
    room = torch.empty(4, 3)
    assert is_room_for(torch.zeros(4, 3), room)
    assert not is_room_for(torch.zeros(2, 3), room)  # the ragged last batch
    assert not is_room_for(torch.zeros(4, 3, dtype=torch.uint8), room)


def test_room_made_in_inference_mode_is_not_for_training() -> None:
    with torch.inference_mode():
        room = torch.empty(4, 3)
        assert is_room_for(torch.zeros(4, 3), room)
    assert not is_room_for(torch.zeros(4, 3), room)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_pinned_batches_reach_the_gpu_as_they_are() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    move, sums = Mover(device), []
    weight = torch.randn(1024, 1024, device=device)
    sizes = [512] * 20 + [300] + [512] * 5  # a ragged batch among them
    for i, rows in enumerate(sizes):
        x = torch.full((rows, 1024), float(i), pin_memory=True)
        ((on_gpu,), ()) = move((x,), ())
        for _ in range(20):
            weight = weight @ weight / 32  # keeps the device busy, so that the next copy overtakes it
        sums.append(on_gpu.mean())
        on_gpu.zero_()  # it is the batch's own
    assert torch.stack(sums).tolist() == [float(i) for i in range(len(sizes))]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_room_on_the_gpu_is_let_go_after_the_fit() -> None:
    x, y = torch.rand(4096, 1024), torch.rand(4096, 1)
    learn = fit_quietly(DataLoaders.from_tensors(x, y, bs=1024), nn.Linear(1024, 1))
    (placement,) = [cb for cb in learn.cbs if isinstance(cb, DevicePlacement)]
    assert placement._move is None


def test_a_model_that_is_where_it_should_be_is_not_moved() -> None:
    class OwnWay(nn.Linear):
        def _apply(self, fn: Any, recurse: bool = True) -> Any:
            return super()._apply(fn, recurse)

    cpu = torch.device("cpu")
    assert is_on(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), cpu)
    assert not is_on(nn.Linear(2, 2, device="meta"), cpu)
    assert not is_on(nn.Sequential(nn.Linear(2, 2), OwnWay(2, 2)), cpu)
    assert not is_on(nn.LSTM(2, 2), cpu)  # lays its weights together when it is moved

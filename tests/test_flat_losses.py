"""fastai's flat losses: the recorded figures, shapes that fit and those that do not, activation and decoding."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minilearn.losses
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.losses import (
    BaseLoss,
    BCELossFlat,
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    FocalLossFlat,
    L1LossFlat,
    LabelSmoothingCrossEntropyFlat,
    MSELossFlat,
)
from minilearn.optim import SGD

TABLE = json.loads((Path(__file__).parent / "fastai_reference" / "losses.json").read_text())
DATA = {
    name: (torch.tensor(parts["pred"]).reshape(parts["pred_shape"]), torch.tensor(parts["target"]))
    for name, parts in TABLE["data"].items()
}
OF_CLASSES = [CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropyFlat]
OF_NUMBERS = [BCEWithLogitsLossFlat, MSELossFlat, L1LossFlat]


def case_id(figure: dict[str, Any]) -> str:
    return "-".join([figure["loss"], *(f"{k}={v}" for k, v in figure["args"].items()), figure["data"]])


@pytest.mark.parametrize("figure", TABLE["figures"], ids=case_id)
def test_loss_and_its_gradient_are_the_recorded_ones(figure: dict[str, Any]) -> None:
    args = {key: torch.tensor(value) if isinstance(value, list) else value for key, value in figure["args"].items()}
    pred, target = DATA[figure["data"]]
    pred = pred.clone().requires_grad_()
    loss = getattr(minilearn.losses, figure["loss"])(**args)(pred, target)
    loss.sum().backward()
    assert type(loss) is Tensor
    values, wanted = loss.detach().flatten().tolist(), figure["value"]
    if figure["data"] == "pixels" and len(wanted) > 1:  # fastai's are in another order: height and width change places
        values, wanted = sorted(values), sorted(wanted)
    assert values == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    assert pred.grad is not None
    slope = (pred.grad.flatten() * torch.arange(1, pred.numel() + 1)).sum().item()
    assert slope == pytest.approx(figure["slope"], rel=1e-4, abs=1e-5)


def test_every_loss_has_a_figure() -> None:
    recorded = {figure["loss"] for figure in TABLE["figures"]}
    assert recorded == {name for name in minilearn.losses.__all__ if name[0].isupper()} - {"BaseLoss"}


@pytest.mark.parametrize("kind", OF_CLASSES)
def test_losses_of_pixels_are_in_the_targets_order(kind: Any) -> None:
    pred, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    rows = kind(axis=1, reduction="none")(pred, target).reshape(2, 4, 5)
    assert rows[1, 2, 3].item() == pytest.approx(kind()(pred[1, :, 2, 3][None], target[1, 2, 3][None]).item(), rel=1e-5)


def test_shares_of_classes_are_targets_too() -> None:
    pred, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4).softmax(1)
    torch.testing.assert_close(CrossEntropyLossFlat(axis=1)(pred, target), F.cross_entropy(pred, target))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool])
def test_class_indices_of_any_whole_type_are_taken(dtype: torch.dtype) -> None:
    pred, target = torch.randn(6, 2), torch.tensor([0, 1, 1, 0, 1, 0])
    assert torch.equal(CrossEntropyLossFlat()(pred, target.to(dtype)), F.cross_entropy(pred, target))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", OF_NUMBERS)
def test_predictions_of_other_types_have_targets_in_full(dtype: torch.dtype, kind: Any) -> None:
    pred, target = torch.randn(6, 1).to(dtype), torch.tensor([0, 1, 1, 0, 1, 0])
    expected = kind()(pred.double(), target)
    assert kind()(pred, target).double().item() == pytest.approx(expected.item(), rel=1e-2)


@pytest.mark.parametrize("kind", OF_CLASSES)
def test_targets_that_are_not_one_a_row_are_refused(kind: Any) -> None:
    with pytest.raises(
        ValueError,
        match=rf"{kind.__name__}: predictions are \(2, 3, 4\), with classes on axis 1, so targets must be \(2, 4\), got \(2, 3\)",
    ):
        kind(axis=1)(torch.randn(2, 3, 4), torch.zeros(2, 3).long())


@pytest.mark.parametrize("kind", OF_CLASSES)
def test_axis_that_predictions_have_not_is_refused(kind: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"{kind.__name__}: predictions are \(6, 3\), which have no classes on axis 2"
    ):
        kind(axis=2)(torch.randn(6, 3), torch.zeros(6).long())


@pytest.mark.parametrize("kind", [*OF_NUMBERS, BCELossFlat])
def test_flat_losses_of_numbers_never_broadcast(kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}: predictions are \(6, 1\) but targets are \(6, 2\)"):
        kind()(torch.rand(6, 1), torch.zeros(6, 2))


@pytest.mark.parametrize("kind", OF_NUMBERS)
def test_unflattened_losses_of_numbers_refuse_a_missing_axis(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"targets are \(6,\): they would broadcast to \(6, 6\)"):
        kind(flatten=False)(torch.randn(6, 1), torch.zeros(6))


def test_same_numbers_in_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets must be \(2, 3\), got \(3, 2\)"):
        CrossEntropyLossFlat()(torch.randn(2, 3, 4), torch.zeros(3, 2).long())


def test_unknown_reduction_is_refused_when_it_is_set() -> None:
    with pytest.raises(
        ValueError, match=r"reduction must be 'mean', 'sum' or 'none', got 'men'; did you mean 'mean'\?"
    ):
        CrossEntropyLossFlat(reduction="men")
    loss = MSELossFlat()
    with pytest.raises(ValueError, match="reduction must be"):
        loss.reduction = "average"
    loss.reduction = "sum"
    assert loss(torch.ones(3), torch.zeros(3)).item() == 3


def test_flatten_with_a_weight_of_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="flatten must be False with pos_weight"):
        BCEWithLogitsLossFlat(pos_weight=torch.ones(3), flatten=True)


@pytest.mark.parametrize("kind", OF_CLASSES)
def test_activation_and_decoding_go_by_the_classes_axis(kind: Any) -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(kind(axis=1).activation(x), x.softmax(1))
    assert torch.equal(kind(axis=1).decodes(x), x.argmax(1))


def test_binary_decoding_goes_by_the_threshold() -> None:
    loss = BCEWithLogitsLossFlat(thresh=0.7)
    share = loss.activation(torch.tensor([0.0, 0.5, 1.0]))
    assert loss.decodes(share).tolist() == [False, False, True]


def test_losses_of_numbers_leave_predictions_as_they_are() -> None:
    x = torch.randn(3)
    assert MSELossFlat().activation(x) is x
    assert MSELossFlat().decodes(x) is x


def test_weights_move_with_the_loss() -> None:
    loss = FocalLossFlat(weight=torch.ones(3))
    assert [name for name, _ in loss.named_buffers()] == ["func.weight"]


def test_any_loss_of_torchs_can_be_flattened() -> None:
    pred, target = torch.randn(6, 1), torch.randn(6)
    loss = BaseLoss(nn.SmoothL1Loss, is_2d=False, beta=0.5)
    assert torch.equal(loss(pred, target), F.smooth_l1_loss(pred[:, 0], target, beta=0.5))


def trained(loss: Any, compile: bool = False, target: Tensor | None = None) -> list[float | None]:
    torch.manual_seed(0)
    x = torch.randn(16, 3)
    y = torch.randint(0, 4, (16, 1)) if target is None else target
    learn = Learner(
        DataLoaders.from_tensors(x, y, x, y, bs=8, shuffle=False, device="cpu"),
        nn.Linear(3, 4),
        loss,
        SGD,
        compile=compile,
    )
    with learn.no_logging():
        learn.fit(2, 0.1)
    return learn.recorder.values[-1]


@pytest.mark.parametrize("kind", OF_CLASSES)
def test_targets_with_a_last_axis_of_one_are_no_false_alarm_in_a_fit(kind: Any) -> None:
    assert trained(kind())[1] is not None


@pytest.mark.parametrize("kind", OF_CLASSES)
def test_class_index_outside_the_classes_is_named_on_the_first_batch(kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}: class indices must be in \[0, 4\).* from 1 to 9"):
        trained(kind(), target=torch.tensor([1, 9] * 8))


def test_ignored_class_index_is_no_false_alarm() -> None:
    assert trained(CrossEntropyLossFlat(ignore_index=255), target=torch.tensor([1, 255] * 8))[1] is not None


def test_flat_loss_in_a_compiled_step_gives_the_same() -> None:
    assert trained(CrossEntropyLossFlat(), compile=True) == pytest.approx(trained(CrossEntropyLossFlat()), rel=1e-5)

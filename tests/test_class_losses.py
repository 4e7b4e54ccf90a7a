"""Focal loss, label smoothing and Dice against their formulas (fastai's figures: test_flat_losses)."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from minilearn.class_losses import DiceLoss, FocalLoss, LabelSmoothingCrossEntropy

PRED, TARGET = torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    torch.testing.assert_close(FocalLoss(gamma=0)(PRED, TARGET), F.cross_entropy(PRED, TARGET))


def test_label_smoothing_is_torchs() -> None:
    for eps in (0.0, 0.1, 1.0):
        expected = F.cross_entropy(PRED, TARGET, label_smoothing=eps)
        torch.testing.assert_close(LabelSmoothingCrossEntropy(eps)(PRED, TARGET), expected)


def test_dice_loss_goes_by_the_classes_axis() -> None:
    pred, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    torch.testing.assert_close(DiceLoss(axis=-1)(pred.movedim(1, -1), target), DiceLoss(axis=1)(pred, target))


def test_dice_loss_of_a_right_answer_is_zero() -> None:
    target = torch.randint(0, 3, (2, 4, 5))
    pred = 100.0 * F.one_hot(target, 3).movedim(-1, 1)
    assert DiceLoss()(pred, target).item() == pytest.approx(0, abs=1e-5)


def test_dice_loss_refuses_other_shapes() -> None:
    with pytest.raises(
        ValueError,
        match=r"DiceLoss: predictions are \(2, 3, 4, 5\), with classes on axis 1, so targets must be \(2, 4, 5\), got \(2, 1, 4, 5\)",
    ):
        DiceLoss()(torch.randn(2, 3, 4, 5), torch.zeros(2, 1, 4, 5).long())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FocalLoss(gamma=-1), "gamma must be a finite number of at least 0, got -1"),
        (lambda: LabelSmoothingCrossEntropy(eps=1.5), r"eps must be in \[0, 1\], got 1.5"),
        (lambda: DiceLoss(smooth=-1), "smooth must be a finite number of at least 0, got -1"),
        (lambda: DiceLoss(reduction="avg"), "reduction must be 'mean', 'sum' or 'none', got 'avg'"),
    ],
)
def test_bad_argument_is_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("loss", [FocalLoss(), LabelSmoothingCrossEntropy(), DiceLoss()])
def test_activation_and_decoding_are_over_the_axis_of_the_loss(loss: Any) -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(loss.activation(x), x.softmax(1))
    assert torch.equal(loss.decodes(x), x.argmax(1))

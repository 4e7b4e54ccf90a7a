"""Losses: the lessons' own against its definition, and the one that follows from a batch."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilearn.losses import (
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    activation_of,
    decodes_of,
    flat_binary_cross_entropy,
    flat_mse,
    infer_loss,
    mnist_loss,
)


def test_mnist_loss_is_the_lessons() -> None:
    pred, target = torch.randn(64, 1), torch.randint(0, 2, (64, 1))
    share = pred.sigmoid()
    expected = sum(float(1 - s if t else s) for s, t in zip(share, target, strict=True)) / 64
    assert mnist_loss(pred, target).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("pred", "target", "fix"),
    [
        ((64, 1), (64,), "targets are (64,): they would broadcast to (64, 64). Use targets.unsqueeze(1)."),
        ((64,), (64, 1), "targets are (64, 1): they would broadcast to (64, 64). Use predictions.unsqueeze(1)."),
        ((64, 1), (64, 5), "targets are (64, 5): they would broadcast to (64, 5)."),
        ((64, 2), (64, 5), "targets are (64, 5): they must have the same shape."),
    ],
)
def test_mnist_loss_refuses_other_shapes(pred: tuple[int, ...], target: tuple[int, ...], fix: str) -> None:
    with pytest.raises(ValueError, match="mnist_loss: predictions are") as caught:
        mnist_loss(torch.zeros(pred), torch.zeros(target))
    assert str(caught.value).endswith(fix)


ONE = torch.randn(6, 1)
ZERO_ONE = torch.tensor([0, 1, 1, 0, 1, 0])
CHOICES = [
    (ONE, ZERO_ONE.unsqueeze(1), flat_binary_cross_entropy),
    (ONE, ZERO_ONE, flat_binary_cross_entropy),
    (ONE, ZERO_ONE.float().unsqueeze(1), flat_binary_cross_entropy),
    (ONE, ZERO_ONE.bool(), flat_binary_cross_entropy),
    (ONE.squeeze(1), ZERO_ONE, flat_binary_cross_entropy),
    (torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1]), F.cross_entropy),
    (torch.randn(6, 4), ZERO_ONE, F.cross_entropy),
    (torch.randn(6, 4, 2, 2), torch.randint(0, 4, (6, 2, 2)), F.cross_entropy),
    (ONE, torch.randn(6, 1), flat_mse),
    (ONE, torch.randn(6), flat_mse),
    (torch.randn(6, 3), torch.randn(6, 3), flat_mse),
    (torch.randn(6, 3), torch.zeros(6, 3), flat_mse),
]


@pytest.mark.parametrize(("pred", "target", "expected"), CHOICES)
def test_loss_follows_from_the_batch(pred: Tensor, target: Tensor, expected: object) -> None:
    loss, why = infer_loss(pred, (target,))
    assert loss is expected
    assert loss(pred, target).ndim == 0
    assert why.startswith("loss_func: ")
    assert "choose another with Learner(..., loss_func=...)" in why


@pytest.mark.parametrize(
    ("pred", "yb", "seen"),
    [
        (ONE, (torch.tensor([0, 1, 2, 3, 4, 5]),), "float32 (6, 1) and targets are int64 (6,)"),
        (torch.randn(6, 4), (torch.randn(6),), "float32 (6, 4) and targets are float32 (6,)"),
        (torch.randn(6, 4), (torch.randint(0, 4, (6, 1)),), "float32 (6, 4) and targets are int64 (6, 1)"),
        ((ONE, ONE), (ZERO_ONE,), "(float32 (6, 1), float32 (6, 1)) and targets are int64 (6,)"),
        (ONE, (ZERO_ONE, ZERO_ONE), "float32 (6, 1) and targets are (int64 (6,), int64 (6,))"),
        (ONE.long(), (ZERO_ONE,), "int64 (6, 1) and targets are int64 (6,)"),
    ],
)
def test_anything_else_says_what_was_seen(pred: object, yb: tuple[Tensor, ...], seen: str) -> None:
    with pytest.raises(ValueError, match="no loss follows from this batch") as caught:
        infer_loss(pred, yb)
    assert f"predictions are {seen}." in str(caught.value)
    assert str(caught.value).endswith("Give Learner(..., loss_func=...).")


def test_flat_losses_are_torchs_on_a_column() -> None:
    target = ZERO_ONE.float().unsqueeze(1)
    assert torch.equal(flat_binary_cross_entropy(ONE, ZERO_ONE), F.binary_cross_entropy_with_logits(ONE, target))
    assert torch.equal(flat_mse(ONE, target.squeeze(1)), F.mse_loss(ONE, target))


@pytest.mark.parametrize("loss", [flat_mse, flat_binary_cross_entropy])
def test_flat_losses_refuse_other_shapes(loss: object) -> None:
    with pytest.raises(ValueError, match=r"predictions are \(6, 1\) but targets are \(5,\)"):
        loss(ONE, torch.zeros(5))  # type: ignore[operator]


@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        nn.CrossEntropyLoss(),
        partial(F.cross_entropy, label_smoothing=0.1),
        CrossEntropyLossFlat(axis=1),
    ],
)
def test_cross_entropys_predictions_are_read_by_softmax_and_the_largest(loss: Any) -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(activation_of(loss)(x), x.softmax(1))
    assert torch.equal(decodes_of(loss)(x.softmax(1)), x.argmax(1))


@pytest.mark.parametrize(
    "loss",
    [
        F.binary_cross_entropy_with_logits,
        nn.BCEWithLogitsLoss(),
        mnist_loss,
        flat_binary_cross_entropy,
        partial(partial(mnist_loss)),
        partial(BCEWithLogitsLossFlat()),
    ],
)
def test_binary_losses_predictions_are_read_by_sigmoid_and_a_half(loss: Any) -> None:
    x = torch.tensor([-1.0, 0.0, 0.1])
    assert torch.equal(activation_of(loss)(x), x.sigmoid())
    assert decodes_of(loss)(x.sigmoid()).tolist() == [False, False, True]


@pytest.mark.parametrize("loss", [None, F.mse_loss, flat_mse, nn.L1Loss(), lambda pred, target: pred.mean()])
def test_other_losses_predictions_are_read_as_they_are(loss: Any) -> None:
    x = torch.randn(3)
    assert activation_of(loss)(x) is x
    assert decodes_of(loss)(x) is x


def test_labels_taken_for_numbers_are_said() -> None:
    loss, why = infer_loss(torch.zeros(4, 3), (torch.tensor([[0.0, 1.0, 1.0]] * 4),))
    assert loss is flat_mse
    assert why.endswith("They are all 0 or 1: for labels, give loss_func=BCEWithLogitsLossFlat()")
    assert "all 0 or 1" not in infer_loss(torch.zeros(4, 3), (torch.full((4, 3), 0.5),))[1]

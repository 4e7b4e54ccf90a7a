"""fastai's traps in metrics and losses are gone."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import nn

import minilearn.metrics as m
from minilearn.callback import Callback
from minilearn.learner import Learner
from minilearn.losses import DiceLoss, FocalLoss, FocalLossFlat, LabelSmoothingCrossEntropyFlat


def batch(pred: Any, target: Any) -> Any:
    return SimpleNamespace(pred=pred, yb=(target,), xb=(pred,))


def _hidden(pred: Any, target: Any) -> float:
    return 0.0


def test_no_column_is_called_none_or_by_a_private_name() -> None:
    given = [
        m.rmse,
        m.exp_rmspe,
        m.AccumMetric(_hidden),
        _hidden,
        m.Perplexity,
        m.ValueMetric(lambda: 1.0),
        m.AvgMetric(_hidden),
    ]
    names = [metric.name for metric in m.as_metrics(given)]
    assert names == ["rmse", "exp_rmspe", "hidden", "hidden_2", "perplexity", "lambda", "hidden_3"]


def test_every_factorys_column_has_a_readable_name() -> None:
    factories = [
        getattr(m, name)
        for name in m.__all__
        if getattr(m, name).__module__.split(".")[-1] in {"classes", "labels", "regression"}
    ]
    names = [make(2.0).name if "Beta" in make.__name__ else make().name for make in factories]
    assert all(name.islower() and name.replace("_", "").replace("1", "").replace("2", "").isalpha() for name in names)


@pytest.mark.parametrize("kind", [FocalLoss, FocalLossFlat])
def test_focal_loss_leaves_the_class_weight_out_of_its_focusing_factor(kind: Any) -> None:
    pred, target, weight = torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0]), torch.tensor([0.2, 1.0, 5.0])
    share = pred.softmax(1)[range(8), target]
    expected = (weight[target] * (1 - share) ** 2 * -share.log()).mean()
    torch.testing.assert_close(kind(weight=weight)(pred, target), expected)


def test_a_threshold_of_zero_is_a_threshold() -> None:
    metric = m.AccumMetric(lambda pred, target: (pred == target).float().mean(), thresh=0.0, name="right")
    metric.accumulate(batch(torch.tensor([-2.0, 3.0, 0.0]), torch.tensor([False, True, True])))
    assert metric.value == 1


def test_an_argmax_over_axis_zero_is_one() -> None:
    metric = m.AccumMetric(lambda pred, target: (pred == target).float().mean(), dim_argmax=0, name="right")
    metric.accumulate(batch(torch.tensor([[1.0, 5.0], [2.0, 3.0]]), torch.tensor([1, 0])))
    assert metric.value == 1


def test_multi_label_areas_of_probabilities_are_those_of_logits() -> None:
    pred, target = torch.randn(30, 3), torch.randint(0, 2, (30, 3))
    for make in (m.RocAucMulti, m.APScoreMulti):
        of_logits, of_shares = make(), make(sigmoid=False)
        of_logits.accumulate(batch(pred, target))
        of_shares.accumulate(batch(pred.sigmoid(), target))
        assert of_logits.value == pytest.approx(of_shares.value, rel=1e-6)


def test_brier_score_is_of_probabilities_not_of_answers() -> None:
    pred, target = torch.randn(30, 2), torch.randint(0, 2, (30,))
    metric = m.BrierScore()
    metric.accumulate(batch(pred, target))
    assert metric.value == pytest.approx((pred.softmax(1)[:, 1] - target).square().mean().item(), rel=1e-6)


def test_one_logit_has_a_roc_curve_of_its_own() -> None:
    metric = m.RocAucBinary()
    metric.accumulate(batch(torch.tensor([[-1.0], [2.0], [0.5]]), torch.tensor([0, 1, 0])))
    assert metric.value == 1


def test_two_learners_share_no_sums_of_perplexity() -> None:
    (one,), (other,) = m.as_metrics(m.perplexity), m.as_metrics(m.perplexity)
    assert one is not other


def test_missing_part_of_the_loss_is_an_error_not_zero() -> None:
    (metric,) = m.LossMetrics("style")
    with pytest.raises(ValueError, match="LossMetric: the loss function, mse_loss, has no attribute 'style'"):
        metric.accumulate(SimpleNamespace(pred=None, yb=(torch.zeros(2),), xb=(), loss_func=F.mse_loss))  # type: ignore[arg-type]


def test_top_k_goes_by_the_classes_axis() -> None:
    pred, target = torch.randn(4, 5, 6), torch.randint(0, 5, (4, 6))
    expected = m.top_k_accuracy(pred.movedim(1, -1), target, k=2)
    assert torch.equal(m.top_k_accuracy(pred, target, k=2, axis=1), expected)
    with pytest.raises(ValueError, match="k must be at most the number of classes, 5, got 6"):
        m.top_k_accuracy(pred, target, k=6, axis=1)


def test_activation_of_label_smoothing_and_dice_is_over_the_axis_of_the_loss() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(LabelSmoothingCrossEntropyFlat(axis=1).decodes(x), x.argmax(1))
    assert DiceLoss(axis=2)(torch.randn(2, 3, 4), torch.zeros(2, 3).long()).ndim == 0


def test_metric_of_a_callbacks_own_survives_a_validation_within_the_fit() -> None:
    class Counts(Callback):
        order = 60

        def count(self) -> float:
            return float(self.train_iter)

        def after_step(self) -> None:
            self.learn.validate()

    counts = Counts()
    learn = Learner(line_dls(), nn.Linear(3, 1), F.mse_loss, metrics=m.ValueMetric(counts.count, "steps"), cbs=counts)
    with learn.no_logging():
        learn.fit(1)
    assert learn.recorder.values == [
        [pytest.approx(learn.recorder.values[0][0]), pytest.approx(learn.recorder.values[0][1]), 2.0]
    ]

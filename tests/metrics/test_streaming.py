"""Metrics: each against its definition, and averages that count every row the same."""

import copy
import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import line_dls
from torch import Tensor, nn

from minilearn.data import DataLoaders, digits
from minilearn.learner import Learner

from minilearn.vision import torchvision  # isort: skip  # noqa: F401 -- torchmetrics imports it
import torchmetrics  # isort: skip

from minilearn.metrics import (
    AvgLoss,
    AvgMetric,
    AvgSmoothLoss,
    LossMetrics,
    Metric,
    Perplexity,
    ValueMetric,
    accuracy,
    as_metrics,
    batch_accuracy,
    error_rate,
    mae,
    mse,
    perplexity,
    rmse,
)
from minilearn.metrics.joining import is_average


def batch(pred: Tensor, target: Tensor, loss: float = 0.0) -> Any:
    return SimpleNamespace(pred=pred, yb=(target,), xb=(pred,), loss=torch.tensor(loss))


def test_batch_accuracy_is_the_share_right_at_a_half() -> None:
    pred, target = torch.tensor([[3.0], [-3.0], [0.1], [-0.1]]), torch.tensor([[1], [0], [0], [0]])
    assert batch_accuracy(pred, target).item() == 0.75


def test_accuracy_and_error_rate_are_of_the_largest() -> None:
    pred, target = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]]), torch.tensor([1, 1, 1])
    assert accuracy(pred, target).item() == pytest.approx(2 / 3)
    assert error_rate(pred, target).item() == pytest.approx(1 / 3)
    assert accuracy(pred.T, target, axis=0).item() == pytest.approx(2 / 3)


def test_regression_metrics_are_their_formulas() -> None:
    pred, target = torch.randn(10, 2, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)
    torch.testing.assert_close(mse(pred, target), nn.functional.mse_loss(pred, target))
    torch.testing.assert_close(rmse(pred, target), nn.functional.mse_loss(pred, target).sqrt())
    torch.testing.assert_close(mae(pred, target), nn.functional.l1_loss(pred, target))


@pytest.mark.parametrize("metric", [batch_accuracy, mse, rmse, mae])
def test_shapes_that_would_broadcast_are_refused(metric: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"{metric.__name__}: predictions are \(64, 1\) but targets are \(64,\): they would"
    ):
        metric(torch.zeros(64, 1), torch.zeros(64))


@pytest.mark.parametrize("metric", [accuracy, error_rate])
def test_class_metrics_refuse_targets_with_an_axis_too_many(metric: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"accuracy: predictions are \(64, 10\) but targets are \(64, 1\): .* Use targets\.squeeze\(1\)",
    ):
        metric(torch.zeros(64, 10), torch.zeros(64, 1))


@pytest.mark.parametrize("shape", [(64, 1), (64,)])
def test_accuracy_of_one_logit_points_to_batch_accuracy(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Use batch_accuracy for one logit"):
        accuracy(torch.zeros(shape), torch.zeros(64))


def test_average_counts_each_row_the_same() -> None:
    metric = AvgMetric(mse)
    pred, target = torch.randn(10), torch.randn(10)
    for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
        metric.accumulate(batch(pred[rows], target[rows]))
    assert metric.value == pytest.approx(mse(pred, target).item(), rel=1e-6)


def test_rmse_as_a_column_is_the_root_of_the_whole_mean() -> None:
    (metric,) = as_metrics(rmse)
    pred, target = torch.randn(10), torch.randn(10)
    for rows in (slice(0, 7), slice(7, 10)):
        metric.accumulate(batch(pred[rows], target[rows]))
    assert metric.value == pytest.approx(rmse(pred, target).item(), rel=1e-6)
    assert metric.name == "rmse"


def test_average_over_many_batches_does_not_drift() -> None:
    metric = AvgMetric(lambda pred, target: pred[0])
    value = torch.tensor([0.1])
    for _ in range(100_000):
        metric.accumulate(batch(value, value))
    assert metric.value == pytest.approx(float(value[0]), rel=1e-9)


def test_metric_of_nothing_is_none() -> None:
    assert AvgMetric(mse).value is None
    assert AvgLoss().value is None
    assert AvgSmoothLoss().value is None


def test_reset_forgets() -> None:
    metric = AvgLoss()
    metric.accumulate(batch(torch.zeros(2), torch.zeros(2), loss=5.0))
    metric.reset()
    metric.accumulate(batch(torch.zeros(2), torch.zeros(2), loss=1.0))
    assert metric.value == 1.0


def test_smooth_loss_is_debiased() -> None:
    metric = AvgSmoothLoss(beta=0.9)
    average = 0.0
    for i, loss in enumerate([3.0, 2.0, 1.0], start=1):
        metric.accumulate(batch(torch.zeros(1), torch.zeros(1), loss=loss))
        average = 0.9 * average + 0.1 * loss
        assert metric.value == pytest.approx(average / (1 - 0.9**i), rel=1e-6)
    assert metric.count == 3


def test_metric_may_give_a_plain_number() -> None:
    metric = AvgMetric(lambda pred, target: 0.25)
    metric.accumulate(batch(torch.zeros(2), torch.zeros(2)))
    assert metric.value == 0.25


def test_metric_that_gives_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"metric 'wide' must give one number a batch, got shape \(2,\)"):
        AvgMetric(lambda pred, target: pred, name="wide").accumulate(batch(torch.zeros(2), torch.zeros(2)))


class Count(Metric):
    """How many batches there were."""

    def reset(self) -> None:
        self.n = 0

    def accumulate(self, learn: Any) -> None:
        self.n += 1

    @property
    def value(self) -> float:
        return float(self.n)


class Callable_:
    """A metric as an object with a call."""

    def __call__(self, pred: Tensor, target: Tensor) -> Tensor:
        return mse(pred, target)


def test_every_column_has_a_readable_name() -> None:
    metrics = [mse, partial(accuracy, axis=1), lambda p, t: 0.0, lambda p, t: 1.0, Count, Count(), Callable_(), AvgLoss]
    names = [metric.name for metric in as_metrics(metrics)]
    assert names == ["mse", "accuracy", "lambda", "lambda_2", "Count", "Count_2", "Callable_", "loss"]


def test_metrics_of_every_kind_in_a_learner() -> None:
    torch.manual_seed(0)
    theirs = torchmetrics.classification.MulticlassF1Score(num_classes=10, average="micro")
    dls = DataLoaders.from_tensors(*digits())
    learn = Learner(dls, nn.Linear(784, 10), lr=0.01, metrics=[accuracy, Count, theirs])
    with learn.no_logging():
        learn.fit(2)
    names, row = learn.recorder.metric_names, learn.recorder.values[-1]
    assert names == ["epoch", "train_loss", "valid_loss", "accuracy", "Count", "MulticlassF1Score", "time"]
    assert row[3] == len(dls.valid)
    assert row[4] == pytest.approx(row[2], rel=1e-6)  # micro-averaged F1 of single labels is accuracy


def test_metrics_start_anew_in_each_epoch() -> None:
    learn = Learner(line_dls(), nn.Linear(3, 1), nn.functional.mse_loss, metrics=Count)
    with learn.no_logging():
        learn.fit(3)
    assert [row[2] for row in learn.recorder.values] == [1.0, 1.0, 1.0]


def test_rmse_in_a_partial_is_still_the_root_of_the_whole_mean() -> None:
    (metric,) = as_metrics(partial(rmse))
    pred, target = torch.randn(10), torch.randn(10)
    for rows in (slice(0, 7), slice(7, 10)):
        metric.accumulate(batch(pred[rows], target[rows]))
    assert metric.value == pytest.approx(rmse(pred, target).item(), rel=1e-6)


def test_collection_of_torchmetrics_is_a_column_for_each() -> None:
    collection = torchmetrics.MetricCollection([torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError()])
    pred, target = torch.randn(10), torch.randn(10)
    for given in (collection, [collection]):
        metrics = as_metrics(given)
        assert [metric.name for metric in metrics] == ["MeanSquaredError", "MeanAbsoluteError"]
        for metric in metrics:
            metric.reset()
            for rows in (slice(0, 7), slice(7, 10)):
                metric.accumulate(batch(pred[rows], target[rows]))
        assert metrics[0].value == pytest.approx(mse(pred, target).item(), rel=1e-6)
        assert metrics[1].value == pytest.approx(mae(pred, target).item(), rel=1e-6)


def test_collection_that_was_used_before_counts_each_row_once() -> None:
    f1, precision = (
        kind(num_classes=3, average="macro")
        for kind in (torchmetrics.classification.MulticlassF1Score, torchmetrics.classification.MulticlassPrecision)
    )
    collection = torchmetrics.MetricCollection([f1, precision])
    pred, target = torch.randn(10, 3), torch.randint(0, 3, (10,))
    collection.update(pred, target)
    expected = {name: float(value) for name, value in collection.compute().items()}
    for metric in as_metrics(collection):
        metric.reset()
        metric.accumulate(batch(pred, target))
        assert metric.value == pytest.approx(expected[metric.name])


def test_dict_of_metrics_is_refused() -> None:
    with pytest.raises(TypeError, match=r"a metric must be a function .* got \{'mse'"):
        as_metrics({"mse": mse})


def test_torchmetrics_object_that_gives_several_numbers_is_named() -> None:
    theirs = torchmetrics.classification.MulticlassAccuracy(num_classes=3, average="none")
    (metric,) = as_metrics(theirs)
    metric.reset()
    metric.accumulate(batch(torch.randn(4, 3), torch.tensor([0, 1, 2, 0])))
    with pytest.raises(ValueError, match=r"metric 'MulticlassAccuracy' must give one number, got shape \(3,\)"):
        metric.value  # noqa: B018


class NamedInFastaisManner(Metric):
    "Its name is a property that cannot be set."

    def __init__(self, name: str | None) -> None:
        self._name = name

    @property
    def name(self) -> str | None:
        return self._name


def test_metric_may_have_its_name_as_a_property() -> None:
    metrics = as_metrics([NamedInFastaisManner("gap"), NamedInFastaisManner("gap"), NamedInFastaisManner(None)])
    assert [metric.name for metric in metrics] == ["gap", "gap_2", "NamedInFastaisManner"]
    assert [metric.name for metric in as_metrics(metrics)] == ["gap", "gap_2", "NamedInFastaisManner"]
    assert all(isinstance(metric, NamedInFastaisManner) for metric in metrics)


def test_perplexity_is_the_exponential_of_the_whole_average() -> None:
    (metric,) = as_metrics(perplexity)
    metric.accumulate(batch(torch.zeros(3), torch.zeros(3), loss=1.0))
    metric.accumulate(batch(torch.zeros(1), torch.zeros(1), loss=2.0))
    assert metric.value == pytest.approx(math.exp(1.25))


def test_perplexity_of_a_huge_loss_is_infinite() -> None:
    metric = Perplexity()
    metric.accumulate(batch(torch.zeros(1), torch.zeros(1), loss=1e4))
    assert metric.value == math.inf


class TwoParts(nn.Module):
    """A loss that leaves its two parts on itself."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        self.near, self.far = (pred - target).abs().mean(), (pred - target).square().mean()
        return self.near + self.far


def test_parts_of_the_loss_are_columns_that_add_up() -> None:
    dls = line_dls(valid_rows=7)
    learn = Learner(dls, nn.Linear(3, 1), TwoParts(), metrics=LossMetrics("near,far", "l1,l2"))
    with learn.no_logging():
        learn.fit(1)
    assert learn.recorder.metric_names[2:-1] == ["valid_loss", "l1", "l2"]
    _, loss, near, far = learn.recorder.values[0]
    assert near + far == pytest.approx(loss, rel=1e-6)  # type: ignore[operator]


def test_parts_of_the_loss_need_as_many_headings() -> None:
    with pytest.raises(ValueError, match="nms must have a name for each of attrs, 2, got 1"):
        LossMetrics("near,far", "l1")


def test_value_of_somebody_elses_is_read_at_the_end() -> None:
    figures = iter([0.5, None])
    (metric,) = as_metrics(ValueMetric(lambda: next(figures), "share"))
    metric.reset()
    metric.accumulate(batch(torch.zeros(1), torch.zeros(1)))
    assert (metric.name, metric.value, metric.value) == ("share", 0.5, None)


def test_three_of_one_name_are_numbered() -> None:
    assert [metric.name for metric in as_metrics([mse, mse, mse])] == ["mse", "mse_2", "mse_3"]


def test_copy_of_an_average_has_sums_of_its_own() -> None:
    metric = AvgMetric(mse)
    metric.accumulate(batch(torch.zeros(2), torch.ones(2)))
    twin = copy.deepcopy(metric)
    twin.accumulate(batch(torch.zeros(2), torch.zeros(2)))
    assert (metric.value, twin.value) == (1.0, 0.5)


def test_metrics_are_shown_by_class_and_name() -> None:
    assert repr(AvgMetric(mse)) == "<AvgMetric mse>"


class Doubled(AvgMetric):
    @property
    def value(self) -> float | None:
        figure = super().value
        return None if figure is None else 2 * figure


class JoinedElsewise(AvgMetric):
    def join(self) -> None:
        super().join()


@pytest.mark.parametrize(
    ("metric", "same_in_all"),
    [
        (AvgMetric(mse), True),
        (AvgLoss(), True),
        (Perplexity(), True),
        (AvgSmoothLoss(), False),
        (ValueMetric(float, "share"), False),
        (Doubled(mse), False),
        (JoinedElsewise(mse), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Metric) else str(value),
)
def test_figures_of_sums_alone_are_the_same_in_all_processes_by_themselves(metric: Metric, same_in_all: bool) -> None:
    assert is_average(metric) == same_in_all

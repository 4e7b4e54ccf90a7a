"""Rows that are kept to the end: nothing lost over chunks, memory that can be bounded, arguments that count."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import minilearn.metrics.accumulated as accumulated
from minilearn.metrics import AccumMetric, ActivationType, skm_to_fastai


def batch(pred: Any, target: Any) -> Any:
    return SimpleNamespace(pred=pred, yb=target if isinstance(target, tuple) else (target,), xb=(pred,))


def fed(metric: AccumMetric, pred: Tensor, target: Tensor, size: int = 4) -> AccumMetric:
    for p, t in zip(pred.split(size), target.split(size), strict=True):
        metric.accumulate(batch(p, t))
    return metric


def largest(pred: Tensor, target: Tensor) -> Tensor:
    return (pred - target).abs().max()


def test_function_is_given_all_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulated, "CHUNK_NUMBERS", 20)
    seen: list[Tensor] = []
    metric = AccumMetric(lambda pred, target: seen.extend([pred, target]) or 0)
    pred, target = torch.randn(50), torch.randn(50)
    assert fed(metric, pred, target).value == 0
    assert torch.equal(seen[0], pred)
    assert torch.equal(seen[1], target)


def test_answers_and_targets_that_are_written_over_are_kept_as_they_were() -> None:
    answer, given = torch.empty(4, 1), torch.empty(4, 1)
    seen: list[Tensor] = []
    metric = AccumMetric(lambda pred, target: seen.extend([pred, target]) or 0)
    pred, target = torch.randn(20), torch.randn(20)
    for p, t in zip(pred.split(4), target.split(4), strict=True):
        metric.accumulate(batch(answer.copy_(p[:, None]), given.copy_(t[:, None])))
    assert metric.value == 0
    assert torch.equal(seen[0], pred)
    assert torch.equal(seen[1], target)


def test_many_small_batches_wait_in_a_bounded_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulated, "CHUNK_BATCHES", 3)
    metric = AccumMetric(largest)
    for _ in range(100):
        metric.accumulate(batch(torch.zeros(1), torch.ones(1)))
        assert len(metric._waiting) < 3
    assert metric.value == 1


@pytest.mark.parametrize("max_rows", [1, 7, 10, 49])
def test_rows_past_the_bound_are_let_go_evenly(max_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulated, "CHUNK_BATCHES", 1)
    seen: list[Tensor] = []
    metric = AccumMetric(lambda pred, target: seen.append(pred) or 0, max_rows=max_rows)
    rows = torch.arange(50.0)
    for p in rows.split(6):
        metric.accumulate(batch(p, p))
        assert metric._rows <= max_rows
    assert metric.value == 0
    stride = int(seen[0][1] - seen[0][0]) if len(seen[0]) > 1 else 64
    assert torch.equal(seen[0], rows[::stride])
    assert len(rows[:: stride // 2]) > max_rows


def test_metric_of_no_rows_is_none() -> None:
    assert AccumMetric(largest).value is None


def test_reset_forgets_rows() -> None:
    metric = fed(AccumMetric(largest, max_rows=3), torch.zeros(8), torch.ones(8))
    assert metric.value == 1
    metric.reset()
    assert fed(metric, torch.zeros(8), torch.full((8,), 3.0)).value == 3
    assert metric.value == 3


def test_arrays_come_with_the_targets_first_as_scikit_learn_has_it() -> None:
    def difference(y_true: Any, y_pred: Any, scale: float) -> float:
        assert type(y_true).__name__ == type(y_pred).__name__ == "ndarray"
        return float((y_true - y_pred).max() * scale)

    metric = AccumMetric(difference, to_np=True, invert_arg=True, scale=10.0)
    assert fed(metric, torch.zeros(6), torch.ones(6)).value == 10
    assert metric.name == "difference"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"activation": "softmax", "flatten": False}, lambda x: x.softmax(-1)),
        ({"activation": ActivationType.Softmax, "dim_argmax": 0, "flatten": False}, lambda x: x.softmax(0)),
        ({"activation": "sigmoid", "flatten": False}, lambda x: x.sigmoid()),
        ({"activation": "binarysoftmax", "flatten": False}, lambda x: x.softmax(-1)[:, -1]),
        ({"dim_argmax": -1}, lambda x: x.argmax(-1)),
        ({"dim_argmax": 1, "thresh": 1}, lambda x: x.argmax(1) >= 1),
        ({"activation": "sigmoid", "thresh": 0.4, "flatten": False}, lambda x: x.sigmoid() >= 0.4),
    ],
)
def test_predictions_are_made_ready_as_asked(args: dict[str, Any], expected: Any) -> None:
    seen: list[Tensor] = []
    metric = AccumMetric(lambda pred, target: seen.append(pred) or 0, **args)
    pred = torch.randn(6, 2)
    metric.accumulate(batch(pred, torch.zeros(6)))
    assert metric.value == 0
    assert torch.equal(seen[0], expected(pred))


def test_predictions_of_mixed_precision_are_kept_in_full() -> None:
    metric = AccumMetric(largest, to_np=True)
    metric.func = lambda pred, target: str(pred.dtype) == "float32"
    metric.accumulate(batch(torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3)))
    assert metric.value == 1


def test_called_with_a_batch_it_gives_its_figure_and_forgets_it() -> None:
    metric = AccumMetric(largest)
    assert metric(torch.zeros(3), torch.ones(3)) == 1
    assert metric.value is None


@pytest.mark.parametrize(
    ("pred", "target", "flatten", "wanted"),
    [((6, 2), (6,), True, "numbers"), ((5, 2), (6,), False, "rows")],
)
def test_rows_that_do_not_match_are_refused_in_their_batch(pred: Any, target: Any, flatten: bool, wanted: str) -> None:
    with pytest.raises(ValueError, match=rf"largest: predictions are .* as many {wanted}\. dim_argmax"):
        AccumMetric(largest, flatten=flatten).accumulate(batch(torch.zeros(pred), torch.zeros(target)))


def test_several_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="largest: needs one tensor of predictions and one of targets"):
        AccumMetric(largest).accumulate(batch(torch.zeros(3), (torch.zeros(3), torch.zeros(3))))


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"activation must be one of .*got 'sigmoit'; did you mean 'sigmoid'\?"):
        AccumMetric(largest, activation="sigmoit")


@pytest.mark.parametrize("value", [torch.zeros(2), [1.0, 2.0], {"a": 1.0}])
def test_function_that_gives_several_numbers_is_named(value: Any) -> None:
    metric = fed(AccumMetric(lambda pred, target: value, name="wide"), torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="metric 'wide' must give one number, got"):
        metric.value  # noqa: B018


def test_copy_has_rows_of_its_own_and_the_same_function() -> None:
    metric = fed(AccumMetric(largest), torch.zeros(4), torch.ones(4))
    twin = copy.deepcopy(metric)
    twin.reset()
    assert (metric.value, twin.value, twin.func) == (1, None, largest)


def test_function_of_scikit_learns_kind_is_over_the_largest_class() -> None:
    def share_right(y_true: Any, y_pred: Any) -> float:
        return float((y_true == y_pred).mean())

    pred, target = torch.randn(20, 3), torch.randint(0, 3, (20,))
    right = (pred.argmax(1) == target).float().mean().item()
    assert fed(skm_to_fastai(share_right), pred, target).value == pytest.approx(right)
    sure = skm_to_fastai(share_right, thresh=0.5)
    assert fed(sure, pred[:, 0], target).value == pytest.approx(((pred[:, 0] >= 0) == target).float().mean().item())

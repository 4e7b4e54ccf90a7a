"""fastai's metrics of numbers against numbers, over torchmetrics; the columns are named as in fastai."""

from typing import Any

import torch
from torch import Tensor

from minilearn.errors import same_shape
from minilearn.metrics.accumulated import AccumMetric, ActivationType, activated
from minilearn.metrics.factory import refuse
from minilearn.metrics.streaming import Metric
from minilearn.metrics.torch_metric import MadeOnFirstBatch, Prepare, torchmetrics_for


def R2Score(sample_weight: None = None) -> Metric:
    """The share of the targets' variance that the predictions explain, at most 1; 0 for the targets' mean.

    Args:
        sample_weight: not carried over.
    Raises:
        ValueError: `sample_weight` is given; in the first batch, predictions and targets have different shapes.
        ModuleNotFoundError: torchmetrics is not installed.
    """
    return _of_numbers("R2Score", "r2_score", sample_weight)


def ExplainedVariance(sample_weight: None = None) -> Metric:
    """`R2Score`, but that a constant error counts nothing; arguments and errors as there."""
    return _of_numbers("ExplainedVariance", "explained_variance_score", sample_weight)


def PearsonCorrCoef(
    dim_argmax: int | None = None,
    activation: str = ActivationType.No,
    thresh: float | None = None,
    name: str = "pearsonr",
    **kwargs: Any,
) -> Metric:
    """Pearson's correlation of predictions and targets, in [-1, 1].

    Args:
        dim_argmax: the axis over which the largest is taken first.
        activation: what is done with predictions first, an `ActivationType`.
        thresh: makes predictions 1 where they are at least this, else 0.
        name: the column's heading.
        kwargs: others of `AccumMetric` are not carried over: nothing is kept here.
    """
    refuse(name, **kwargs)

    def prepare(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor, int]:
        return _numbers(name)(activated(pred, activation, dim_argmax, thresh), target)

    return MadeOnFirstBatch(name, lambda _: torchmetrics_for("PearsonCorrCoef").PearsonCorrCoef(), prepare)


def SpearmanCorrCoef(
    dim_argmax: int | None = None, axis: int = 0, nan_policy: str = "propagate", **kwargs: Any
) -> Metric:
    """Spearman's rank correlation of predictions and targets, in [-1, 1]; equal ones share their mean rank.

    Ranks need all rows: they are kept in the CPU's memory, at most `max_rows` of them if given (`AccumMetric`). It
    stands on torch alone: torchmetrics' sums of ranks overflow where very many are equal (in its version 1.9).

    Args:
        dim_argmax: the axis over which the largest is taken first.
        axis: 0; others are not carried over.
        nan_policy: "propagate": where there is a nan, it is nan; others are not carried over.
        kwargs: for `AccumMetric`.
    """
    refuse("spearmanr", axis=axis or None, nan_policy=None if nan_policy == "propagate" else nan_policy)
    return AccumMetric(_spearman, dim_argmax, **{"name": "spearmanr", **kwargs})


def _spearman(pred: Any, target: Any) -> float:
    ranks = torch.stack([_ranks(torch.as_tensor(numbers).reshape(-1).double()) for numbers in (pred, target)])
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(numbers: Tensor) -> Tensor:
    """The place of each number from the smallest up; equal ones share the mean of theirs."""
    if numbers.isnan().any():
        return torch.full_like(numbers, torch.nan)
    _, place, count = torch.unique(numbers, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    mean: Tensor = last - (count - 1) / 2
    return mean[place]


def _of_numbers(kind: str, name: str, sample_weight: None) -> Metric:
    refuse(name, sample_weight=sample_weight)
    make = getattr(torchmetrics_for(kind), kind)
    return MadeOnFirstBatch(name, lambda _: make(), _numbers(name))


def _numbers(name: str) -> Prepare:
    """Predictions and targets as rows in float64, as sums of squares of numbers far from 0 need (Apple's has none)."""

    def prepare(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor, int]:
        same_shape(name, pred, target)
        dtype = torch.float32 if pred.is_mps else torch.float64
        return pred.reshape(-1).to(dtype), target.reshape(-1).to(dtype), 1

    return prepare

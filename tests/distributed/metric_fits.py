"""Validations with every metric, and a fit with those of training, printed as JSON: alone, or in several processes.

python metric_fits.py GLOBAL_BATCH ROWS ...
"""

import json
import os
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import minilearn.metrics as m
from minilearn.all import SGD, DataLoader, DataLoaders, Learner, set_seed
from minilearn.metrics.torch_metric import torchmetrics_for

torchmetrics = torchmetrics_for("these fits")


class Spread(m.Metric):
    """The largest loss of a batch less the mean of all, and the inputs' largest number: a metric that cannot join."""

    name = "spread"

    def reset(self) -> None:
        self.losses: list[float] = []
        self.top = -9.0
        self.seen: list[int] = []

    def accumulate(self, learn: Any) -> None:
        self.losses.append(float(F.cross_entropy(learn.pred, learn.yb[0])))
        assert abs(float(learn.loss) - self.losses[-1]) < 1e-9 * max(1, self.losses[-1])
        self.top = max(self.top, float(learn.xb[0].max()))
        self.seen += learn.yb[0].tolist()

    @property
    def value(self) -> float:
        ordered = sum(i * y for i, y in enumerate(self.seen))
        return max(self.losses) - sum(self.losses) / len(self.losses) + self.top + ordered


class Doubled(m.AvgMetric):
    """An average whose class was changed by somebody who has not heard of other processes."""

    def accumulate(self, learn: Any) -> None:
        self._count += len(learn.yb[0])
        self._total += 2 * float(F.cross_entropy(learn.pred, learn.yb[0], reduction="sum"))


class Plain:
    """What torchmetrics' objects have, without being one."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.batches, self.rows = 0, 0

    def update(self, pred: Tensor, target: Tensor) -> None:
        self.batches, self.rows = self.batches + 1, self.rows + len(target)

    def compute(self) -> Tensor:
        return torch.tensor(self.rows + self.batches / 1000)


class Lossy(nn.Module):
    """A loss that leaves a part of itself on itself."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        self.part = (pred**2).mean()
        return F.cross_entropy(pred, target)


def mean_place(pred: Any, target: Any) -> float:
    """A figure that depends on the order of rows."""
    return float((torch.arange(len(target)) * (pred == target)).double().mean())


def of_classes() -> list[Any]:
    averaged = [m.F1Score, m.Jaccard, m.Precision, m.Recall]
    return [
        m.accuracy, m.error_rate, m.perplexity, m.LossMetric("part"), Spread(), Doubled(max, "doubled"),
        m.BalancedAccuracy(), m.CohenKappa(), m.HammingLoss(), m.MatthewsCorrCoef(), m.RocAuc(), m.DiceMulti(),
        m.JaccardCoeffMulti(), m.FBeta(beta=2, average="macro"), *(make(average="macro") for make in averaged),
        m.AccumMetric(mean_place, dim_argmax=-1), m.AccumMetric(mean_place, dim_argmax=-1, max_rows=7, name="few"),
        torchmetrics.classification.MulticlassAUROC(num_classes=3),
        torchmetrics.classification.MulticlassAccuracy(num_classes=3) + 1.0, Plain(),
        m.ValueMetric(lambda: 3.0, "three"),
    ]  # fmt: skip


def of_two() -> list[Any]:
    return [
        m.APScoreBinary(), m.BrierScore(), m.Dice(), m.JaccardCoeff(), m.RocAucBinary(), m.RocAucBinary(max_rows=5),
    ]  # fmt: skip


def of_labels() -> list[Any]:
    makers = [
        m.APScoreMulti, m.BrierScoreMulti, m.F1ScoreMulti, m.HammingLossMulti, m.JaccardMulti, m.MatthewsCorrCoefMulti,
        m.PrecisionMulti, m.RecallMulti, m.RocAucMulti,
    ]  # fmt: skip
    return [m.accuracy_multi, m.FBetaMulti(beta=2.0), *(make() for make in makers)]


def of_numbers() -> list[Any]:
    return [
        m.mae, m.mse, m.rmse, m.ExplainedVariance(), m.PearsonCorrCoef(), m.R2Score(), m.SpearmanCorrCoef(),
        torchmetrics.MeanSquaredError(), torchmetrics.MeanSquaredError() * 2.0,
    ]  # fmt: skip


def main() -> None:
    torch.set_default_dtype(torch.float64)
    warnings.filterwarnings("ignore", module="torchmetrics")  # of sets of one row, in which a class is missing
    world = int(os.environ.get("WORLD_SIZE", "1"))
    batch, sizes = int(sys.argv[1]), list(map(int, sys.argv[2:]))
    print(json.dumps({str(rows): figures(rows, batch // world) for rows in sizes}))


def figures(rows: int, bs: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    kinds = {"classes": (of_classes, 3), "two": (of_two, 2), "labels": (of_labels, 3), "numbers": (of_numbers, 2)}
    for kind, (metrics, width) in kinds.items():
        if rows < 9 and kind in {"two", "labels"}:  # what few rows show, the others show
            continue
        set_seed(5)
        x = torch.randn(40, 4)
        valid_x = torch.randn(rows, 4)
        dls = DataLoaders(
            DataLoader((x, answers(x, kind)), bs, shuffle=True),
            DataLoader((valid_x, answers(valid_x, kind)), bs),
            DataLoader((valid_x[:1], answers(valid_x[:1], kind)), bs)
            if rows > 9
            else DataLoader((x, answers(x, kind)), bs),
        )
        loss = {"labels": F.binary_cross_entropy_with_logits, "numbers": F.mse_loss}.get(kind, Lossy())
        learn = Learner(dls, nn.Linear(4, width), loss, opt_func=SGD, metrics=metrics())
        found[kind] = {"names": [metric.name for metric in learn.metrics], "before": learn.validate()}
        with learn.no_logging():
            if kind == "classes" and rows > 9:
                learn.recorder.train_metrics = True
                learn.fit(2, 0.1)
                found["fit"] = {"names": learn.recorder.column_names, "rows": learn.recorder.values}
    return found


def answers(x: Tensor, kind: str) -> Tensor:
    if kind == "numbers":
        return x[:, :2] + x[:, 2:] ** 2
    if kind == "labels":
        y = (x[:, :3] > 0).double()
        return y if len(y) < 2 else torch.cat([torch.tensor([[0.0, 1, 0], [1, 0, 1]]), y[2:]])
    return x[:, : 3 if kind == "classes" else 2].argmax(1)


if __name__ == "__main__":
    main()

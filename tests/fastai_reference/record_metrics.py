"""Records what fastai's metrics give on fixed predictions over ragged batches; run by hand beside fastai 2.8.12.

    python tests/fastai_reference/record_metrics.py

It needs fastai, scikit-learn and scipy, and writes metrics.json beside itself. Where fastai's own figure is not the one
that is meant (`docs/from-fastai.md`), scikit-learn's is recorded, from the definition below.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastai
import fastai.metrics
import numpy as np
import sklearn.metrics as skm
import torch
from fastai.learner import AvgMetric
from torch import Tensor

BATCH = 16
ROWS = 50


def made() -> dict[str, dict[str, Tensor]]:
    """Predictions and targets of each kind; figures of four places, so that they are the same wherever they are read."""
    torch.manual_seed(0)

    def data(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
        places = 10_000
        return {"pred": (pred * places).round() / places, "target": target}

    labels = torch.randint(0, 2, (ROWS, 3))
    two, four = torch.randint(0, 2, (ROWS,)), torch.randint(0, 4, (ROWS,))
    mask2, mask4 = torch.randint(0, 2, (ROWS, 2, 3)), torch.randint(0, 4, (ROWS, 2, 3))
    numbers = (torch.randn(ROWS) * 10_000).round() / 10_000

    def scores(target: Tensor, classes: int) -> Tensor:
        right = torch.nn.functional.one_hot(target, classes).movedim(-1, 1)
        return right + torch.randn(right.shape)

    absent = torch.cat([scores(four, 4), torch.full((ROWS, 1), -20.0)], 1)  # a class that never occurs
    return {
        "two": data(scores(two, 2), two),
        "four": data(scores(four, 4), four),
        "absent": data(absent, four),
        "labels": data(labels + torch.randn(ROWS, 3), labels),
        "mask2": data(scores(mask2, 2), mask2),
        "mask4": data(scores(mask4, 4), mask4),
        "numbers": data(numbers + 0.5 * torch.randn(ROWS), numbers),
        "far": data(1000 + numbers + 0.5 * torch.randn(ROWS), 1000 + numbers),
        "positive": data(numbers.exp() + torch.rand(ROWS), numbers.exp().mul(10_000).round() / 10_000),
    }


SCORES = ("Precision", "Recall", "F1Score", "Jaccard")
AVERAGES = ("macro", "micro", "weighted")
CASES: list[tuple[str, dict[str, Any], str]] = [
    *((name, {}, "two") for name in SCORES),
    *((name, {"pos_label": 0}, "two") for name in SCORES),
    ("FBeta", {"beta": 2.0}, "two"),
    *((name, {"average": a}, data) for name in SCORES for a in AVERAGES for data in ("four", "absent")),
    ("FBeta", {"beta": 0.5, "average": "macro"}, "four"),
    *(("BalancedAccuracy", {"adjusted": a}, data) for a in (False, True) for data in ("two", "four", "absent")),
    *(("CohenKappa", {"weights": w}, data) for w in (None, "linear", "quadratic") for data in ("two", "four")),
    *((name, {}, data) for name in ("HammingLoss", "MatthewsCorrCoef") for data in ("two", "four", "absent")),
    *(("RocAuc", {"average": a}, "four") for a in ("macro", "weighted")),
    ("RocAucBinary", {}, "two"),
    ("RocAucBinary", {"max_fpr": 0.3}, "two"),
    ("APScoreBinary", {}, "two"),
    *((f"{name}Multi", {"average": a}, "labels") for name in SCORES for a in AVERAGES),
    *((f"{name}Multi", {"thresh": 0.7}, "labels") for name in SCORES),
    ("FBetaMulti", {"beta": 2.0}, "labels"),
    ("HammingLossMulti", {}, "labels"),
    *(("RocAucMulti", {"average": a}, "labels") for a in AVERAGES),
    *(("APScoreMulti", {"average": a}, "labels") for a in AVERAGES),
    *((name, {}, "mask2") for name in ("Dice", "JaccardCoeff", "DiceMulti", "JaccardCoeffMulti")),
    *((name, {}, "mask4") for name in ("DiceMulti", "JaccardCoeffMulti")),
    *((name, {}, d) for name in ("R2Score", "ExplainedVariance", "PearsonCorrCoef") for d in ("numbers", "far")),
    ("SpearmanCorrCoef", {}, "numbers"),
    ("SpearmanCorrCoef", {"dim_argmax": 1}, "four"),
    *((name, {}, data) for name in ("accuracy", "error_rate") for data in ("two", "four")),
    *(("top_k_accuracy", {"k": k}, "four") for k in (1, 2, 3)),
    ("accuracy_multi", {}, "labels"),
    ("accuracy_multi", {"thresh": 0.2, "sigmoid": False}, "labels"),
    *((name, {}, "numbers") for name in ("mse", "mae", "rmse", "exp_rmspe")),
    ("msle", {}, "positive"),
    ("Perplexity", {}, "numbers"),
]


def by_definition(two: dict[str, Tensor], four: dict[str, Tensor], labels: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Figures of scikit-learn's where fastai gives another, or fails."""
    p2, p4, pl = two["pred"].softmax(1).numpy(), four["pred"].softmax(1).numpy(), labels["pred"].sigmoid().numpy()
    t2, t4, tl = two["target"].numpy(), four["target"].numpy(), labels["target"].numpy()
    flat = skm.matthews_corrcoef(tl.ravel(), pl.ravel() >= 0.5)
    return [
        {"metric": name, "args": args, "data": data, "value": float(value), "source": "scikit-learn"}
        for name, args, data, value in [
            ("BrierScore", {}, "two", skm.brier_score_loss(t2, p2[:, 1])),
            ("BrierScore", {"pos_label": 0}, "two", skm.brier_score_loss(t2, p2[:, 0], pos_label=0)),
            ("BrierScore", {}, "four", skm.brier_score_loss(t4, p4, labels=[0, 1, 2, 3])),
            ("BrierScoreMulti", {}, "labels", np.mean([skm.brier_score_loss(tl[:, i], pl[:, i]) for i in range(3)])),
            ("MatthewsCorrCoefMulti", {}, "labels", flat),
            ("RocAuc", {}, "two", skm.roc_auc_score(t2, p2[:, 1])),
            ("RocAucMulti", {"sigmoid": False}, "labels", skm.roc_auc_score(tl, labels["pred"].sigmoid().numpy())),
        ]
    ]


def of_fastai(name: str, args: dict[str, Any], data: dict[str, Tensor]) -> dict[str, Any]:
    """The value and the column's name that fastai gives, batch by batch."""
    thing = getattr(fastai.metrics, name)
    if name in {"accuracy", "error_rate", "top_k_accuracy", "accuracy_multi", "mse", "mae", "msle"}:
        metric = AvgMetric(lambda pred, target: thing(pred, target, **args))
    else:
        metric = thing if name in {"rmse", "exp_rmspe"} else thing(**args)
    metric.reset()
    for pred, target in zip(data["pred"].split(BATCH), data["target"].split(BATCH), strict=True):
        loss = (pred - target).square().mean() if pred.shape == target.shape else torch.tensor(0.0)
        learn = SimpleNamespace(pred=pred, y=target, yb=(target,), loss=loss, to_detach=lambda x: x.detach().cpu())
        metric.accumulate(learn)
    return {"value": float(metric.value), "column": name if isinstance(metric, AvgMetric) else metric.name}


def main() -> None:
    data = made()
    figures = [
        {"metric": name, "args": args, "data": kind, **of_fastai(name, args, data[kind]), "source": "fastai"}
        for name, args, kind in CASES
    ]
    figures += by_definition(data["two"], data["four"], data["labels"])
    table = {
        "made_with": {"fastai": fastai.__version__, "torch": torch.__version__.split("+")[0]},
        "batch": BATCH,
        "data": {
            name: {
                k: part.tolist() if k == "target" else np.round(part.double().numpy(), 4).tolist()
                for k, part in parts.items()
            }
            for name, parts in data.items()
        },
        "figures": figures,
    }
    text = json.dumps(table)
    text = text.replace('{"metric"', '\n{"metric"').replace('{"pred"', '\n{"pred"')
    Path(__file__).with_name("metrics.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

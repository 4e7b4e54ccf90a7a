"""Each metric over ragged batches against the figures recorded of fastai 2.8.12, or of scikit-learn."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import minilearn.metrics
from minilearn.metrics import as_metrics

TABLE = json.loads((Path(__file__).parents[1] / "fastai_reference" / "metrics.json").read_text())
DATA = {name: {key: torch.tensor(part) for key, part in parts.items()} for name, parts in TABLE["data"].items()}
PLAIN = {"accuracy", "error_rate", "top_k_accuracy", "accuracy_multi", "mse", "mae", "rmse", "exp_rmspe", "msle"}


def case_id(figure: dict[str, Any]) -> str:
    return "-".join([figure["metric"], *(f"{k}={v}" for k, v in figure["args"].items()), figure["data"]])


@pytest.mark.parametrize("figure", TABLE["figures"], ids=case_id)
def test_figure_is_the_recorded_one(figure: dict[str, Any]) -> None:
    thing, args, data = getattr(minilearn.metrics, figure["metric"]), figure["args"], DATA[figure["data"]]
    if figure["metric"] not in PLAIN:
        given = thing(**args)
    elif args:
        given = lambda pred, target: thing(pred, target, **args)  # noqa: E731
    else:
        given = thing
    (metric,) = as_metrics([given])
    pred = data["pred"]
    if figure["metric"] == "RocAucMulti" and not args.get("sigmoid", True):
        pred = pred.sigmoid()
    for _ in range(2):  # the second epoch begins anew
        metric.reset()
        for p, t in zip(pred.split(TABLE["batch"]), data["target"].split(TABLE["batch"]), strict=True):
            loss = (p - t).square().mean() if p.shape == t.shape else torch.tensor(0.0)
            metric.accumulate(SimpleNamespace(pred=p, yb=(t,), xb=(p,), loss=loss))  # type: ignore[arg-type]
        assert metric.value == pytest.approx(figure["value"], rel=1e-4)
    if "column" in figure and (args == {} or figure["metric"] not in PLAIN):
        assert metric.name == figure["column"].lstrip("_")


def test_every_metric_of_fastais_has_a_figure() -> None:
    made = {
        name
        for name in minilearn.metrics.__all__
        if name[0].isupper()
        and getattr(minilearn.metrics, name).__module__.split(".")[-1] in {"classes", "labels", "regression"}
    }
    assert made | PLAIN | {"Perplexity"} == {figure["metric"] for figure in TABLE["figures"]}

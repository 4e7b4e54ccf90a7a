"""Records what fastai's losses give on fixed predictions, value and gradient; run by hand beside fastai 2.8.12.

    python tests/fastai_reference/record_losses.py

It writes losses.json beside itself. The gradient is recorded as the sum of its products with fixed numbers.
"""

import json
from pathlib import Path
from typing import Any

import fastai
import fastai.losses
import torch
from torch import Tensor

CASES: list[tuple[str, dict[str, Any], str]] = [
    *(("CrossEntropyLossFlat", {"reduction": r}, d) for r in ("mean", "sum", "none") for d in ("rows", "words")),
    ("CrossEntropyLossFlat", {"axis": 1}, "pixels"),
    ("CrossEntropyLossFlat", {"axis": 1, "weight": [0.5, 1.0, 2.0]}, "pixels"),
    ("CrossEntropyLossFlat", {"weight": [0.5, 1.0, 2.0], "label_smoothing": 0.1}, "rows"),
    ("CrossEntropyLossFlat", {"ignore_index": 1}, "rows"),
    *(("FocalLoss", {"gamma": g, "reduction": r}, "rows") for g in (0.0, 2.0) for r in ("mean", "sum")),
    ("FocalLossFlat", {}, "words"),
    ("FocalLossFlat", {"axis": 1, "gamma": 3.0, "reduction": "none"}, "pixels"),
    *(
        ("LabelSmoothingCrossEntropy", {"eps": e, "reduction": r}, "rows")
        for e in (0.1, 0.3)
        for r in ("mean", "sum", "none")
    ),
    ("LabelSmoothingCrossEntropy", {"weight": [0.5, 1.0, 2.0]}, "rows"),
    ("LabelSmoothingCrossEntropyFlat", {}, "words"),
    ("LabelSmoothingCrossEntropyFlat", {"axis": 1, "eps": 0.2}, "pixels"),
    *(("BCEWithLogitsLossFlat", {"reduction": r}, d) for r in ("mean", "sum", "none") for d in ("labels", "column")),
    ("BCEWithLogitsLossFlat", {"pos_weight": [0.5, 1.0, 2.0]}, "labels"),
    ("BCEWithLogitsLossFlat", {"weight": [0.5, 1.0, 2.0], "flatten": False}, "labels"),
    *(
        (name, {"reduction": r}, "shares")
        for name in ("BCELossFlat", "MSELossFlat", "L1LossFlat")
        for r in ("mean", "none")
    ),
    *((name, {}, "column") for name in ("MSELossFlat", "L1LossFlat")),
    *(("DiceLoss", {"reduction": r}, "pixels") for r in ("sum", "mean", "none")),
    ("DiceLoss", {"square_in_union": True, "smooth": 1.0}, "pixels"),
]


def made() -> dict[str, dict[str, Tensor]]:
    """Predictions and targets of each kind; figures of four places, so that they are the same wherever they are read."""
    torch.manual_seed(0)

    def data(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"pred": (pred * 10_000).round() / 10_000, "target": target}

    return {
        "rows": data(torch.randn(6, 3), torch.randint(0, 3, (6,))),
        "words": data(torch.randn(3, 4, 3), torch.randint(0, 3, (3, 4))),
        "pixels": data(torch.randn(2, 3, 2, 2), torch.randint(0, 3, (2, 2, 2))),
        "labels": data(torch.randn(5, 3), torch.randint(0, 2, (5, 3))),
        "column": data(torch.randn(5, 1), torch.randint(0, 2, (5,))),
        "shares": data(torch.rand(5, 3), torch.randint(0, 2, (5, 3))),
    }


def main() -> None:
    data, figures = made(), []
    for name, args, kind in CASES:
        given = {key: torch.tensor(value) if isinstance(value, list) else value for key, value in args.items()}
        pred, target = data[kind]["pred"].clone().requires_grad_(), data[kind]["target"]
        loss = getattr(fastai.losses, name)(**given)(pred, target)
        loss.sum().backward()
        slope = (pred.grad.flatten() * torch.arange(1, pred.numel() + 1)).sum()
        value = [round(float(number), 8) for number in loss.detach().flatten()]
        figures.append({"loss": name, "args": args, "data": kind, "value": value, "slope": float(slope)})
    table = {
        "made_with": {"fastai": fastai.__version__, "torch": torch.__version__.split("+")[0]},
        "data": {
            name: {
                "pred": [round(number, 4) for number in parts["pred"].flatten().tolist()],
                "pred_shape": list(parts["pred"].shape),
                "target": parts["target"].tolist(),
            }
            for name, parts in data.items()
        },
        "figures": figures,
    }
    text = json.dumps(table).replace('{"loss"', '\n{"loss"').replace('{"pred"', '\n{"pred"')
    Path(__file__).with_name("losses.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

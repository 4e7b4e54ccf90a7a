"""Records what fastai's trackers do on figures that are written out: ``python record_trackers.py`` with fastai 2.8.12.

The model and the data are of no account: a metric gives the written-out figures, one an epoch.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import fastai
import numpy as np
import torch
from fastai.basics import DataLoaders, Learner, Metric
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback

SEQUENCES = {
    "falling then flat": [1.0, 0.8, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6],
    "rising": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
    "up and down": [0.9, 0.7, 0.8, 0.75, 0.6, 0.65, 0.64, 0.63],
    "slowly falling": [0.5, 0.499, 0.498, 0.45, 0.449, 0.448, 0.3, 0.299],
    "nan in between": [0.5, float("nan"), 0.4, float("nan"), float("nan"), 0.3, 0.2, 0.1],
}
COMPARISONS = {"less": np.less, "greater": np.greater}


class Scripted(Metric):
    """Gives the next of the figures after each epoch."""

    name = "figure"

    def __init__(self, figures: list[float]) -> None:
        self.figures, self.epoch = figures, -1

    def reset(self) -> None:
        self.epoch += 1

    def accumulate(self, learn: Any) -> None:
        pass

    @property
    def value(self) -> float:
        return self.figures[self.epoch]  # fastai resets it before each validation


class Saving(SaveModelCallback):
    """Notes the epochs at which it saves."""

    def _save(self, name: str) -> None:
        self.__dict__.setdefault("saved", []).append(self.epoch)
        super()._save(name)


def run(kind: type, figures: list[float], **options: Any) -> dict[str, Any]:
    data = torch.utils.data.TensorDataset(torch.ones(4, 1), torch.ones(4, 1))
    folder = tempfile.mkdtemp()
    dls = DataLoaders.from_dsets(data, data, bs=4, device="cpu")
    metric = Scripted(figures)
    learn = Learner(dls, torch.nn.Linear(1, 1), torch.nn.functional.mse_loss, metrics=metric, path=folder)
    tracker = kind("figure", **options)
    rates: list[float] = []

    class Rates(fastai.callback.core.Callback):
        order = 100

        def after_epoch(self) -> None:
            rates.append(self.opt.hypers[-1]["lr"])

    with learn.no_bar(), learn.no_logging():
        learn.fit(len(figures), 0.1, cbs=[tracker, Rates()])
    return {
        "epochs": len(learn.recorder.values),
        "lrs": rates,
        "saved": getattr(tracker, "saved", []),
        "best": float(tracker.best),
    }


def main() -> None:
    torch.set_num_threads(1)
    cases = []
    for name, figures in SEQUENCES.items():
        for comp, function in COMPARISONS.items():
            for min_delta in (0.0, 0.01):
                shared = {"comp": function, "min_delta": min_delta}
                plans: list[tuple[type, dict[str, Any]]] = [
                    (EarlyStoppingCallback, {"patience": 1}),
                    (EarlyStoppingCallback, {"patience": 3}),
                    (ReduceLROnPlateau, {"patience": 1}),
                    (ReduceLROnPlateau, {"patience": 2, "factor": 2.0, "min_lr": 0.02}),
                    (Saving, {}),
                ]
                for kind, options in plans:
                    found = run(kind, figures, **shared, **options)
                    label = "SaveModelCallback" if kind is Saving else kind.__name__
                    cases.append(
                        {
                            "callback": label,
                            "sequence": name,
                            "comp": comp,
                            "options": {"min_delta": min_delta, **options},
                            **found,
                        }
                    )
    lines = ",\n".join(json.dumps(case) for case in cases)
    head = f'{{"fastai": "{fastai.__version__}",\n"sequences": {json.dumps(SEQUENCES)},\n"cases": [\n'
    Path(__file__).with_name("trackers.json").write_text(f"{head}{lines}\n]}}\n")


if __name__ == "__main__":
    main()

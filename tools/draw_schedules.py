"""Draws docs/schedules.png, what each scheduled fit does to the rate: `python tools/draw_schedules.py`.

The curves are those that fits of a tiny model recorded, not formulas written down a second time.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import nn

from minilearn.all import DataLoaders, Learner, ParamScheduler, SchedExp
from minilearn.callback import Callback
from minilearn.callbacks import ProgressCallback

BLUE, ORANGE = "#0072B2", "#D55E00"
EPOCHS, BATCHES = 6, 40

FITS: dict[str, Callable[[Learner], None]] = {
    "fit(6, lr=1)": lambda learn: learn.fit(6, lr=1),
    "fit_one_cycle(6, lr_max=1)": lambda learn: learn.fit_one_cycle(6, lr_max=1),
    "fit_flat_cos(6, lr=1)": lambda learn: learn.fit_flat_cos(6, lr=1),
    "fit_sgdr(2, 2, lr_max=1)": lambda learn: learn.fit_sgdr(2, 2, lr_max=1),
    "fit_warmup_cos(6, lr=1)": lambda learn: learn.fit_warmup_cos(6, lr=1),
    "fit_wsd(6, lr=1)": lambda learn: learn.fit_wsd(6, lr=1),
    "fine_tune(5, base_lr=1)": lambda learn: learn.fine_tune(5, base_lr=1),
    'ParamScheduler({"lr":\nSchedExp(1, 0.01)})': lambda learn: learn.fit(
        6, cbs=ParamScheduler({"lr": SchedExp(1, 0.01)})
    ),
}


class Rates(Callback):
    """Keeps the last layer's rate and momentum, over several fits too."""

    order = 100

    def __init__(self) -> None:
        self.lrs: list[float] = []
        self.moms: list[float] = []

    def before_step(self) -> None:
        """Looks at the optimizer just before it moves."""
        last = self.opt.param_groups[-1]
        self.lrs.append(last["lr"])
        self.moms.append(last["mom"])


def recorded(fit: Callable[[Learner], None]) -> Rates:
    """The rate and the momentum of every batch of a fit, of a model whose training nobody looks at."""
    torch.manual_seed(0)
    x = torch.randn(BATCHES, 1)
    learn = Learner(
        DataLoaders.from_tensors(x, x, bs=1, device="cpu"),
        nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)),
        loss_func=nn.functional.mse_loss,
        splitter=lambda model: [list(layer.parameters()) for layer in model],
        cbs=Rates,
    )
    with learn.no_logging(), learn.removed_cbs(ProgressCallback):
        fit(learn)
    (rates,) = (cb for cb in learn.cbs if isinstance(cb, Rates))
    return rates


def main() -> None:
    """Draws a panel for each fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    docs = Path(__file__).parent.parent / "docs"
    parser.add_argument("--out", type=Path, default=docs, help="the folder for the picture (docs)")
    args = parser.parse_args()

    figure, axes = plt.subplots(2, 4, figsize=(11, 4.8), sharex=True, sharey=True, layout="constrained")
    for ax, (name, fit) in zip(axes.flat, FITS.items(), strict=True):
        rates = recorded(fit)
        assert len(rates.lrs) == EPOCHS * BATCHES
        epochs = [i / BATCHES for i in range(len(rates.lrs))]
        ax.plot(epochs, rates.lrs, color=BLUE, linewidth=1.8, label="lr of the last layer")
        ax.plot(epochs, rates.moms, color=ORANGE, linewidth=1.2, linestyle="--", label="mom")
        ax.set_title(name, family="monospace", fontsize=9)
        ax.set(ylim=(-0.04, 1.1), xlim=(0, EPOCHS + 0.05), xticks=range(0, EPOCHS + 1, 2))
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(args.out / "schedules.png", dpi=80)
    print(args.out / "schedules.png")


if __name__ == "__main__":
    main()

"""Every optimizer goes down the curve of x²·sin(x), from a hilltop's side and from close to the minimum.

    python examples/optimizers.py

Each comes within 0.02 of the minimum, x = 5.0870 with f(x) = -24.08, in at most 500 steps and stays there; all of them
together take about ten seconds on one core. Leaves the picture optimizers.png: the way down, and how momentum gets
over a flat place on which plain descent comes to rest. To add an optimizer, add a line to SETTINGS.
"""

import argparse

from minilearn.all import *  # noqa: F403
from minilearn.surfaces import X2_SIN_X, descend, steps_to

STARTS, STEPS, TOLERANCE = (2.5, 5.0), 500, 0.02

# Rates are for a curve whose slope reaches 25 and whose bend at the minimum is 30: plain descent diverges above 2 / 30.
# Optimizers that divide by the recent slopes get an eps of 1: where slopes vanish they would else make large steps of
# tiny ones, and go on swinging around the minimum.
SETTINGS = {
    "SGD": partial(SGD, lr=0.02),
    "SGD, momentum": partial(SGD, lr=0.005, mom=0.8),
    "RMSProp": partial(RMSProp, lr=0.02, eps=1.0),
    "Adagrad": partial(Adagrad, lr=0.5),
    "Adadelta": partial(Adadelta, lr=0.2, eps=1e-3),
    "Adam": partial(Adam, lr=0.05, eps=1.0, wd=0.0),
    "RAdam": partial(RAdam, lr=0.05, eps=1.0),
    "NAdam": partial(NAdam, lr=0.05, eps=1.0),
    "QHAdam": partial(QHAdam, lr=0.05, mom=0.9, eps=1.0),
    "Lion": partial(Lion, lr=0.01, mom=0.5, avg_mom=0.9),
    "Lamb": partial(Lamb, lr=0.01, eps=1.0),
    "Larc": partial(Larc, lr=0.02, mom=0.5, trust=0.2),
    "Muon": partial(Muon, lr=0.05, eps=1.0, wd=0.0),  # a single number is no matrix: its Adam
    "Lookahead": lambda params: Lookahead(SGD(params, lr=0.02)),
    "ranger": partial(ranger, lr=0.1, eps=1.0, wd=0.0),
}
SHOWN = ("SGD", "SGD, momentum", "RMSProp", "Adam", "Lion", "Larc")

FLAT_PLACE, LIVELIER = (
    2.0,
    {
        "SGD": partial(SGD, lr=0.01),
        "SGD, momentum": partial(SGD, lr=0.01, mom=0.9),
        "RMSProp": partial(RMSProp, lr=0.02, eps=1.0),
        "Adam": partial(Adam, lr=0.1, wd=0.0),
    },
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"how many steps each takes ({STEPS:,})")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture (this one)")
    args = parser.parse_args()

    torch.set_num_threads(1)
    print(f"{'optimizer':15}  start  steps to within {TOLERANCE} of {X2_SIN_X.minimum[0]:.4f}       x     f(x)")
    for name, opt_func in SETTINGS.items():
        for start in STARTS:
            path = descend(opt_func, X2_SIN_X, start, args.steps)
            steps = steps_to(path, X2_SIN_X.minimum, TOLERANCE)
            x, height = path[-1].item(), X2_SIN_X(path[-1]).item()
            print(f"{name:15}  {start:5}  {'never' if steps is None else steps:>27}  {x:7.4f}  {height:8.4f}")
    print(f"picture: {picture(args.out)}")


def picture(folder: Path) -> Path:
    """Half of the optimizers from 2.5; and some from 2.0, where the flat place at 0 lies in their way."""
    figure, axes = plt.subplots(2, figsize=(9, 9), layout="constrained")
    plot_optimizers({name: SETTINGS[name] for name in SHOWN}, X2_SIN_X, STARTS[0], steps=200, ax=axes[0])
    plot_optimizers(LIVELIER, X2_SIN_X, FLAT_PLACE, steps=200, ax=axes[1])
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "optimizers.png", dpi=110)
    return folder / "optimizers.png"


if __name__ == "__main__":
    main()

"""Every optimizer at its own defaults learns MNIST's ten digits: a small network, two epochs, one cycle.

    python examples/mnist_optimizers.py
    python examples/mnist_optimizers.py --only Adam --seed 7 --runs 5

Each reaches 94% to 97% of the 10,000 validation images, in one to two seconds a run on one core. Leaves the picture
mnist_optimizers.png. SETTINGS has each optimizer's rate, and the accuracy that docs/optim.md promises of it.
"""

import argparse
import statistics
import sys
from typing import Any, NamedTuple

from minilearn.all import *  # noqa: F403

HIDDEN, BATCH, EPOCHS = 64, 256, 2


class Setting(NamedTuple):
    """An optimizer, the highest rate of its cycle, and the share of the images that every seed gets right."""

    opt_func: Any
    lr_max: float
    accuracy: float


SETTINGS = {
    "SGD": Setting(SGD, 1.0, 0.95),
    "SGD(mom=0.9)": Setting(partial(SGD, mom=0.9), 0.3, 0.96),
    "RMSProp": Setting(RMSProp, 0.02, 0.955),
    "Adagrad": Setting(Adagrad, 0.2, 0.955),
    "Adadelta": Setting(Adadelta, 5.0, 0.965),
    "Adam": Setting(Adam, 0.02, 0.965),
    "RAdam": Setting(RAdam, 0.05, 0.965),
    "NAdam": Setting(NAdam, 0.02, 0.965),
    "QHAdam": Setting(QHAdam, 0.02, 0.965),
    "Lion": Setting(Lion, 0.005, 0.94),
    "Lamb": Setting(Lamb, 0.02, 0.96),
    "Larc": Setting(Larc, 1.0, 0.965),
    "Muon": Setting(Muon, 0.02, 0.97),
    "Lookahead(Adam)": Setting(lambda params, lr: Lookahead(Adam(params, lr)), 0.05, 0.965),
    "ranger": Setting(ranger, 0.05, 0.965),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", choices=SETTINGS, help=f"one optimizer: {', '.join(SETTINGS)}")
    parser.add_argument("--seed", type=int, default=0, help="where the random numbers of the first run start (0)")
    parser.add_argument(
        "--runs", type=int, default=3, help="how often each is trained, each time from the next seed (3)"
    )
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture (this one)")
    args = parser.parse_args()

    torch.set_num_threads(1)
    try:
        data = mnist()
    except DataError as problem:
        sys.exit(str(problem))
    reached = {}
    print("optimizer        lr_max  promised  median  lowest")
    for name in [args.only] if args.only else SETTINGS:
        reached[name] = scores = [train(name, data, args.seed + i) for i in range(args.runs)]
        _, lr_max, promised = SETTINGS[name]
        print(
            f"{name:15}  {lr_max:6g}  {promised:8.3f}  {statistics.median(scores):.4f}  {min(scores):.4f}", flush=True
        )
    print(f"picture: {picture(reached, args.out)}")


def train(name: str, data: Split, seed: int) -> float:
    """The share of the validation images that an optimizer's network gets right after its cycle."""
    opt_func, lr_max, _ = SETTINGS[name]
    set_seed(seed)
    model = nn.Sequential(nn.Linear(28 * 28, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    dls = DataLoaders.from_tensors(*data, bs=BATCH)
    learn = Learner(dls, model, loss_func=F.cross_entropy, opt_func=opt_func, metrics=accuracy)
    with learn.no_logging():
        learn.fit_one_cycle(EPOCHS, lr_max)
    return learn.recorder.values[-1][-1]


def picture(reached: dict[str, list[float]], folder: Path) -> Path:
    """A dot for each run, and a line where the accuracy lies that is promised."""
    figure, ax = plt.subplots(figsize=(8, 1.2 + 0.3 * len(reached)), layout="constrained")
    for row, (name, scores) in enumerate(reached.items()):
        ax.plot(SETTINGS[name].accuracy, row, "|", color="#D55E00", markersize=14, markeredgewidth=2)
        ax.plot(scores, [row] * len(scores), "o", color="#0072B2", alpha=0.6)
    ax.set_yticks(range(len(reached)), reached)
    ax.invert_yaxis()
    ax.set(xlabel="share of the validation images right: each run (dot), promised (line)")
    ax.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    return save_picture(figure, folder / "mnist_optimizers.png")


if __name__ == "__main__":
    main()

"""SGD, momentum, Adagrad, RMSProp, Adam and Adadelta: each written out in a few lines, then minilearn's, then torch's.

    python examples/optimizers.py

The three take the same steps: 235 of them, an epoch of MNIST in double precision, and after none does any of 25,450
weights differ by 1e-6, nor by 1e-12. The network then gets 0.88 to 0.95 of the test images right. About 25 seconds on
two cores. Leaves the picture optimizers.png: the six losses, and the six ways down a narrow valley and off a saddle.
See also examples/every_optimizer.py (all there are, down a curve) and examples/mnist_optimizers.py (what each reaches).
"""

from collections import defaultdict
from copy import deepcopy

from command_line import options
from torch.nn.utils import parameters_to_vector

from minilearn.all import *  # noqa: F403
from minilearn.plots import MARKERS, PALETTE

BATCH, HIDDEN = 256, 32
# A rule gives the step to add to weights whose gradient is g; in `kept`, where all is 0 at first, it keeps its memory.


def sgd(g, kept, lr):
    """Straight down."""
    return -lr * g


def momentum(g, kept, lr, mom=0.9):
    """A heavy ball: the last step goes on, and the slope only changes it."""
    kept["speed"] = mom * kept["speed"] + g
    return -lr * kept["speed"]


def adagrad(g, kept, lr, eps=1e-10):
    """Each weight has a rate of its own, which shrinks as its squared gradients add up."""
    kept["sum"] += g**2
    return -lr * g / (kept["sum"] ** 0.5 + eps)


def rmsprop(g, kept, lr, sqr_mom=0.99, eps=1e-8):
    """As Adagrad, but the past fades: steps in units of the gradient's recent size."""
    kept["square"] = sqr_mom * kept["square"] + (1 - sqr_mom) * g**2
    return -lr * g / (kept["square"] ** 0.5 + eps)


def adam(g, kept, lr, mom=0.9, sqr_mom=0.999, eps=1e-8):
    """Momentum and RMSProp in one. Both averages begin at 0, so both are divided by the weight they have gathered."""
    kept["t"] += 1
    kept["mean"] = mom * kept["mean"] + (1 - mom) * g
    kept["square"] = sqr_mom * kept["square"] + (1 - sqr_mom) * g**2
    mean = kept["mean"] / (1 - mom ** kept["t"])
    square = kept["square"] / (1 - sqr_mom ** kept["t"])
    return -lr * mean / (square**0.5 + eps)


def adadelta(g, kept, lr, sqr_mom=0.9, eps=1e-6):
    """Steps as large as recent steps were, as far as the gradient is larger than recent ones were."""
    kept["square"] = sqr_mom * kept["square"] + (1 - sqr_mom) * g**2
    step = -g * ((kept["moved"] + eps) / (kept["square"] + eps)) ** 0.5
    kept["moved"] = sqr_mom * kept["moved"] + (1 - sqr_mom) * step**2
    return lr * step


# By hand, minilearn's and torch's; the rate on MNIST, in the valley and on the saddle. Adadelta's rate is 1 as a rule:
# its steps begin with √eps and have to grow, which 100 steps leave no time for.
RULES = {
    "SGD": (sgd, SGD, optim.SGD, 0.2, 0.07, 0.2),
    "momentum": (momentum, partial(SGD, mom=0.9), partial(optim.SGD, momentum=0.9), 0.1, 0.01, 0.05),
    "Adagrad": (adagrad, Adagrad, optim.Adagrad, 0.05, 1.0, 0.5),
    "RMSProp": (rmsprop, RMSProp, optim.RMSprop, 0.002, 0.05, 0.02),
    "Adam": (adam, partial(Adam, sqr_mom=0.999, eps=1e-8, wd=0.0), optim.Adam, 0.01, 0.2, 0.1),
    "Adadelta": (adadelta, Adadelta, optim.Adadelta, 1.0, 20.0, 20.0),
}


class Trail(Callback):
    """Keeps the weights as they are after each step, all in one row."""

    def before_fit(self) -> None:
        self.points = []

    def after_step(self) -> None:
        self.points.append(parameters_to_vector(self.model.parameters()).detach().clone())


def main() -> None:
    args = options(__doc__).parse_args()
    torch.set_num_threads(1)  # layers this small are no faster on two cores
    set_seed(args.seed)
    try:
        train_x, train_y, valid_x, valid_y = mnist()
    except DataError as problem:
        raise SystemExit(f"{problem}\nexamples/every_optimizer.py goes without it.") from None
    order = torch.randperm(len(train_x))[: 40 * BATCH if args.short else None]
    train_x, train_y, valid_x = train_x[order].double(), train_y[order], valid_x.double()
    dls = DataLoaders.from_tensors(train_x, train_y, valid_x, valid_y, bs=BATCH, shuffle=False, device="cpu")
    begin = nn.Sequential(nn.Linear(28 * 28, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)).double()

    print("rule       rate    by hand  minilearn      torch  weights apart, at most")
    losses, apart = {}, 0.0
    for name, (rule, ours, torchs, lr, *_) in RULES.items():
        points, right = by_hand(rule, lr, deepcopy(begin), dls)
        learn, other = (fitted(opt_func, lr, deepcopy(begin), dls) for opt_func in (ours, torchs))
        trails = zip(points, learn.trail.points, other.trail.points, strict=True)
        most = max(torch.stack([a - b, a - c]).abs().max().item() for a, b, c in trails)
        shares = [right, *(each.recorder.values[-1][-1] for each in (learn, other))]
        print(f"{name:8} {lr:6g} {''.join(f'{share:11.4f}' for share in shares)}  {most:.1e}", flush=True)
        losses[name], apart = learn.recorder.losses, max(apart, most)
    print(f"weights apart: {apart:.1e} at most, of {len(points[0]):,} weights after each of {len(points)} steps")
    print(f"picture: {save_picture(picture(losses), args.out / 'optimizers.png')}")


def by_hand(rule, lr: float, model: nn.Module, dls: DataLoaders) -> tuple[list[Tensor], float]:
    """The weights after each step of an epoch, and the share of the test images that are right in the end."""
    points, kept = [], {p: defaultdict(float) for p in model.parameters()}
    for xb, yb in dls.train:
        F.cross_entropy(model(xb), yb).backward()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(rule(p.grad, kept[p], lr))
        model.zero_grad()
        points.append(parameters_to_vector(model.parameters()).detach().clone())
    with torch.no_grad():
        right = sum((model(xb).argmax(1) == yb).sum().item() for xb, yb in dls.valid)
    return points, right / len(dls.valid.dataset)


def fitted(opt_func, lr: float, model: nn.Module, dls: DataLoaders) -> Learner:
    """The same epoch by a Learner."""
    learn = Learner(dls, model, loss_func=F.cross_entropy, opt_func=opt_func, metrics=accuracy, cbs=Trail)
    with learn.no_logging():
        learn.fit(1, lr)
    return learn


def picture(losses: dict[str, list[float]]) -> "plt.Figure":
    figure, (top, *below) = plt.subplots(3, figsize=(9, 13), layout="constrained")
    for (name, figures), colour, marker in zip(losses.items(), PALETTE, MARKERS, strict=False):
        line = plot_loss(figures, ax=top).lines[-1]
        line.set(color=colour, marker=marker, markevery=0.15, label=f"{name}: {figures[-1]:.2f} at the end")
    top.set_title("a small network on MNIST")
    top.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    for ax, surface, rate in zip(below, ("valley", "saddle"), (4, 5), strict=True):
        plot_optimizers({name: partial(row[1], lr=row[rate]) for name, row in RULES.items()}, surface, ax=ax)
    return figure


if __name__ == "__main__":
    main()

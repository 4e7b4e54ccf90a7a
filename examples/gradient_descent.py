"""Gradient descent on y = w·x: one weight, three points, by hand and then by a Learner, which makes the same steps.

    python examples/gradient_descent.py

From w = 1 the prediction for x = 4 goes from 4.0 to 8.0 in 100 epochs at a rate of 0.01; the two ways agree on w to
1e-6 at every step, whether a step is made of all three points, of one, or of two (seeds 0 to 4). A rate that is too
large makes w diverge, and minilearn says so. Takes about seven seconds on two cores and leaves the picture
gradient_descent.png. With --short it goes through the points 60 times, to 7.989 with all of them at once.
"""

import warnings
from collections.abc import Iterable

from command_line import options

from minilearn.all import *  # noqa: F403

X, Y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [4.0], [6.0]])
START, RATE, EPOCHS = 1.0, 0.01, 100
SIZES = {"full batch": 3, "stochastic": 1, "mini-batches": 2}

# ---- by hand ----


def cost(w: float, x: Tensor = X, y: Tensor = Y) -> Tensor:
    """The mean squared error of the prediction w·x."""
    return ((w * x - y) ** 2).mean()


def slope(w: float, x: Tensor, y: Tensor) -> float:
    """By how much the cost grows as w does: its derivative, worked out on paper."""
    return (2 * x * (w * x - y)).mean().item()


def go_down(w: float, batches: Iterable[tuple[Tensor, Tensor]], lr: float, epochs: int) -> tuple[list[float], ...]:
    """Steps against the slope, one a batch: the weights, the start first, and each batch's cost before its step."""
    weights, costs = [w], []
    for _ in range(epochs):
        for x, y in batches:
            costs.append(cost(w, x, y).item())
            w -= lr * slope(w, x, y)
            weights.append(w)
    return weights, costs


def smoothed(costs: list[float], keep: float) -> list[float]:
    """An exponential moving average: `keep` of it stays each time; divided by what it would be if all costs were 1."""
    average, averages = 0.0, []
    for i, one in enumerate(costs, start=1):
        average = keep * average + (1 - keep) * one
        averages.append(average / (1 - keep**i))
    return averages


# ---- the same in minilearn ----


class Watch(Callback):
    """Writes down the weight after each step."""

    def before_fit(self) -> None:
        self.weights = [self.model.weight.item()]

    def after_step(self) -> None:
        self.weights.append(self.model.weight.item())


def learner(dls: DataLoaders) -> Learner:
    """A model of one weight, which begins at START; `learn.watch.weights` tells where it went."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, START)
    return Learner(dls, model, F.mse_loss, opt_func=SGD, cbs=Watch)


def main() -> None:
    args = options(__doc__).parse_args()
    epochs = 60 if args.short else EPOCHS
    torch.set_num_threads(1)

    # Trying every weight is enough for one of them, and hopeless for a million.
    best = min((i / 10 for i in range(41)), key=cost)
    print(f"best w of 0.0, 0.1, ... 4.0: {best} with a cost of {cost(best).item()}")
    print(f"prediction for 4 before: {START * 4}")
    paths, losses = {}, {}
    for name, size in SIZES.items():
        dls = DataLoaders.from_tensors(X, Y, bs=size, shuffle=size < len(X), device="cpu")
        set_seed(args.seed)
        weights, losses[name] = go_down(START, dls.train, RATE, epochs)

        learn = learner(dls)
        set_seed(args.seed)  # the same batches again
        with learn.no_logging():
            learn.fit(epochs, RATE)

        (answer,) = learn.model(torch.tensor([4.0])).tolist()
        print(f"{name}, by hand: {4 * weights[-1]:.6f} is the prediction for 4 after {len(weights) - 1} steps")
        print(f"{name}, Learner: {answer:.6f}")
        print(f"{name}, largest difference in w: {difference(weights, learn.watch.weights):.1e}")
        apart = difference(smoothed(losses[name], 0.98), learn.recorder.losses)
        print(f"{name}, largest difference in the smoothed loss: {apart:.1e}")
        paths[name] = weights[:: len(dls.train)]

    # The cost's slope changes by 2·mean(x²) = 9.33 for each unit of w: a step from w lands beyond the minimum, and
    # further from it than w was, where the rate is above 2 / 9.33 = 0.214.
    dls = DataLoaders.from_tensors(X, Y, bs=3, shuffle=False, device="cpu")
    too_far, _ = go_down(START, dls.train, 0.22, 30)
    print(f"w after 30 steps at a rate of 0.22: {too_far[-1]:.1f}")
    for lr in (0.25, 0.5):
        print(f"a Learner at a rate of {lr}: {what_minilearn_says(learner(dls), lr)}")
    print(f"picture: {save_picture(draw(paths, losses, too_far), args.out / 'gradient_descent.png')}")


def difference(by_hand: list[float], by_learner: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(by_hand, by_learner, strict=True))


def what_minilearn_says(learn: Learner, lr: float) -> str:
    """Its warning about a training that blows up, or its error where the numbers have become too large to go on."""
    with warnings.catch_warnings(record=True) as heard, learn.no_logging():
        warnings.simplefilter("always")
        try:
            learn.fit(40, lr)
        except DivergenceError as stop:
            return f"DivergenceError: {stop}"
    return "warning: " + " ".join(str(warning.message) for warning in heard)


def draw(paths: dict[str, list[float]], losses: dict[str, list[float]], too_far: list[float]) -> plt.Figure:
    def curve(weights: Tensor) -> Tensor:
        return ((weights * X.T - Y.T) ** 2).mean(-1)  # (weights, 1) · (1, 3): the cost of each

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for ax, path, window in ((axes[0, 0], paths["full batch"], (0, 4)), (axes[0, 1], too_far, (-1, 5))):
        plot_descent(path, curve, window=window, ax=ax)
        ax.set(xlabel="weight w", ylabel="cost: mean squared error")
    axes[0, 0].set_title(f"rate {RATE}: down to the best weight, w = 2")
    axes[0, 0].get_legend().set(loc="upper center", bbox_to_anchor=None)
    axes[0, 1].set_title("rate 0.22: each step leads further up")
    axes[0, 1].get_legend().remove()
    plot_metrics(range(21), {name: path[:21] for name, path in paths.items()}, ylabel="weight w", ax=axes[1, 0])
    axes[1, 0].set_title("the first 20 epochs, in steps of 3, 1 and 2 points")
    plot_loss(losses["stochastic"][:61], smooth=0.9, ax=axes[1, 1])
    axes[1, 1].set(ylabel="cost of a batch", title="stochastic descent: raw and smoothed loss")
    return figure


if __name__ == "__main__":
    main()

"""A line through 100 points, y = w·x + b, by gradient descent on all of them at once: by hand, and by a Learner.

    python examples/linear_regression.py

From w = b = 0 at a rate of 0.0001, 1,000 steps take the mean squared error from 5565.107834 to 112.614810, with
w = 1.477744 and b = 0.088937. The best line of all, which has a formula, has an error of 110.257383: it lies at the end
of a valley so flat that the steps hardly move along it. With standardised inputs 20 steps reach it. Takes about ten
seconds on two cores and leaves the picture linear_regression.png. --short is the same, as it is short already.
"""

import sys

from command_line import options

from minilearn.all import *  # noqa: F403
from minilearn.surfaces import Surface

RATE, STEPS = 0.0001, 1000
STANDARD_RATE, STANDARD_STEPS = 0.3, 20
Place = tuple[float, float]  # a line, as its w and b

# ---- by hand ----


def error(place: Place, x: np.ndarray, y: np.ndarray) -> float:
    """The mean squared error of a line."""
    w, b = place
    return ((w * x + b - y) ** 2).mean()


def go_down(x: np.ndarray, y: np.ndarray, lr: float, steps: int) -> list[Place]:
    """Steps against the error's two slopes: the lines, the first one flat at zero."""
    w, b = 0.0, 0.0
    path = [(w, b)]
    for _ in range(steps):
        miss = w * x + b - y
        w, b = w - lr * (2 * miss * x).mean(), b - lr * (2 * miss).mean()
        path.append((w, b))
    return path


def best_line(x: np.ndarray, y: np.ndarray) -> Place:
    """Where both slopes are zero: two equations, solved on paper."""
    w = ((x - x.mean()) * (y - y.mean())).mean() / x.var()
    return w, y.mean() - w * x.mean()


# ---- the same in minilearn ----


class Watch(Callback):
    """Writes down w and b after each step."""

    def before_fit(self) -> None:
        self.path = [self.place()]

    def after_step(self) -> None:
        self.path.append(self.place())

    def place(self) -> Place:
        return self.model.weight.item(), self.model.bias.item()


def by_learner(x: np.ndarray, y: np.ndarray, lr: float, steps: int) -> Learner:
    """A Learner that has taken its steps, one an epoch, as a batch is all points; `watch.path` tells where they led."""
    columns = torch.from_numpy(x).unsqueeze(1), torch.from_numpy(y).unsqueeze(1)  # (points, 1) each
    dls = DataLoaders.from_tensors(*columns, bs=len(x), shuffle=False, device="cpu")
    line = nn.Linear(1, 1).double()
    nn.init.zeros_(line.weight)
    nn.init.zeros_(line.bias)
    learn = Learner(dls, line, F.mse_loss, opt_func=SGD, cbs=Watch)
    with learn.no_logging():
        learn.fit(steps, lr)
    return learn


def main() -> None:
    args = options(__doc__).parse_args()
    torch.set_num_threads(1)

    x, y = np.genfromtxt(Path(sys.argv[0]).with_name("points.csv"), delimiter=",", unpack=True)
    best = best_line(x, y)
    path = compare("", x, y, RATE, STEPS)
    print(f"best error: {error(best, x, y):.6f} by the formula")
    print(f"best w: {best[0]:.6f}")
    print(f"best b: {best[1]:.6f}")

    z = (x - x.mean()) / x.std()
    standard = compare("standardised, ", z, y, STANDARD_RATE, STANDARD_STEPS)
    w, b = standard[-1]
    print(f"standardised, w in the inputs' own units: {w / x.std():.6f}")
    print(f"standardised, b in the inputs' own units: {b - w * x.mean() / x.std():.6f}")
    print(f"picture: {save_picture(draw(x, y, z, path, standard), args.out / 'linear_regression.png')}")


def compare(name: str, x: np.ndarray, y: np.ndarray, lr: float, steps: int) -> list[Place]:
    """Goes down by hand and by a Learner, and prints the same figures for both."""
    path, learn = go_down(x, y, lr, steps), by_learner(x, y, lr, steps)
    print(f"{name}error at the start: {error(path[0], x, y):.6f}")
    for way, end, left in (
        ("by hand", path[-1], error(path[-1], x, y)),
        ("by Learner", learn.watch.path[-1], learn.validate(dl=learn.dls.train)[0]),
    ):
        print(f"{name}error {way}: {left:.6f} after {steps:,} steps at a rate of {lr}")
        print(f"{name}w {way}: {end[0]:.6f}")
        print(f"{name}b {way}: {end[1]:.6f}")
    apart = np.abs(np.subtract(path, learn.watch.path)).max()
    print(f"{name}largest difference in w and b: {apart:.1e}")
    return path


def draw(x: np.ndarray, y: np.ndarray, z: np.ndarray, path: list[Place], standard: list[Place]) -> plt.Figure:
    figure, axes = plt.subplots(2, 2, figsize=(11, 9), layout="constrained")
    axes[0, 0].plot(x, y, "o", color="#999999", markersize=4, label="100 points")
    ends = np.array([x.min(), x.max()])
    for name, (w, b), style in (("1,000 steps", path[-1], "#0072B2"), ("best line", best_line(x, y), "#D55E00")):
        axes[0, 0].plot(ends, w * ends + b, "--" if name == "best line" else "-", color=style, label=name)
    axes[0, 0].set(xlabel="x", ylabel="y", title="the line over the points")
    axes[0, 0].legend(frameon=False)
    left = {
        "x as it is": [error(place, x, y) - error(best_line(x, y), x, y) for place in path[: STANDARD_STEPS + 1]],
        "x standardised": [error(place, z, y) - error(best_line(z, y), z, y) for place in standard],
    }
    plot_metrics(range(STANDARD_STEPS + 1), left, ylabel="error above the best line's", ax=axes[0, 1])
    axes[0, 1].set(yscale="log", xlabel="step", title="the first 20 steps")

    # The error bends 2,500 times as much along w as along b: the mean of x² is 2,491, with standardised x it is 1.
    draw_surface(x, y, path, ((-0.3, 2.4), (-25, 35)), "x as it is: into a valley, and hardly along it", axes[1, 0])
    draw_surface(z, y, standard, ((-55, 80), (-10, 90)), "x standardised: a round bowl, straight down", axes[1, 1])
    axes[1, 1].set_aspect("equal")
    return figure


def draw_surface(x: np.ndarray, y: np.ndarray, path: list[Place], window: tuple, title: str, ax: plt.Axes) -> None:
    best = best_line(x, y)

    def above_best(points: Tensor) -> Tensor:
        w, b = points.double().unsqueeze(-2).unbind(-1)  # (…, 1) each
        return ((w * torch.from_numpy(x) + b - torch.from_numpy(y)) ** 2).mean(-1) - error(best, x, y)

    surface = Surface(title, above_best, (best,), window, path[0], log_levels=True)
    plot_descent(path, surface, window=window, ax=ax)
    ax.plot(*best, "*", color="white", markeredgecolor="black", markersize=17)
    ax.annotate("best line", best, xytext=(12, 4), textcoords="offset points")
    ax.set(xlabel="w", ylabel="b")
    ax.get_legend().remove()


if __name__ == "__main__":
    main()

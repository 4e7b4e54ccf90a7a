"""The minimum of x²·sin(x), from x = 2.5 downhill: by hand, by minilearn's SGD, by a Learner; and what the rate does.

    python examples/function_minimum.py

All three reach x = 5.0870, where f(x) = -24.0830, in 200 steps at a rate of 0.005, and are at the same place after each
step. Takes about seven seconds on two cores and leaves two pictures: function_minimum.png, the path, and
learning_rates.png, four rates side by side: one too small, two that arrive, one that diverges. With --short it takes
100 steps, to x = 5.0868.
"""

import math

from command_line import options

from minilearn.all import *  # noqa: F403

START, RATE, STEPS = 2.5, 0.005, 200
RATES = {0.0005: "too small", 0.005: "good", 0.05: "quick", 0.35: "diverges"}
FAR = 1e6  # the square of what is further will soon be larger than any number that a computer keeps
WINDOW = (-7.5, 8)  # around the minimum: what diverges would squeeze everything else into a line

# ---- by hand ----


def f(x: float) -> float:
    return x**2 * math.sin(x)


def slope(x: float) -> float:
    """The derivative of f, by the product rule."""
    return 2 * x * math.sin(x) + x**2 * math.cos(x)


def go_down(x: float, lr: float, steps: int) -> list[float]:
    """Steps against the slope, as many as were asked for, or until one leads too far: the places, the start first."""
    path = [x]
    for _ in range(steps):
        x -= lr * slope(x)
        path.append(x)
        if abs(x) > FAR:
            break
    return path


# ---- by minilearn's optimizer: autograd finds the slope, SGD makes the step ----


def by_optimizer(lr: float, steps: int) -> list[float]:
    x = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    opt = SGD([x], lr=lr)
    path = [x.item()]
    for _ in range(steps):
        (x**2 * x.sin()).backward()
        opt.step()
        opt.zero_grad()
        path.append(x.item())
    return path


# ---- by a Learner: x is the model's one weight, f(x) is what it answers, and its loss ----


class Place(nn.Module):
    """Answers with f(x), whatever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(START, dtype=torch.float64))

    def forward(self, nothing: Tensor) -> Tensor:
        return self.x**2 * self.x.sin()


class Watch(Callback):
    """Writes down where x is after each step."""

    def before_fit(self) -> None:
        self.path = [self.model.x.item()]

    def after_step(self) -> None:
        self.path.append(self.model.x.item())


def by_learner(lr: float, steps: int) -> list[float]:
    nothing = torch.zeros(1)  # there is no data to learn from: a batch is an occasion for a step
    learn = Learner(
        DataLoaders([(nothing, nothing)] * steps, device="cpu"),
        Place(),
        loss_func=lambda height, nothing: height,
        opt_func=SGD,
        cbs=Watch,
    )
    with learn.no_logging():
        learn.fit(1, lr)
    return learn.watch.path


def main() -> None:
    args = options(__doc__).parse_args()
    steps = 100 if args.short else STEPS
    torch.set_num_threads(1)

    path = go_down(START, RATE, steps)
    others = {"SGD": by_optimizer(RATE, steps), "Learner": by_learner(RATE, steps)}
    print(f"x by hand: {path[-1]:.6f} with f(x) = {f(path[-1]):.6f} after {steps} steps")
    for name, other in others.items():
        apart = max(abs(a - b) for a, b in zip(path, other, strict=True))
        print(f"x by {name}: {other[-1]:.6f} with f(x) = {f(other[-1]):.6f}")
        print(f"{name}, largest difference in x: {apart:.1e}")

    paths = {lr: go_down(START, lr, 100) for lr in RATES}
    for lr, what in RATES.items():
        print(f"x at a rate of {lr}: {paths[lr][-1]:.6g} after {len(paths[lr]) - 1} steps: {what}")
    print(f"picture: {save_picture(draw_path(path), args.out / 'function_minimum.png')}")
    print(f"picture: {save_picture(draw_rates(paths), args.out / 'learning_rates.png')}")


def draw_path(path: list[float]) -> plt.Figure:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    plot_descent(path, "x2_sin_x", window=(-1, 7), name=f"rate {RATE}", ax=axes[0])
    axes[0].get_legend().set(loc="upper left", bbox_to_anchor=None)
    plot_metrics(range(0, len(path), 5), {"x": path[::5]}, ylabel="x", ax=axes[1])
    axes[1].set(xlabel="step", title="slow where the curve is flat, fast where it is steep")
    return figure


def draw_rates(paths: dict[float, list[float]]) -> plt.Figure:
    figure, axes = plt.subplots(1, 4, figsize=(13, 4.5), layout="constrained", sharey=True)
    for ax, (lr, path) in zip(axes, paths.items(), strict=True):
        plot_descent(path, "x2_sin_x", window=WINDOW, ax=ax)
        ax.set_ylim(-30, 45)
        ax.get_legend().remove()
        steps = len(path) - 1
        end = f"x = {path[-1]:.3f}" if abs(path[-1]) < FAR else "beyond a million"
        ax.set_title(f"rate {lr}: {RATES[lr]}\n{end} after {steps} steps")
    for ax in axes[1:]:
        ax.set_ylabel("")
    return figure


if __name__ == "__main__":
    main()

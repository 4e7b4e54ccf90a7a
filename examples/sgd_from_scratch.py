"""Is it a 3 or a 7? Stochastic gradient descent in seven steps by hand, then with an optimizer, then by a Learner.

    python examples/sgd_from_scratch.py

The three start from the same weights, see the same batches and do the same sums: after each of ten epochs they get the
same share of the 2,038 test images right, in the end 0.979. With a second layer it is 0.982 and more. About 10 seconds
on two cores. Leaves the picture sgd_from_scratch.png: the accuracy by epoch, the linear model's weights as an image,
and the worst mistakes. Read examples/mnist_sample.py first, the last stage alone; this one tells what is behind it.
Source: the lesson is chapter 4 of Howard and Gugger, "Deep Learning for Coders with fastai and PyTorch" (2020).
"""

from command_line import options

from minilearn.all import *  # noqa: F403

BATCH, RATE = 256, 1.0
# Stage 1, by hand. Seven steps: the weights begin at random (1), predict (2), are told their loss (3) and its gradient
# (4), and step against it (5); steps 2 to 5 are repeated (6) until it is enough (7).


def init_params(size: tuple[int, ...], spread: float = 0.02) -> Tensor:
    """Random weights. From a spread of 1, ten epochs reach 0.967: the sigmoid is flat where logits are large."""
    return (torch.randn(size) * spread).requires_grad_()


def linear1(xb: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """Each pixel times its weight, all added up: above 0 for a three, below for a seven. (batch, 784) to (batch, 1)."""
    return xb @ weights + bias


def mnist_loss(pred: Tensor, target: Tensor) -> Tensor:
    """How far the answers, pressed between 0 and 1, are from the right ones; minilearn has it under the same name."""
    three = pred.sigmoid()
    return torch.where(target == 1, 1 - three, three).mean()


def calc_grad(xb: Tensor, yb: Tensor, model) -> None:
    """Adds the loss's slope along each weight to the weight's `grad`."""
    mnist_loss(model(xb), yb).backward()


def train_epoch(model, batches, params, lr: float) -> None:
    """A small step against the gradient for each batch."""
    for xb, yb in batches:
        calc_grad(xb, yb, model)
        for p in params:
            p.data -= lr * p.grad  # the data's change is no part of what the next gradient is taken of
            p.grad.zero_()  # else the next one would be added to it


def validate_epoch(model, x: Tensor, y: Tensor) -> float:
    """The share of the images that are right."""
    with torch.no_grad():
        return ((model(x) > 0) == (y == 1)).float().mean().item()


def train_model(train, model, x: Tensor, y: Tensor, n_epoch: int) -> list[float]:
    """What the model reaches after each epoch."""
    shares = []
    for _ in range(n_epoch):
        train(model)
        shares.append(validate_epoch(model, x, y))
    return shares


class BasicOptim:
    """Stage 2, with an optimizer: it has the weights, a rate, a step, and a way to clear the gradients."""

    def __init__(self, params, lr: float) -> None:
        self.params, self.lr = list(params), lr

    def step(self) -> None:
        for p in self.params:
            p.data -= self.lr * p.grad

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None


def train_epoch_with(model, batches, opt: BasicOptim) -> None:
    for xb, yb in batches:
        calc_grad(xb, yb, model)
        opt.step()
        opt.zero_grad()


def main() -> None:
    args = options(__doc__).parse_args()
    torch.set_num_threads(1)  # sums this small are no faster on two cores
    set_seed(args.seed)
    try:
        train_x, train_y, x, y = mnist_sample()
    except DataError as problem:
        raise SystemExit(f"{problem}\nexamples/mnist_sample.py goes without it.") from None
    order = torch.randperm(len(train_x))  # mixed once: threes come first, and the stages are to see the same batches
    train_x, train_y, n_epoch = train_x[order], train_y[order], 5 if args.short else 10
    batches = list(zip(train_x.split(BATCH), train_y.split(BATCH), strict=True))

    weights, bias = init_params((28 * 28, 1)), init_params((1,))
    linear, learned = nn.Linear(28 * 28, 1), nn.Linear(28 * 28, 1)
    for layer in (linear, learned):  # the same start for all
        layer.weight.data, layer.bias.data = weights.detach().T.clone(), bias.detach().clone()

    train = partial(train_epoch, batches=batches, params=(weights, bias), lr=RATE)
    by_hand = train_model(train, partial(linear1, weights=weights, bias=bias), x, y, n_epoch)
    train = partial(train_epoch_with, batches=batches, opt=BasicOptim(linear.parameters(), RATE))
    by_optim = train_model(train, linear, x, y, n_epoch)

    # Stage 3: the batches go into loaders, and the two functions of an epoch into a Learner.
    dls = DataLoaders(DataLoader((train_x, train_y), BATCH), DataLoader((x, y), BATCH), device="cpu")
    learn = Learner(dls, learned, opt_func=SGD, loss_func=mnist_loss, metrics=batch_accuracy)
    learn.fit(n_epoch, lr=RATE)

    # For another model, here with a second layer, that is all there is to change.
    net = nn.Sequential(nn.Linear(28 * 28, 30), nn.ReLU(), nn.Linear(30, 1))
    deep = Learner(dls, net, opt_func=SGD, loss_func=mnist_loss, metrics=batch_accuracy)
    deep.fit(n_epoch, lr=RATE)

    by_learner, by_layers = ([row[-1] for row in each.recorder.values] for each in (learn, deep))
    shares = {"by hand": by_hand, "optimizer": by_optim, "Learner": by_learner, "two layers": by_layers}
    print(f"\nepoch {''.join(f'{name:>12}' for name in shares)}")
    for epoch, row in enumerate(zip(*shares.values(), strict=True)):
        print(f"{epoch:5} {''.join(f'{share:12.4f}' for share in row)}")
    for name, reached in shares.items():
        print(f"{name}: {reached[-1]:.4f} of the {len(x):,} test images")
    ends = torch.cat([weights.detach().T, linear.weight.detach(), learned.weight.detach()])  # (stages, 784)
    print(f"accuracies apart: {np.ptp([by_hand, by_optim, by_learner], axis=0).max():.6f} at most, after each epoch")
    print(f"weights apart: {(ends - ends[0]).abs().max():.1e} at most, after {n_epoch} epochs")
    print(f"picture: {save_picture(picture(shares, ends[0], net, x, y), args.out / 'sgd_from_scratch.png')}")


def picture(shares: dict[str, list[float]], weights: Tensor, net: nn.Module, x: Tensor, y: Tensor) -> "plt.Figure":
    figure, axes = plt.subplot_mosaic("aab;ccc", figsize=(11, 7.5), height_ratios=(6, 5), layout="constrained")
    plot_metrics(range(len(shares["by hand"])), shares, ylabel="share of the test images right", ax=axes["a"])
    for line, width in zip(axes["a"].lines, (11, 6, 2, 2), strict=True):
        line.set(linewidth=width, markersize=0 if width > 2 else 5)  # three that coincide are all seen
    show_image(weights.reshape(28, 28), title="the weights of one layer", cmap="PuOr", ax=axes["b"])
    axes["b"].images[0].set_clim(-weights.abs().max(), weights.abs().max())
    figure.colorbar(axes["b"].images[0], ax=axes["b"], label="← for a seven    for a three →")
    three = net(x).sigmoid().detach()
    worst = (three - y).abs().flatten().argsort(descending=True)[:16]
    pairs = torch.cat([y, three], dim=1)[worst].tolist()
    titles = [f"{3 if t else 7}, says {3 if p > 0.5 else 7}: {max(p, 1 - p):.0%}" for t, p in pairs]
    plot_images(x[worst], titles, ax=axes["c"]).set_title("the two layers' worst mistakes: what it is, what they say")
    return figure


if __name__ == "__main__":
    main()

"""Is it a 3 or a 7? A linear model learns to tell, by stochastic gradient descent, on 12,396 real images.

    python examples/mnist_sample.py

Reaches 98% of the 2,038 validation images in ten epochs, in about three seconds on two cores, and leaves the picture
mnist_sample.png. Where MNIST is not at hand and cannot be downloaded, it learns on the digits that come with minilearn.
Read this first; what happens in its lines is written out, from the gradient on, in examples/sgd_from_scratch.py.
"""

import argparse

from minilearn.all import *  # noqa: F403


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="how often to go through the images (10)")
    parser.add_argument("--seed", type=int, default=0, help="where the random numbers start (0)")
    parser.add_argument("--no-shuffle", action="store_true", help="take the images in the same order each epoch")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture (this one)")
    args = parser.parse_args()

    set_seed(args.seed)
    data = load()
    dls = DataLoaders.from_tensors(*data, bs=128, shuffle=not args.no_shuffle)
    learn = Learner(dls, nn.Linear(28 * 28, 1), opt_func=SGD, loss_func=mnist_loss, metrics=batch_accuracy)
    learn.fit(args.epochs, lr=1.0)

    _, accuracy = learn.validate()
    print(f"validation accuracy {accuracy:.4f}")
    print(f"picture: {picture(learn, data, args.out)}")


def load() -> Split:
    """The threes and sevens, 28×28 pixels each, with target 1 for a three and 0 for a seven."""
    try:
        data, name = mnist_sample(), "MNIST"
    except DataError as problem:
        print(f"{problem}\n")
        data, name = digits_sample(), "not MNIST but the digits that come with minilearn, 8×8 pixels enlarged"
    print(f"data: {name}; {len(data.train_x):,} images to train on, {len(data.valid_x):,} to validate on")
    return data


def picture(learn: Learner, data: Split, folder: Path) -> Path:
    """The course of the training, and what the model makes of images it has not seen, its mistakes first."""
    with torch.no_grad():
        three = learn.model.cpu()(data.valid_x).sigmoid().squeeze(1)
    right = (three > 0.5) == (data.valid_y.squeeze(1) == 1)
    shown = torch.cat([some(~right), some(right)])
    titles = [f"{3 if p > 0.5 else 7} ({max(p, 1 - p):.0%})" for p in three[shown].tolist()]

    figure, axes = plt.subplot_mosaic([["loss", "images"], ["score", "images"]], figsize=(13, 6), layout="constrained")
    plot_loss(learn.recorder.losses, ax=axes["loss"])
    scores = [row[-1] for row in learn.recorder.values]
    plot_metrics(learn.recorder.epochs, {"batch_accuracy": scores}, ylabel="share right", ax=axes["score"])
    plot_images(data.valid_x[shown], titles, wrong=(~right[shown]).tolist(), ax=axes["images"])
    axes["images"].set_title(f"the model's answers, {int((~right).sum())} of {len(right):,} wrong (framed)")
    return save_picture(figure, folder / "mnist_sample.png")


def some(chosen: Tensor, n: int = 16) -> Tensor:
    """The numbers of at most `n` of the rows that are chosen, from the first to the last of them."""
    rows = chosen.nonzero().flatten()
    return rows[torch.linspace(0, len(rows) - 1, min(n, len(rows))).long()]


if __name__ == "__main__":
    main()

"""A whole fit against the same sums written by hand in float64, on fixed weights and unshuffled data."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from minilearn.data import DataLoaders, digits_sample
from minilearn.data.handwritten import Split
from minilearn.learner import Learner
from minilearn.losses import mnist_loss
from minilearn.metrics import batch_accuracy
from minilearn.optim import SGD, Adam

Update = Callable[[dict[str, Tensor], Tensor, Tensor, bool], None]
BETA, EPOCHS = 0.98, 3


def sgd(lr: float, mom: float) -> Update:
    """v ← mom·v + g, p ← p - lr·v."""

    def update(state: dict[str, Tensor], p: Tensor, g: Tensor, decays: bool) -> None:
        state["v"] = mom * state.get("v", torch.zeros_like(p)) + g
        p -= lr * state["v"]

    return update


def adam(lr: float) -> Update:
    """Adam's formula, with decay 0.01 for the weights and none for the bias."""

    def update(state: dict[str, Tensor], p: Tensor, g: Tensor, decays: bool) -> None:
        t = state["t"] = state.get("t", torch.zeros((), dtype=torch.float64)) + 1
        state["m"] = 0.9 * state.get("m", torch.zeros_like(p)) + 0.1 * g
        state["v"] = 0.99 * state.get("v", torch.zeros_like(p)) + 0.01 * g * g
        if decays:
            p *= 1 - lr * 0.01
        p -= lr * (state["m"] / (1 - 0.9**t)) / ((state["v"] / (1 - 0.99**t)).sqrt() + 1e-5)

    return update


def reference(data: Split, weight: Tensor, bias: Tensor, bs: int, update: Update) -> list[list[float]]:
    """Rows of train_loss, valid_loss and accuracy, with the gradient of `mnist_loss` worked out by hand."""
    x, y, valid_x, valid_y = (part.double() for part in data)
    w, b = weight.double().clone(), bias.double().clone()
    states: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    average, count, rows = 0.0, 0, []
    for _ in range(EPOCHS):
        for start in range(0, len(x), bs):
            xb, yb = x[start : start + bs], y[start : start + bs]
            share = 1 / (1 + torch.exp(-(xb @ w.T + b)))
            loss = float(torch.where(yb == 1, 1 - share, share).mean())
            slope = torch.where(yb == 1, -1.0, 1.0) * share * (1 - share) / len(xb)
            update(states[0], w, slope.T @ xb, True)
            update(states[1], b, slope.sum(0), False)
            average, count = BETA * average + (1 - BETA) * loss, count + 1
        share = 1 / (1 + torch.exp(-(valid_x @ w.T + b)))
        valid_loss = float(torch.where(valid_y == 1, 1 - share, share).mean())
        right = float(((share > 0.5) == (valid_y == 1)).double().mean())
        rows.append([average / (1 - BETA**count), valid_loss, right])
    return rows


def check(data: Split, bs: int, opt_func: Callable[..., torch.optim.Optimizer], lr: float, update: Update) -> None:
    torch.manual_seed(0)
    model = nn.Linear(784, 1)
    expected = reference(data, model.weight.detach(), model.bias.detach(), bs, update)
    dls = DataLoaders.from_tensors(*data, bs=bs, shuffle=False, device="cpu")
    learn = Learner(dls, model, mnist_loss, opt_func, metrics=batch_accuracy)
    with learn.no_logging():
        learn.fit(EPOCHS, lr)
    for row, wanted in zip(learn.recorder.values, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-5, abs=1e-7)


CASES = [
    pytest.param(SGD, 0.5, sgd(0.5, 0.0), id="SGD"),
    pytest.param(partial(SGD, mom=0.9), 0.05, sgd(0.05, 0.9), id="SGD with momentum"),
    pytest.param(Adam, 1e-3, adam(1e-3), id="Adam"),
]


@pytest.mark.parametrize(("opt_func", "lr", "update"), CASES)
def test_fit_on_digits_equals_the_reference(
    opt_func: Callable[..., torch.optim.Optimizer], lr: float, update: Update
) -> None:
    check(digits_sample(), 32, opt_func, lr, update)


@pytest.mark.parametrize(("opt_func", "lr", "update"), CASES)
def test_fit_on_mnist_equals_the_reference(
    threes_and_sevens: Split, opt_func: Callable[..., torch.optim.Optimizer], lr: float, update: Update
) -> None:
    check(threes_and_sevens, 128, opt_func, lr, update)


@pytest.mark.parametrize("seed", range(5))
def test_linear_model_reaches_98_percent_in_ten_shuffled_epochs(threes_and_sevens: Split, seed: int) -> None:
    assert accuracy_of_the_main_job(threes_and_sevens, seed, shuffle=True) >= 0.98


def test_linear_model_reaches_96_percent_unshuffled(threes_and_sevens: Split) -> None:
    assert accuracy_of_the_main_job(threes_and_sevens, 0, shuffle=False) >= 0.96


def accuracy_of_the_main_job(data: Split, seed: int, *, shuffle: bool) -> float:
    torch.manual_seed(seed)
    dls = DataLoaders.from_tensors(*data, bs=128, shuffle=shuffle)
    learn = Learner(dls, nn.Linear(784, 1), mnist_loss, SGD, metrics=batch_accuracy)
    with learn.no_logging():
        learn.fit(10, lr=1.0)
    return learn.recorder.values[-1][2] or 0.0


def test_same_seed_gives_the_same_run_bit_for_bit() -> None:
    def run() -> tuple[Tensor, list[list[float | None]]]:
        torch.manual_seed(3)
        model = nn.Linear(784, 1)
        learn = Learner(DataLoaders.from_tensors(*digits_sample(), bs=32), model, mnist_loss, SGD)
        with learn.no_logging():
            learn.fit(2, 0.1)
        return model.weight.detach().clone(), learn.recorder.values

    (weight, values), (weight_again, values_again) = run(), run()
    assert torch.equal(weight, weight_again)
    assert values == values_again

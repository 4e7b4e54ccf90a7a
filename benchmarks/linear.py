"""The first lesson's job, by a Learner and by hand: a linear layer 784 → 1 on threes and sevens.

12,396 rows to train on and 2,038 to validate on (MNIST's where they are at hand, else random numbers of the same shape:
the sums are the same), in memory, batch 128, SGD, `mnist_loss`, with validation and `batch_accuracy`.
"""

import functools
import inspect
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import Case, Measured, Outcome, Prepare, Run, Setting, Skip, compared, race
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from minilearn.data import DataError, DataLoader, DataLoaders, mnist_sample
from minilearn.data.handwritten import SHA256, data_folders
from minilearn.learner import Learner
from minilearn.optim import SGD

BATCH, LR = 128, 1.0
TRAIN_ROWS, VALID_ROWS = 12_396, 2_038
Data = tuple[Tensor, Tensor, Tensor, Tensor]
Metrics = tuple[Callable[[Tensor, Tensor], Tensor], ...]
Source = Callable[[], Data]
"""Gives the data, on the device where the work is to be done."""


def mnist_loss(pred: Tensor, target: Tensor) -> Tensor:
    pred = pred.sigmoid()
    return torch.where(target == 1, 1 - pred, pred).mean()


def batch_accuracy(pred: Tensor, target: Tensor) -> Tensor:
    return ((pred.sigmoid() > 0.5) == target).float().mean()


def has_mnist() -> bool:
    """Whether MNIST is at hand."""
    return any((folder / "MNIST" / "raw" / f"{name}.gz").exists() for folder in data_folders() for name in SHA256)


@functools.cache
def load() -> Data:
    """MNIST's threes and sevens, or random numbers in their place."""
    if has_mnist():
        try:
            return tuple(mnist_sample())
        except DataError as error:
            print(error, file=sys.stderr)
    return random_data()


def random_data() -> Data:
    """Random numbers of the same shape."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(TRAIN_ROWS + VALID_ROWS, 784, generator=generator)
    y = torch.randint(0, 2, (TRAIN_ROWS + VALID_ROWS, 1), generator=generator)
    return x[:TRAIN_ROWS], y[:TRAIN_ROWS], x[TRAIN_ROWS:], y[TRAIN_ROWS:]


def by_hand(data: Data, model: nn.Module, epochs: int, metrics: Metrics = (batch_accuracy,)) -> Outcome:
    """The loop that somebody writes who knows torch and wants speed."""
    x, y, valid_x, valid_y = data
    params = list(model.parameters())
    train_loss, figures = 0.0, [0.0]
    for _ in range(epochs):
        order = torch.randperm(len(x)).to(x.device)
        losses = []
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            loss = mnist_loss(model(x[rows]), y[rows])
            loss.backward()
            with torch.no_grad():
                for p in params:
                    p -= LR * p.grad  # noqa: PLW2901
                    p.grad = None
            losses.append(loss.detach())
        train_loss = torch.stack(losses).mean().item()
        figures = validate_by_hand(model, valid_x, valid_y, metrics)
    assert train_loss > 0, "the loss was read"
    return [*figures, *(p.detach() for p in params)]


def validate_by_hand(model: nn.Module, x: Tensor, y: Tensor, metrics: Metrics = (batch_accuracy,)) -> list[float]:
    """The means of the loss and of the metrics over the rows."""
    measures = (mnist_loss, *metrics)
    sums = [torch.zeros(())] * len(measures)
    with torch.no_grad():
        for start in range(0, len(x), BATCH):
            xb, yb = x[start : start + BATCH], y[start : start + BATCH]
            pred = model(xb)
            sums = [total + measure(pred, yb) * len(xb) for total, measure in zip(sums, measures, strict=True)]
    return [float(total) / len(x) for total in sums]


def learner(data: Data, model: nn.Module, metrics: Any = batch_accuracy, **options: bool) -> Learner:
    dls = DataLoaders.from_tensors(*data, bs=BATCH, device=data[0].device)
    learn = Learner(dls, model, mnist_loss, SGD, metrics=metrics, **options)
    learn.logger = silent  # the rows are made, and go nowhere: a table is not what is measured
    return learn


def silent(line: str) -> None:
    pass


def by_learner(data: Data, model: nn.Module, epochs: int) -> Outcome:
    """The same with a Learner and its default callbacks."""
    learn = learner(data, model)
    learn.fit(epochs, LR)
    return [*learn.recorder.values[-1][1:], *(p.detach() for p in model.parameters())]


Side = Callable[[Data, nn.Module, int], Outcome]
SIDES: dict[str, Side] = {"hand": by_hand, "learner": by_learner}


def prepared(side: Side, epochs: int, source: Source = load) -> Prepare:
    def prepare() -> Run:
        data = source()
        model = nn.Linear(784, 1).to(data[0].device)
        return lambda: side(data, model, epochs)

    return prepare


def fit(setting: Setting, source: Source = load, tolerance: float = 1e-4) -> Measured:
    epochs = setting.of(10, 4)
    sides = [prepared(side, epochs, source) for side in (by_learner, by_hand)]
    return race(*sides, setting.rounds(31, 7), per=epochs, tolerance=tolerance, clock=setting.clock)


def needs_compile() -> None:
    """Skips where the Learner cannot compile."""
    if "compile" not in inspect.signature(Learner).parameters:
        raise Skip("this Learner has no argument compile")


def fit_compiled(setting: Setting, source: Source = load, mode: str | None = None, tolerance: float = 1e-3) -> Measured:
    """One Learner, warmed up before the first round: each round begins with the same weights again.

    Args:
        setting: how to measure.
        source: the data.
        mode: torch.compile's for the loop by hand, which is warmed up too; None leaves that as it is.
        tolerance: how far the sums may be apart, relatively.
    """
    needs_compile()
    epochs, data = setting.of(10, 4), source()
    model = nn.Linear(784, 1).to(data[0].device)
    learn = learner(data, model, compile=True)
    learn.fit(1, LR)

    def prepare() -> Run:
        model.load_state_dict(nn.Linear(784, 1).state_dict())

        def run() -> Outcome:
            learn.fit(epochs, LR)
            return [*learn.recorder.values[-1][1:], *(p.detach() for p in model.parameters())]

        return run

    theirs = prepared(by_hand, epochs, source) if mode is None else compiled_by_hand(data, epochs, mode)
    return race(prepare, theirs, setting.rounds(31, 7), per=epochs, tolerance=tolerance, clock=setting.clock)


def compiled_by_hand(data: Data, epochs: int, mode: str) -> Prepare:
    """The loop by hand with its model compiled, a graph for each size of batch, and warmed up."""
    model = nn.Linear(784, 1).to(data[0].device)
    quick_model = torch.compile(model, mode=mode, dynamic=False)
    by_hand(data, quick_model, 1)

    def prepare() -> Run:
        model.load_state_dict(nn.Linear(784, 1).state_dict())
        return lambda: by_hand(data, quick_model, epochs)

    return prepare


def confidence(pred: Tensor, target: Tensor) -> Tensor:
    return torch.where(target == 1, pred.sigmoid(), 1 - pred.sigmoid()).mean()


def squared_error(pred: Tensor, target: Tensor) -> Tensor:
    return (pred.sigmoid() - target).square().mean()


THREE = (batch_accuracy, confidence, squared_error)


def fit_three(setting: Setting) -> Measured:
    """The default callbacks and three metrics."""
    epochs = setting.of(10, 4)

    def ours(data: Data, model: nn.Module, epochs: int) -> Outcome:
        learn = learner(data, model, metrics=list(THREE))
        learn.fit(epochs, LR)
        return [*learn.recorder.values[-1][1:], *(p.detach() for p in model.parameters())]

    def theirs(data: Data, model: nn.Module, epochs: int) -> Outcome:
        return by_hand(data, model, epochs, THREE)

    sides = [prepared(side, epochs) for side in (ours, theirs)]
    return race(*sides, setting.rounds(31, 7), per=epochs, clock=setting.clock)


def validate(setting: Setting) -> Measured:
    """Validation over the training rows: there are more of them."""
    (x, y, *_), times = load(), setting.of(5, 3)

    def ours() -> Run:
        learn = learner((x, y, x, y), nn.Linear(784, 1))
        return lambda: [learn.validate() for _ in range(times)][-1]

    def theirs() -> Run:
        model = nn.Linear(784, 1).eval()
        return lambda: [validate_by_hand(model, x, y) for _ in range(times)][-1]

    return race(ours, theirs, setting.rounds(91, 7), per=times)


def get_preds(setting: Setting) -> Measured:
    (x, y, *_), times = load(), setting.of(5, 3)

    def ours() -> Run:
        learn = learner((x, y, x, y), nn.Linear(784, 1))
        return lambda: list([learn.get_preds() for _ in range(times)][-1])[:2]

    def by_hand() -> Outcome:
        with torch.no_grad():
            preds = torch.cat([model(x[start : start + BATCH]) for start in range(0, len(x), BATCH)])
        return [preds, torch.cat([y[start : start + BATCH] for start in range(0, len(x), BATCH)])]

    model = nn.Linear(784, 1)

    def theirs() -> Run:
        model.load_state_dict(nn.Linear(784, 1).state_dict())
        return lambda: [by_hand() for _ in range(times)][-1]

    return race(ours, theirs, setting.rounds(91, 7), per=times)


def list_of_rows(setting: Setting) -> Measured:
    """The lessons' `DataLoader(list(zip(x, y)), 128)`, gone through, beside one over a `TensorDataset`."""
    x, y = load()[:2]
    loaders = [DataLoader(rows, BATCH, shuffle=True) for rows in (list(zip(x, y, strict=True)), TensorDataset(x, y))]
    seconds: list[list[float]] = [[], []]
    for i in range(setting.of(60, 20) + 1):
        sums = []
        for loader, times in zip(loaders, seconds, strict=True):
            torch.manual_seed(i)
            started = time.perf_counter()
            for batch in loader:  # noqa: B007 -- the last one is looked at
                pass
            if i:
                times.append(time.perf_counter() - started)
            sums.append(batch[0])
        assert torch.equal(*sums), "the two loaders gave different batches"
    return compared(*seconds)


JOB = "linear 784→1, batch 128, in memory, validation and one metric, an epoch"
CASES = [
    Case("linear", "Learner.fit", "loop by hand", JOB, fit, 1.10),
    Case("linear, three metrics", "Learner.fit", "loop by hand", JOB.replace("one metric", "three"), fit_three, 1.15),
    Case("linear, compiled", "Learner(compile=True).fit, warm", "loop by hand, eager", JOB, fit_compiled, 0.60),
    Case("validate", "learn.validate()", "loop by hand", "linear, 12,396 rows, loss and metric", validate, 1.05),
    Case("get_preds", "learn.get_preds()", "loop by hand", "linear, 12,396 rows", get_preds, 1.05),
    Case("list of rows", "DataLoader(list(zip(x, y)))", "DataLoader(TensorDataset)", "loading", list_of_rows, 1.15),
]

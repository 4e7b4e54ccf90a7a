"""Larger models in memory, by a Learner and by hand, as they are and compiled; each epoch with validation."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from harness import Case, Measured, Outcome, Prepare, Run, Setting, race
from linear import Data, Source, has_mnist, needs_compile, silent
from torch import Tensor, nn

from minilearn.data import DataLoaders, mnist
from minilearn.learner import Learner
from minilearn.metrics import accuracy
from minilearn.optim import SGD
from minilearn.vision import torchvision

LR, MOM = 0.01, 0.9


@functools.cache
def digits() -> Data:
    """MNIST's ten classes, or random numbers in their place."""
    return tuple(mnist()) if has_mnist() else random_digits()


@functools.cache
def random_digits() -> Data:
    """Random numbers of the same shape."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(70_000, 784, generator=generator), torch.randint(0, 10, (70_000,), generator=generator)
    return x[:60_000], y[:60_000], x[60_000:], y[60_000:]


def rows_of_digits(rows: int, *shape: int, source: Source = digits) -> Data:
    """So many rows to train on, a sixth as many to validate on."""
    x, y, valid_x, valid_y = source()
    n = rows // 6
    return x[:rows].view(rows, *shape), y[:rows], valid_x[:n].view(n, *shape), valid_y[:n]


def random_images(rows: int, side: int = 64) -> Data:
    """3×64×64, or so large a side."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(rows, 3, side, side, generator=generator), torch.randint(0, 10, (rows,), generator=generator)
    return x, y, x[: rows // 4], y[: rows // 4]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))


def resnet18() -> nn.Module:
    return torchvision.models.resnet18(num_classes=10)


def lenet() -> nn.Module:
    """LeNet-5 with ReLU and max pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A model and its data."""

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[Setting], Data]
    batch: int
    bar: float | None
    rounds: tuple[int, int]
    slow: bool = False
    compares: str = ""
    tolerance: float = 1e-2
    """Between the sums of two ways to compile, relative. Batch normalisation of a few rows multiplies rounding: after
    an epoch of ResNet-18 by hand at a rate of 0.01 float32 and float64 differ by 0.09, compiled and float64 by 0.11; at
    0.001 by 0.03 and 0.04."""
    lr: float = LR
    eager_tolerance: float = 1e-2
    """Between the sums of a Learner and those by hand, both as they are."""
    mode: str = "default"
    """torch.compile's, for the loop by hand; a Learner chooses its own."""


def hand_epoch(model: nn.Module, opt: torch.optim.Optimizer, data: Data, batch: int) -> tuple[float, float]:
    """The loop that somebody writes who knows torch; gives the validation's loss and accuracy."""
    x, y, valid_x, valid_y = data
    model.train()
    order, losses = torch.randperm(len(x)).to(x.device), []
    for start in range(0, len(x), batch):
        rows = order[start : start + batch]
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    torch.stack(losses).mean().item()
    return hand_validation(model, valid_x, valid_y, batch)


def hand_validation(model: nn.Module, x: Tensor, y: Tensor, batch: int) -> tuple[float, float]:
    model.eval()
    loss = right = torch.zeros(())
    with torch.no_grad():
        for start in range(0, len(x), batch):
            yb = y[start : start + batch]
            pred = model(x[start : start + batch])
            loss = loss + F.cross_entropy(pred, yb) * len(yb)
            right = right + (pred.argmax(-1) == yb).sum()
    return float(loss) / len(x), float(right) / len(x)


def outcome(model: nn.Module, figures: tuple[float, ...]) -> Outcome:
    """The loss and the weights. Not the accuracy: where two classes are nearly level, rounding decides."""
    return [figures[0], *(p.detach() for p in model.parameters())]


def learner(job: Job, data: Data, model: nn.Module, **options: bool) -> Learner:
    dls = DataLoaders.from_tensors(*data, bs=job.batch, device=data[0].device)
    learn = Learner(dls, model, F.cross_entropy, functools.partial(SGD, mom=MOM), metrics=accuracy, **options)
    learn.logger = silent
    return learn


def torchs_sgd(model: nn.Module, lr: float = LR) -> torch.optim.Optimizer:
    """torch's fastest form of it."""
    return torch.optim.SGD(model.parameters(), lr, momentum=MOM, fused=True)


def by_learner(job: Job, data: Data) -> Prepare:
    """An epoch with a Learner."""

    def prepare() -> Run:
        model = job.model()
        learn = learner(job, data, model)

        def run() -> Outcome:
            learn.fit(1, job.lr)
            return outcome(model, tuple(learn.recorder.values[-1][1:]))

        return run

    return prepare


def eager(job: Job, setting: Setting) -> Measured:
    data = job.data(setting)

    def theirs() -> Run:
        model = job.model()
        opt = torchs_sgd(model, job.lr)
        return lambda: outcome(model, hand_epoch(model, opt, data, job.batch))

    rounds = setting.rounds(*job.rounds)
    return race(by_learner(job, data), theirs, rounds, tolerance=job.eager_tolerance, clock=setting.clock)


def compiled(job: Job, setting: Setting) -> Measured:
    """Each side compiles once, in a warm-up; then each round begins with the same weights again."""
    needs_compile()
    data, our_model, their_model = job.data(setting), job.model(), job.model()
    learn, quick_model = learner(job, data, our_model, compile=True), torch.compile(their_model, mode=job.mode)
    learn.fit(1, job.lr)
    hand_epoch(quick_model, torchs_sgd(their_model, job.lr), data, job.batch)

    def fresh(model: nn.Module, run: Run) -> Prepare:
        def prepare() -> Run:
            model.load_state_dict(job.model().state_dict())
            return run

        return prepare

    def ours() -> Outcome:
        learn.fit(1, job.lr, reset_opt=True)
        return outcome(our_model, tuple(learn.recorder.values[-1][1:]))

    def theirs() -> Outcome:
        return outcome(their_model, hand_epoch(quick_model, torchs_sgd(their_model, job.lr), data, job.batch))

    sides, rounds = (fresh(our_model, ours), fresh(their_model, theirs)), setting.rounds(*job.rounds)
    return race(*sides, rounds, tolerance=job.tolerance, clock=setting.clock)


JOBS = [
    Job(
        "MLP", mlp, lambda s: rows_of_digits(s.of(60_000, 12_288), 784), 512, 1.05, (15, 7),
        compares="MLP 784–256–64–10, batch 512, MNIST",
    ),
    Job(
        "LeNet", lenet, lambda s: rows_of_digits(s.of(6_144, 3_072), 1, 28, 28), 128, 1.05, (15, 5),
        compares="LeNet, batch 128, MNIST",
    ),
    Job(
        "ResNet-18", resnet18, lambda s: random_images(128), 32, 1.02, (7, 1),
        slow=True, compares="ResNet-18, 3×64×64, batch 32", tolerance=0.1, lr=0.001,
    ),
]  # fmt: skip
CASES = [
    case
    for job in JOBS
    for case in (
        Case(
            job.name, "Learner.fit", "loop by hand", job.compares, functools.partial(eager, job), job.bar, slow=job.slow
        ),
        Case(
            f"{job.name}, compiled", "Learner(compile=True).fit, warm", "loop by hand, torch.compile, warm",
            job.compares, functools.partial(compiled, job), 1.00, slow=True,
        ),
    )
]  # fmt: skip

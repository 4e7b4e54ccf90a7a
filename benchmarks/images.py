"""Images: PNG files read by worker processes, and bytes in memory that are changed at random, batch by batch."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import Case, Measured, Outcome, Run, Setting, Skip, race
from linear import silent
from models import digits, mlp, outcome, rows_of_digits
from PIL import Image
from torch import Tensor, nn

import minilearn.all
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.metrics import accuracy
from minilearn.optim import SGD
from minilearn.vision import torchvision

BATCH, LR, WORKERS = 128, 0.1, 2
MEAN, STD = 0.1307, 0.3081
transforms = torchvision.transforms


@functools.cache
def folder(rows: int) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder of PNG files, train and valid, each with a folder a class."""
    made = tempfile.TemporaryDirectory(prefix="minilearn-png-")
    x, y, valid_x, valid_y = rows_of_digits(rows, 28, 28)
    for part, images, classes in (("train", x, y), ("valid", valid_x, valid_y)):
        for c in range(10):
            (Path(made.name) / part / str(c)).mkdir(parents=True)
        for i, (image, c) in enumerate(zip((images * 255).byte().numpy(), classes.tolist(), strict=True)):
            Image.fromarray(image).save(Path(made.name) / part / str(c) / f"{i}.png")
    return made


def png_files(setting: Setting) -> Measured:
    """Both sides open the files by the same transforms with the same workers."""
    path = Path(folder(setting.of(6_000, 2_000)).name)
    change = transforms.Compose(
        [transforms.Grayscale(), transforms.ToTensor(), transforms.Normalize(MEAN, STD), transforms.Lambda(torch.ravel)]
    )
    train, valid = (torchvision.datasets.ImageFolder(path / part, change) for part in ("train", "valid"))

    def ours() -> Run:
        model = mlp()
        dls = DataLoaders.from_dsets(train, valid, bs=BATCH, num_workers=WORKERS, device="cpu")
        learn = Learner(dls, model, F.cross_entropy, SGD, metrics=accuracy)
        learn.logger = silent

        def run() -> Outcome:
            learn.fit(1, LR)
            return outcome(model, tuple(learn.recorder.values[-1][1:]))

        return run

    def theirs() -> Run:
        model = mlp()
        opt = torch.optim.SGD(model.parameters(), LR)
        train_dl = torch.utils.data.DataLoader(train, BATCH, shuffle=True, num_workers=WORKERS)
        valid_dl = torch.utils.data.DataLoader(valid, BATCH, num_workers=WORKERS)
        return lambda: outcome(model, loop(model, opt, train_dl, valid_dl))

    return race(ours, theirs, setting.of(9, 3), tolerance=1e-3)


def loop(model: nn.Module, opt: torch.optim.Optimizer, train_dl: Any, valid_dl: Any) -> tuple[float, float]:
    """An epoch by hand over loaders, and its validation's loss and accuracy."""
    model.train()
    for x, y in train_dl:
        F.cross_entropy(model(x), y).backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
    model.eval()
    loss, right, rows = torch.zeros(()), torch.zeros(()), 0
    with torch.no_grad():
        for x, y in valid_dl:
            pred = model(x)
            loss = loss + F.cross_entropy(pred, y) * len(y)
            right = right + (pred.argmax(-1) == y).sum()
            rows += len(y)
    return float(loss) / rows, float(right) / rows


class Items(torch.utils.data.Dataset[Any]):
    """Images of bytes in memory, each changed on its own, as torchvision's users do it."""

    def __init__(self, x: Tensor, y: Tensor, change: Any) -> None:
        self.x, self.y, self.change = x, y, change

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.change(self.x[i]), self.y[i]


def batch_transforms(setting: Setting) -> Measured:
    """A random shift of up to two pixels and normalisation, in an epoch's training of a linear layer."""
    names = ("IntToFloat", "RandomShift", "Normalize")
    if not all(hasattr(minilearn.all, name) for name in names):
        raise Skip(f"minilearn has no {', '.join(names)}")
    int_to_float, random_shift, normalize = (getattr(minilearn.all, name) for name in names)
    rows = setting.of(24_576, 6_144)
    x, y = (digits()[0][:rows].view(rows, 1, 28, 28) * 255).byte(), digits()[1][:rows]
    change = [
        transforms.RandomCrop(28, padding=2),
        transforms.ConvertImageDtype(torch.float32),
        transforms.Normalize(MEAN, STD),
    ]
    still = torchvision.transforms.Compose(change[1:])(x)

    def model() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def end(net: nn.Module) -> Outcome:
        """The loss over images that do not move: the shifts are other ones on each side."""
        with torch.no_grad():
            return [float(F.cross_entropy(net(still), y))]

    def ours() -> Run:
        net = model()
        tfms = [int_to_float(), random_shift(2), normalize(MEAN, STD)]
        dls = DataLoaders.from_tensors(x, y, bs=BATCH, device="cpu", batch_tfms=tfms)
        learn = Learner(dls, net, F.cross_entropy, SGD)
        learn.logger = silent

        def run() -> Outcome:
            learn.fit(1, 0.01)
            return end(net)

        return run

    def theirs() -> Run:
        net = model()
        opt = torch.optim.SGD(net.parameters(), 0.01)
        items = Items(x, y, transforms.Compose(change))
        loader = torch.utils.data.DataLoader(items, BATCH, shuffle=True)

        def run() -> Outcome:
            for xb, yb in loader:
                F.cross_entropy(net(xb), yb).backward()
                opt.step()
                opt.zero_grad(set_to_none=True)
            return end(net)

        return run

    return race(ours, theirs, setting.of(5, 3), tolerance=0.1)


CASES = [
    Case("PNG files", "Learner.fit", "loop by hand", "MLP, batch 128, 2 workers, an epoch", png_files, 1.05),
    Case(
        "batch transforms", "DataLoaders(batch_tfms=…)", "torch's DataLoader, per item",
        "bytes in memory, random shift, normalisation, linear 784→10", batch_transforms, 0.10,
    ),
]  # fmt: skip

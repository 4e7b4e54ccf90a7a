"""Set-ups that are broken on purpose, each with what is to be said about it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from minilearn.callback import Callback
from minilearn.callbacks import TrainEval
from minilearn.data import DataLoader, DataLoaders
from minilearn.flat_losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from minilearn.learner import Learner
from minilearn.losses import FocalLoss, LabelSmoothingCrossEntropy, mnist_loss
from minilearn.optim import SGD, Adam


class Broken(NamedTuple):
    """A set-up that is wrong."""

    name: str
    make: Callable[[], Learner]
    text: str
    """What `learn.check()` says, as a pattern."""
    sure: bool = True
    """Whether it is an error; else a warning."""
    in_fit: bool = True
    """Whether a fit says so too."""


def rows(n: int = 96, features: int = 6) -> Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(0))


X = rows()
CLASS = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()  # three classes
YES = (X[:, :1] > 0).float()  # (rows, 1)
NUMBER = X.sum(1, keepdim=True)
PICTURES = torch.randint(0, 256, (96, 1, 6, 6), generator=torch.Generator().manual_seed(0)).float()


def learner(
    x: Any = X,
    y: Any = CLASS,
    model: nn.Module | None = None,
    loss: Any = F.cross_entropy,
    bs: int = 16,
    shuffle: bool = True,
    opt: Any = Adam,
    n_valid: int = 32,
    **options: Any,
) -> Learner:
    """A Learner on the CPU that is sound but for what is given."""
    torch.manual_seed(0)
    model = model if model is not None else body(3)
    n = len(x) - n_valid
    dls = DataLoaders.from_tensors(x[:n], y[:n], x[n:], y[n:], bs=bs, shuffle=shuffle, device="cpu")
    return Learner(dls, model, loss_func=loss, opt_func=opt, **options)


def body(out: int, *after: nn.Module, features: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, 12), nn.ReLU(), nn.Linear(12, out), *after)


def number(**options: Any) -> Learner:
    """One for numbers, that is sound but for what is given."""
    return learner(**({"y": NUMBER, "model": body(1), "loss": F.mse_loss} | options))


def yes(**options: Any) -> Learner:
    """One for a yes or no, that is sound but for what is given."""
    return learner(**({"y": YES, "model": body(1), "loss": F.binary_cross_entropy_with_logits} | options))


def lists(train: list[Any], valid: list[Any], model: nn.Module, loss: Any, **options: Any) -> Learner:
    """One whose loaders are lists of batches."""
    return Learner(DataLoaders(train, *([valid] if valid else []), device="cpu"), model, loss_func=loss, **options)


def with_value(value: float, row: int) -> Tensor:
    x = X.clone()
    x[row, 2] = value
    return x


def batch_with_nan() -> Learner:
    x = X.clone()
    x[:, 3] = X[:, 3] / torch.zeros(96)
    return learner(x=x)


class Detached(nn.Module):
    """A model whose first layer is cut off from the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu().detach())


class Unused(nn.Module):
    """A model with a layer that is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.forgotten = body(3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class NoGradBody(nn.Module):
    """A model whose body was left in torch.no_grad()."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.body(x)
        return self.head(x)


class Rounds(nn.Module):
    """A model that rounds: its gradients are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).round()


class Argmax(nn.Module):
    """A model that gives the class itself, of which no gradient is known."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).argmax(1, keepdim=True).float()


class FromData(nn.Module):
    """A model whose answer does not come from its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).detach()


class EvalAlways(TrainEval):
    """Training mode forgotten."""

    def before_train(self) -> None:
        super().before_train()
        self.model.eval()


class EvalLater(Callback):
    """Puts the model into evaluation mode before each batch."""

    order = TrainEval.order + 1

    def before_batch(self) -> None:
        self.model.eval()


class BadRows(Dataset[Any]):
    """Rows of which one cannot be read."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, i: int) -> Any:
        if i >= 0:
            raise OSError("the disk with row images is not there")
        return X[i], CLASS[i]


class Rows(Dataset[Any]):
    """Rows that are read one by one."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], self.y[i]


def workers(dataset: Any, n: int = 1, **options: Any) -> Learner:
    train = DataLoader(dataset, 16, num_workers=n, **options)
    return Learner(DataLoaders(train, device="cpu"), body(3), loss_func=F.cross_entropy)


class HeldLambda(Rows):
    """A dataset that holds what cannot be sent to a process that is spawned."""

    def __init__(self) -> None:
        super().__init__(X, CLASS)
        self.change = lambda x: x


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def scaled(model: nn.Sequential, by: float) -> nn.Sequential:
    with torch.no_grad():
        model[-1].weight.mul_(by)
        model[-1].bias.mul_(by)
    return model


def pictures(*layers: nn.Module, x: Tensor = PICTURES, **options: Any) -> Learner:
    torch.manual_seed(0)
    return learner(x=x, model=nn.Sequential(*layers), **options)


def by_class() -> tuple[Tensor, Tensor]:
    order = CLASS.argsort(stable=True)
    return X[order], CLASS[order]


def sorted_learner(bs: int = 16, loss: Any = F.cross_entropy, down: bool = False) -> Learner:
    x, y = by_class()
    x, y = (x.flip(0), y.flip(0)) if down else (x, y)
    dls = DataLoaders.from_tensors(x, y, X[:32] + 1, CLASS[:32], bs=bs, shuffle=False, device="cpu")
    return Learner(dls, body(3), loss_func=loss)


def batches_of_a_class() -> Learner:
    x, y = by_class()
    batches = [(x[y == c][:12], y[y == c][:12]) for c in (2, 0, 1, 0)]
    return lists(batches, [(X[:8] + 1, CLASS[:8])], body(3), F.cross_entropy)


def shared(n: int, x: Tensor = X, y: Tensor = CLASS) -> Learner:
    """The first `n` validation rows are training rows."""
    new = torch.randn(40 - n, 6, generator=torch.Generator().manual_seed(1))
    valid = torch.cat([x[:n], new]), torch.cat([y[:n], y[: 40 - n]])
    return Learner(DataLoaders.from_tensors(x, y, *valid, bs=16, device="cpu"), body(3), loss_func=F.cross_entropy)


def same_dataset() -> Learner:
    dataset = TensorDataset(X, CLASS)
    dls = DataLoaders(DataLoader(dataset, 16, shuffle=True), DataLoader(dataset, 16), device="cpu")
    return Learner(dls, body(3), loss_func=F.cross_entropy)


def shared_row_by_row() -> Learner:
    train, valid = Rows(X, CLASS), Rows(X[50:80].clone(), CLASS[50:80])
    dls = DataLoaders(DataLoader(train, 16, shuffle=True), DataLoader(valid, 16), device="cpu")
    return Learner(dls, body(3), loss_func=F.cross_entropy)


def hand_made_opt() -> Learner:
    learn = learner()
    learn.create_opt()
    learn.opt = torch.optim.SGD(learn.model[2].parameters(), lr=0.01)
    return learn


def head_only(model: nn.Module) -> list[nn.Parameter]:
    return list(model[2].parameters())  # type: ignore[index]


def other_device() -> Learner:
    batch = X[:16].to("meta"), CLASS[:16]
    return lists([batch], [], body(3), F.cross_entropy, default_cbs=False)


def model_elsewhere() -> Learner:
    return lists([(X[:16], CLASS[:16])], [], body(3).to("meta"), F.cross_entropy, default_cbs=False)


def wrapped(pred: Tensor, target: Tensor) -> Tensor:
    """A loss by hand over one of torch's."""
    return F.cross_entropy(pred, target)


def by_hand_mse(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, written out."""
    return ((pred - target) ** 2).mean()


NORM = (nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
ONE_HOT = F.one_hot(CLASS, 3)
NOT_NORMALISED = "the inputs are not normalised"

BROKEN = [
    # predictions and targets broadcast against each other
    Broken("column against row, mse", lambda: number(y=NUMBER[:, 0]), r"\(16, 1\) but targets are \(16,\)"),
    Broken("row against column, l1", lambda: number(model=body(1, nn.Flatten(0)), loss=F.l1_loss), "would broadcast"),
    Broken("column against row, by hand", lambda: number(y=NUMBER[:, 0], loss=by_hand_mse), "would broadcast"),
    Broken("column against row, module", lambda: number(y=NUMBER[:, 0], loss=nn.SmoothL1Loss()), "would broadcast"),
    Broken("classes against numbers, mse", lambda: number(y=CLASS.float()[:, None], model=body(3)), "would broadcast"),
    Broken("column against row, bce", lambda: yes(y=YES[:, 0]), "Use targets.unsqueeze"),
    Broken("column against row, mnist_loss", lambda: yes(y=YES[:, 0], loss=mnist_loss), "would broadcast"),
    # class indices out of range
    Broken("classes from 1", lambda: learner(y=CLASS + 1), r"class indices must be in \[0, 3\).* from . to 3"),
    Broken("too few outputs", lambda: learner(model=body(2)), r"must be in \[0, 2\).*last layer 3 outputs"),
    Broken("negative class", lambda: learner(y=CLASS - 1), r"targets run from -1 to"),
    Broken("too few outputs, by hand", lambda: learner(model=body(2), loss=wrapped), r"must be in \[0, 2\)"),
    Broken("too few outputs, flat", lambda: learner(model=body(2), loss=CrossEntropyLossFlat()), r"in \[0, 2\)"),
    Broken("one output", lambda: learner(model=body(1)), "with one class cross_entropy is 0 whatever", in_fit=False),
    # activations twice, or none
    Broken("softmax, cross-entropy", lambda: learner(model=body(3, nn.Softmax(1))), "softmax, and cross_entropy app"),
    Broken(
        "softmax, module", lambda: learner(model=body(3, nn.Softmax(-1)), loss=nn.CrossEntropyLoss()), "softmax again"
    ),
    Broken(
        "softmax in the loss",
        lambda: learner(loss=lambda p, t: wrapped(p.softmax(1), t)),
        "softmax again",
        in_fit=False,
    ),
    Broken(
        "softmax, smoothed", lambda: learner(model=body(3, nn.Softmax(1)), loss=LabelSmoothingCrossEntropy()), "again"
    ),
    Broken("softmax, focal", lambda: learner(model=body(3, nn.Softmax(1)), loss=FocalLoss()), "softmax again"),
    Broken("sigmoid, cross-entropy", lambda: learner(model=body(3, nn.Sigmoid())), "come out of a sigmoid, and"),
    Broken("sigmoid, bce of logits", lambda: yes(model=body(1, nn.Sigmoid())), "applies a sigmoid again"),
    Broken(
        "sigmoid, flat bce", lambda: yes(model=body(1, nn.Sigmoid()), loss=BCEWithLogitsLossFlat()), "sigmoid again"
    ),
    Broken("sigmoid, mnist_loss", lambda: yes(model=body(1, nn.Sigmoid()), loss=mnist_loss), "a sigmoid again"),
    Broken(
        "softmax of one", lambda: yes(model=body(1, nn.Softmax(1)), loss=F.binary_cross_entropy), "axis 1 of length 1"
    ),
    Broken("logits, nll", lambda: learner(loss=F.nll_loss), "gives no log-probabilities", sure=False),
    Broken(
        "softmax, nll", lambda: learner(model=body(3, nn.Softmax(1)), loss=nn.NLLLoss()), "not in its log", sure=False
    ),
    Broken("logits, bce", lambda: yes(loss=F.binary_cross_entropy), "takes probabilities|between 0 and 1"),
    # targets of another kind than the loss's
    Broken("whole numbers, mse", lambda: number(y=NUMBER.long()), "measures distances", sure=False, in_fit=False),
    Broken(
        "whole numbers, huber",
        lambda: number(y=NUMBER.long(), loss=F.huber_loss),
        "measures dist",
        sure=False,
        in_fit=False,
    ),
    Broken(
        "floats, cross-entropy", lambda: learner(y=CLASS.float()), r"targets are float32 \(16,\), but class indices"
    ),
    Broken("int32, cross-entropy", lambda: learner(y=CLASS.int()), "Use targets.long()"),
    Broken("whole numbers, bce", lambda: yes(y=YES.long()), "Use targets.float()"),
    Broken("-1 and 1, bce", lambda: yes(y=YES * 2 - 1), "targets must be from 0 to 1"),
    Broken("one-hot int, cross-entropy", lambda: learner(y=ONE_HOT), r"one-hot it seems.*Use targets.argmax\(1\)"),
    Broken(
        "one-hot, nll", lambda: learner(y=ONE_HOT.float(), model=body(3, nn.LogSoftmax(1)), loss=F.nll_loss), "one-hot"
    ),
    Broken("one-hot, focal", lambda: learner(y=ONE_HOT, loss=FocalLoss()), "one-hot it seems"),
    Broken("indices, bce", lambda: yes(y=CLASS, model=body(3)), r"one_hot\(targets, 3\)"),
    # inputs
    Broken("bytes, linear", lambda: pictures(nn.Flatten(), nn.Linear(36, 3)), NOT_NORMALISED, sure=False),
    Broken(
        "bytes, convolution",
        lambda: pictures(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)),
        NOT_NORMALISED,
        sure=False,
    ),
    Broken("far from 0", lambda: learner(x=X * 1000 + 5000, lr=1e-6), NOT_NORMALISED, sure=False, in_fit=False),
    Broken("constant", lambda: learner(x=torch.ones(96, 6)), "the inputs are constant", sure=False, in_fit=False),
    Broken("one nan", lambda: learner(x=with_value(float("nan"), 3), shuffle=False), "in 1 of 16 rows: row 3"),
    Broken("one inf", lambda: learner(x=with_value(float("inf"), 5), shuffle=False), "in 1 of 16 rows: row 5"),
    Broken("a column divided by 0", batch_with_nan, "in 16 of 16 rows"),
    Broken("nan in targets", lambda: number(y=NUMBER / 0.0 * 0.0), "the targets of the first training batch are nan"),
    Broken(
        "nan in validation",
        lambda: learner(x=with_value(float("nan"), 70)),
        "first validation batch are nan or infinite in 1 of 16 rows: row 6",
        sure=False,
    ),
    # labels
    Broken("sorted", sorted_learner, "the labels are sorted", sure=False),
    Broken("sorted downwards", lambda: sorted_learner(down=True), "the labels are sorted", sure=False),
    Broken("batches of a class", batches_of_a_class, "2, 0, 1, 0", sure=False, in_fit=False),
    Broken("one class", lambda: learner(y=CLASS * 0), "all of one class.* all 0", sure=False, in_fit=False),
    # rows in both sets
    Broken("some rows in both", lambda: shared(20), "20 of the 40 validation rows", sure=False, in_fit=False),
    Broken("same data set", same_dataset, "the validation set is the training set", sure=False, in_fit=False),
    Broken("rows in both, one by one", shared_row_by_row, "30 of the 30", sure=False, in_fit=False),
    # the model
    Broken(
        "model in eval",
        lambda: learner(model=body(3, nn.Dropout(0.1)), cbs=EvalAlways),
        "in evaluation mode",
        sure=False,
    ),
    Broken("all frozen", lambda: learner(model=frozen(body(3)), opt=SGD), "no parameters to train"),
    Broken(
        "detached inside", lambda: learner(model=Detached()), "2 of the model's 4 trained.*first.weight", sure=False
    ),
    Broken(
        "a layer left out",
        lambda: learner(model=Unused()),
        "no gradient in 3 batches: forgotten",
        sure=False,
        in_fit=False,
    ),
    Broken("body without gradient", lambda: learner(model=NoGradBody()), "got no gradient.*body.weight", sure=False),
    Broken(
        "rounded", lambda: number(model=Rounds()), "every gradient of the first batch is 0", sure=False, in_fit=False
    ),
    Broken(
        "left out by splitter", lambda: learner(splitter=head_only), "not in the optimizer", sure=False, in_fit=False
    ),
    Broken("optimizer by hand", hand_made_opt, "0.weight, 0.bias", sure=False, in_fit=False),
    Broken("argmax", lambda: number(model=Argmax()), "does not depend on the model's parameters"),
    Broken("detached answer", lambda: learner(model=FromData()), "does not depend on the model's parameters"),
    Broken("loss a row", lambda: number(loss=partial(F.mse_loss, reduction="none")), "must be a tensor that holds one"),
    Broken(
        "data elsewhere",
        other_device,
        "the model is on another device than the data: on cpu, the input on meta",
        in_fit=False,
    ),
    Broken("model elsewhere", model_elsewhere, "on meta, the input on cpu", in_fit=False),
    # first loss and learning rate
    Broken("last layer large", lambda: learner(model=scaled(body(3), 300)), "far above that of chance, ln", sure=False),
    Broken("lr far too large", lambda: learner(lr=1e6, opt=SGD), "lr=1e.06 explode", in_fit=False),
    Broken("lr too large, mse", lambda: number(lr=50.0, opt=SGD), "the first steps at lr=50 explode", in_fit=False),
    # batch norm and workers
    Broken("last batch of one", lambda: learner(n_valid=31, model=nn.Sequential(*NORM)), "one row"),
    Broken("batches of one", lambda: learner(bs=1, model=nn.Sequential(*NORM)), r"cannot train on one row"),
    Broken(
        "a worker that fails", lambda: workers(BadRows(), 1), "by 1 worker processes: OSError.*row images", in_fit=False
    ),
    Broken("rows that fail", lambda: workers(BadRows(), 0), "could not be fetched: OSError", in_fit=False),
    Broken(
        "workers that cannot be spawned",
        lambda: workers(HeldLambda(), 1, multiprocessing_context="spawn"),
        "could not be fetched by 1 worker processes",
        in_fit=False,
    ),
]

"""Set-ups that are sound, though each looks a little like one that is not: nothing is to be said about them."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from broken_setups import CLASS, NUMBER, PICTURES, YES, X, body, learner, lists, number, yes
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from minilearn.callback import Callback
from minilearn.callbacks import GradientAccumulation, MixUp
from minilearn.data import DataLoader, DataLoaders, IntToFloat
from minilearn.flat_losses import CrossEntropyLossFlat
from minilearn.learner import Learner
from minilearn.optim import SGD
from minilearn.vision import torchvision  # noqa: F401 -- transformers imports it, which fails beside a CPU build


class Sound(NamedTuple):
    """A set-up that is right."""

    name: str
    make: Callable[[], Learner]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def segmentation() -> Learner:
    x = torch.rand(32, 1, 8, 8, generator=generator())
    y = (x[:, 0] > 0.5).long()
    y[:, 0] = 255  # a border that does not count
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return learner(x=x, y=y, model=model, loss=nn.CrossEntropyLoss(ignore_index=255), bs=1, n_valid=8)


class Encoder(nn.Module):
    """Text of any length, padded with zeros, and the class of each word; padding does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.rnn = nn.Embedding(20, 8, padding_idx=0), nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.words(x))[0]).transpose(1, 2)


def words() -> Learner:
    x = torch.randint(1, 20, (64, 10), generator=generator())
    x[:, 7:] = 0
    return learner(x=x, y=torch.where(x == 0, -100, x % 5), model=Encoder(), n_valid=16)


class Autoencoder(nn.Module):
    """Pictures from 0 to 1, in and out, by a sigmoid and a loss that takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 36), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).view(x.shape)


def autoencoder() -> Learner:
    x = PICTURES / 255
    return learner(x=x, y=x, model=Autoencoder(), loss=F.binary_cross_entropy)


class Gan(nn.Module):
    """A generator and a critic that take turns, batch by batch; the loss is the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = body(6, features=2), body(1)
        self.turn = 0

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        made = self.generator(noise)
        self.turn += self.training
        return made, self.critic(made.detach() if self.turn % 2 else made)


class GanLoss(nn.Module):
    """The critic's on odd turns, the generator's on even ones, with the critic held."""

    def __init__(self, model: Gan) -> None:
        super().__init__()
        self.model = [model]

    def forward(self, pred: tuple[Tensor, Tensor], real: Tensor) -> Tensor:
        (model,) = self.model
        answer = pred[1]
        if model.turn % 2 or not model.training:
            true = model.critic(real)
            return F.softplus(-true).mean() + F.softplus(answer).mean()
        return F.softplus(-answer).mean()


def gan() -> Learner:
    model = Gan()
    return learner(x=torch.randn(96, 2, generator=generator()), y=X, model=model, loss=GanLoss(model), opt=SGD)


class OwnLoss(nn.Module):
    """A model in the manner of Hugging Face's: a dict in, an object with logits and a loss out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = body(3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.layers(x)
        return {"logits": logits} | ({} if labels is None else {"loss": F.cross_entropy(logits, labels)})


def own_loss() -> Learner:
    batches = [{"x": X[i : i + 16], "labels": CLASS[i : i + 16]} for i in range(0, 96, 16)]
    return lists(batches[:4], batches[4:], OwnLoss(), None)


def hugging_face() -> Learner:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    small = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    ids = torch.randint(0, 30, (32, 6), generator=generator())
    parts = [{"input_ids": ids[i : i + 8], "labels": CLASS[i : i + 8]} for i in range(0, 32, 8)]
    return lists(parts[:3], parts[3:], transformers.BertForSequenceClassification(small), None, lr=1e-4)


class Pairs(nn.Module):
    """Two views of a row, each to be told from all others by its twin: a contrastive loss, without targets to speak of."""

    def forward(self, pred: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
        one, two = (F.normalize(part, dim=1) for part in pred)
        return F.cross_entropy(one @ two.T / 0.1, torch.arange(len(one)))


class Views(nn.Module):
    """Two views of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = body(8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layers(x), self.layers(x + 0.05 * torch.randn_like(x))


def frozen_body() -> Learner:
    model = nn.Sequential(body(12, nn.BatchNorm1d(12), nn.Dropout(0.2)), nn.Linear(12, 3))
    model[0].requires_grad_(False)
    return learner(model=model)


def frozen_layers() -> Learner:
    model = body(3)
    learn = learner(model=model, splitter=lambda m: [list(m[0].parameters()), list(m[2].parameters())])
    learn.freeze()
    return learn


def pretrained() -> Learner:
    learn = learner()
    with learn.no_logging():
        learn.fit(20, 0.03)
    return Learner(learn.dls, learn.model, loss_func=F.cross_entropy)


def imbalanced() -> Learner:
    y = torch.zeros(96, dtype=torch.long)
    y[::19] = 1
    return learner(y=y, model=body(2), loss=nn.CrossEntropyLoss(weight=torch.tensor([0.2, 3.0])))


def sorted_numbers() -> Learner:
    x = torch.linspace(-1, 1, 96)[:, None]
    return number(x=x, y=x**2, model=body(1, features=1), shuffle=False)


def small_batches() -> Learner:
    order = CLASS.argsort(stable=True)
    x, y = X[order].view(-1, 2, 6), CLASS[order].view(-1, 2)  # batches of two of a class, by design
    batches = [(x[i], y[i]) for i in torch.randperm(48, generator=generator())]
    return lists(batches[:40], batches[40:], body(3), F.cross_entropy)


def normalised_inside() -> Learner:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers((x - 127) / 73)

    return learner(x=PICTURES, model=Inside())


def bytes_on_the_way() -> Learner:
    x = PICTURES.to(torch.uint8)
    dls = DataLoaders.from_tensors(
        x[:64], CLASS[:64], x[64:], CLASS[64:], bs=16, device="cpu", batch_tfms=[IntToFloat()]
    )
    return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), loss_func=F.cross_entropy)


def gaps() -> Learner:
    class Gaps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = body(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x.nan_to_num())

    x = X.clone()
    x[::5, 1] = float("nan")
    return learner(x=x, model=Gaps())


def few_words() -> Learner:
    """Rows of a few small whole numbers: many are alike by chance, in training and in validation."""
    x = torch.randint(0, 2, (96, 3), generator=generator())
    return learner(x=x, y=x.sum(1), model=nn.Sequential(nn.Embedding(2, 4), nn.Flatten(), nn.Linear(12, 4)))


def by_row() -> Learner:
    """Torch's own loaders, with a worker process."""
    train = torch.utils.data.DataLoader(TensorDataset(X[:64], CLASS[:64]), 16, shuffle=True, num_workers=1)
    valid = DataLoader(TensorDataset(X[64:], CLASS[64:]), 16)
    return Learner(DataLoaders(train, valid, device="cpu"), body(3), loss_func=F.cross_entropy)


def one_row_more() -> Learner:
    """A last batch of one row, which batch normalisation over a picture can train on."""
    x = PICTURES[:41] / 255
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return learner(x=x, y=CLASS[:41], model=model, n_valid=8, bs=16)


class Noise(Callback):
    """Changes the inputs."""

    def before_batch(self) -> None:
        if self.training:
            self.learn.xb = (self.x + 0.1 * torch.randn_like(self.x),)


SOUND = [
    Sound("classes", learner),
    Sound("numbers", number),
    Sound("a yes or no", yes),
    Sound("loss from the batch", lambda: learner(loss=None)),
    Sound("several labels", lambda: yes(y=(X[:, :3] > 0).float(), model=body(3))),
    Sound("shares as targets", lambda: learner(y=F.one_hot(CLASS, 3) * 0.9 + 0.1 / 3)),
    Sound("label smoothing", lambda: learner(loss=nn.CrossEntropyLoss(label_smoothing=0.1))),
    Sound("log-probabilities", lambda: learner(model=body(3, nn.LogSoftmax(1)), loss=F.nll_loss)),
    Sound("probabilities", lambda: yes(model=body(1, nn.Sigmoid()), loss=nn.BCELoss())),
    Sound("a yes or no, flat", lambda: yes(y=(YES[:, 0] > 0).long(), loss=None)),
    Sound("a number from 0 to 1", lambda: number(y=NUMBER.sigmoid(), model=body(1, nn.Sigmoid()))),
    Sound("segmentation", segmentation),
    Sound("words, padded", words),
    Sound("autoencoder", autoencoder),
    Sound("pictures from 0 to 1", lambda: learner(x=PICTURES.flatten(1) / 255, model=body(3, features=36))),
    Sound("bytes, made numbers on the way", bytes_on_the_way),
    Sound("bytes, made numbers in the model", normalised_inside),
    Sound("gan", gan),
    Sound("own loss", own_loss),
    Sound("Hugging Face", hugging_face),
    Sound("contrastive", lambda: learner(y=X, model=Views(), loss=Pairs())),
    Sound("frozen body", frozen_body),
    Sound("frozen layers", frozen_layers),
    Sound("pretrained", pretrained),
    Sound("few of a class", imbalanced),
    Sound("sorted numbers", sorted_numbers),
    Sound("small batches of a class", small_batches),
    Sound("small validation set", lambda: learner(n_valid=2)),
    Sound("gaps that the model fills", gaps),
    Sound("few words", few_words),
    Sound("torch's loaders, workers", by_row),
    Sound("one row more, pictures", one_row_more),
    Sound("dropout and batch norm", lambda: learner(model=body(3, nn.BatchNorm1d(3), nn.Dropout(0.2)))),
    Sound("SGD with momentum", lambda: learner(opt=torch.optim.SGD, lr=0.1)),
    Sound("mixed up", lambda: learner(loss=CrossEntropyLossFlat(), cbs=[MixUp(), GradientAccumulation(32)])),
    Sound("noise by a callback", lambda: number(cbs=Noise)),
]

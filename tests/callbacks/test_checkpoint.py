"""A fit that is interrupted, anywhere and any number of times, ends as one that is not; what it leaves on the disk."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import Dataset, IterableDataset, WeightedRandomSampler

from minilearn.callback import (
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelTrainException,
)
from minilearn.callbacks import (
    EMA,
    SWA,
    ActivationStats,
    BnFreeze,
    Checkpoint,
    CSVLogger,
    CutMix,
    EarlyStopping,
    GradientAccumulation,
    GradientClip,
    MixedPrecision,
    MixUp,
    ReduceLROnPlateau,
    SaveModel,
    ShortEpoch,
    SkipToEpoch,
    TensorBoard,
    TerminateOnNaN,
    TorchScheduler,
)
from minilearn.checkpoints import CheckpointFolder
from minilearn.data import DataLoader, DataLoaders
from minilearn.files import FileError
from minilearn.learner import Learner
from minilearn.metrics import AccumMetric, accuracy, mse
from minilearn.optim import SGD, Adam, Lamb, Lookahead, Muon, RAdam
from minilearn.random_states import random_states
from minilearn.states import flatten_state

ROWS, VALID = 11, 5
GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(ROWS + VALID, 3, generator=GENERATOR), torch.randn(ROWS + VALID, 1, generator=GENERATOR)
IMAGES = torch.rand(ROWS + VALID, 1, 4, 4, generator=GENERATOR)
CLASSES = torch.randint(0, 3, (ROWS + VALID,), generator=GENERATOR)


MOMENTUM = partial(SGD, mom=0.9)


class Died(Exception):
    """What ends a run in the middle."""


class DieAt(Callback):
    """Ends the fit before batch number `at`, training and validation counted alike."""

    order = -1000

    def __init__(self, at: int) -> None:
        self.at = at

    def before_batch(self) -> None:
        if not self.at:
            raise Died
        self.at -= 1


class SignalAt(DieAt):
    """Has somebody press Ctrl-C in that batch instead."""

    def before_batch(self) -> None:
        if not self.at:
            signal.raise_signal(signal.SIGINT)
        self.at -= 1


class NoisyRows(Dataset[Any]):
    """Rows read one by one, with random numbers of all three kinds."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> Any:
        return X[i] + 0.1 * torch.rand(3) + 0.1 * random.random() + 0.1 * float(np.random.rand()), Y[i]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(X[i] + 0.1 * torch.rand(3), Y[i]) for i in range(ROWS)])


class Drawing:
    """Batches that are drawn one by one, from the random numbers that belong to nobody."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(4):
            yield torch.randint(ROWS, (3,)).tolist()


class NoLength:
    def __iter__(self) -> Iterator[Any]:
        for i in torch.randperm(ROWS).split(3):
            yield X[i], Y[i]


class MSEWithScale(nn.Module):
    """A loss that learns, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return F.mse_loss(pred, target) * self.scale / (1 + 0.01 * self.seen)


class Counting(nn.Module):
    """A layer with a buffer that is left out of the model's state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.01 * self.calls)


class Once(Callback):
    """Cancels something at one batch of each epoch."""

    def __init__(self, event: str, cancel: type[Exception], at: int = 1) -> None:
        self.event, self.cancel, self.at = event, cancel, at

    def _at(self, event: str) -> None:
        if event == self.event and self.training and self.iter == self.at:
            raise self.cancel

    def after_loss(self) -> None:
        self._at("after_loss")

    def after_batch(self) -> None:
        self._at("after_batch")


class Validating(Callback):
    """Validates in the middle of training."""

    def after_batch(self) -> None:
        if self.training and self.iter == 1:
            self.learn.validate()


class Counter(Callback):
    """A callback of somebody's own, which changes training by what it has counted."""

    def __init__(self) -> None:
        self.count = 0

    def after_loss(self) -> None:
        if self.training:
            self.count += 1
            self.learn.loss_grad = self.learn.loss_grad * (1 + 0.1 * self.count)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Any) -> None:
        self.count = state["count"]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 1))


def tensors(**options: Any) -> DataLoaders:
    return DataLoaders.from_tensors(X[:ROWS], Y[:ROWS], X[ROWS:], Y[ROWS:], bs=3, device="cpu", **options)


def around(train: Any, **options: Any) -> DataLoaders:
    return DataLoaders(train, DataLoader((X[ROWS:], Y[ROWS:]), 3), device="cpu", **options)


def images() -> DataLoaders:
    n = ROWS
    return DataLoaders.from_tensors(IMAGES[:n], CLASSES[:n], IMAGES[n:], CLASSES[n:], bs=3, device="cpu")


def conv() -> nn.Module:
    layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    return layers.to(memory_format=torch.channels_last)


def made(
    path: Path,
    dls: DataLoaders | None = None,
    model: Callable[[], nn.Module] = mlp,
    loss: Any = F.mse_loss,
    opt_func: Any = MOMENTUM,
    **options: Any,
) -> Learner:
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    learn = Learner(dls or tensors(), model(), loss, opt_func, 0.05, path=path, **options)
    learn.logger = lambda text: None
    return learn


Make = Callable[[Path], Learner]
Fit = Callable[..., None]


def fit3(learn: Learner, **options: Any) -> None:
    learn.fit(3, **options)


def with_cbs(*cbs: Callable[[], Callback], **options: Any) -> Make:
    return lambda path: made(path, cbs=[cb() for cb in cbs], **options)


def with_opt(opt_func: Any) -> Make:
    return lambda path: made(path, opt_func=opt_func)


def with_train(train: Callable[[], Any]) -> Make:
    return lambda path: made(path, around(train()))


def with_images(*cbs: Callable[[], Callback], **options: Any) -> Make:
    return lambda path: made(
        path,
        images(),
        conv,
        nn.CrossEntropyLoss(),
        cbs=[cb() for cb in cbs],
        metrics=accuracy,
        **options,
    )


def scheduled(sched: Any, **options: Any) -> Callable[[], Callback]:
    return lambda: TorchScheduler(sched, **options)


def loader(**options: Any) -> Callable[[], Any]:
    return lambda: DataLoader(NoisyRows(), 3, **options)


def several_sets(path: Path) -> Learner:
    sets = {"valid": (X[ROWS:], Y[ROWS:]), "other": (X[:4], Y[:4])}
    return made(path, DataLoaders.from_dsets((X[:ROWS], Y[:ROWS]), sets, bs=3, device="cpu"), metrics=mse)


def no_validation(path: Path) -> Learner:
    return made(path, DataLoaders.from_tensors(X[:ROWS], Y[:ROWS], bs=3, device="cpu"), metrics=[mse, AccumMetric(mse)])


def shuffled_validation(path: Path) -> Learner:
    own = torch.Generator().manual_seed(3)
    return made(
        path,
        DataLoaders(
            DataLoader((X[:ROWS], Y[:ROWS]), 3, shuffle=True),
            DataLoader((X[ROWS:], Y[ROWS:]), 3, shuffle=True, generator=own),
            device="cpu",
        ),
    )


CASES: dict[str, tuple[Make, Fit]] = {
    "plain": (made, fit3),
    "one cycle": (made, lambda learn, **o: learn.fit_one_cycle(3, **o)),
    "flat cos": (made, lambda learn, **o: learn.fit_flat_cos(3, **o)),
    "sgdr": (made, lambda learn, **o: learn.fit_sgdr(2, 1, **o)),
    "warm-up": (made, lambda learn, **o: learn.fit_warmup_cos(3, **o)),
    "wsd": (made, lambda learn, **o: learn.fit_wsd(3, **o)),
    "fine-tune": (made, lambda learn, **o: learn.fine_tune(2, 0.05, **o)),
    "start epoch": (made, lambda learn, **o: learn.fit_one_cycle(3, start_epoch=1, **o)),
    "Adam": (with_opt(Adam), fit3),
    "Muon": (with_opt(Muon), fit3),
    "Lookahead": (with_opt(lambda params, lr: Lookahead(RAdam(params, lr), k=3)), fit3),
    "LAMB": (with_opt(Lamb), fit3),
    "torch.SGD": (with_opt(partial(torch.optim.SGD, momentum=0.9)), fit3),
    "torch.AdamW": (with_opt(partial(torch.optim.AdamW, amsgrad=True)), fit3),
    "torch.Adagrad": (with_opt(torch.optim.Adagrad), fit3),
    "LBFGS": (lambda path: made(path, opt_func=torch.optim.LBFGS, model=lambda: nn.Linear(3, 1)), fit3),
    "accumulation": (with_cbs(lambda: GradientAccumulation(5)), fit3),
    "accumulation, clipped, channels last": (with_images(lambda: GradientAccumulation(5), lambda: GradientClip(0.1)), fit3),
    "LAMB, channels last": (with_images(opt_func=Lamb), fit3),
    "EMA": (with_cbs(lambda: EMA(0.9)), fit3),
    "EMA, weights left": (with_cbs(lambda: EMA(0.9, leaves_average=False)), fit3),
    "SWA": (with_cbs(lambda: SWA(0.3, swa_lr=0.01)), fit3),
    "bf16": (with_cbs(lambda: MixedPrecision("bf16")), fit3),
    "fp16": (with_cbs(lambda: MixedPrecision("fp16", init_scale=8.0, growth_interval=2)), fit3),
    "MixUp": (with_images(lambda: MixUp(0.4)), fit3),
    "CutMix": (with_images(CutMix), fit3),
    "frozen batch norm": (with_cbs(BnFreeze), fit3),
    "activations": (with_cbs(lambda: ActivationStats(every=1, with_hist=True)), fit3),
    "tracked": (with_cbs(lambda: EarlyStopping(patience=2), lambda: ReduceLROnPlateau(patience=1), SaveModel), fit3),
    "stops early": (with_cbs(lambda: EarlyStopping(min_delta=100.0)), fit3),
    "saves each": (with_cbs(lambda: SaveModel(every_epoch=True)), fit3),
    "nan ends it": (with_cbs(TerminateOnNaN), fit3),
    "StepLR": (with_cbs(scheduled(partial(lr_scheduler.StepLR, step_size=2))), fit3),
    "OneCycleLR": (with_cbs(scheduled(partial(lr_scheduler.OneCycleLR, max_lr=0.1), step_per="batch")), fit3),
    "torch's plateau": (with_cbs(scheduled(partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.5))), fit3),
    "short epochs": (with_cbs(lambda: ShortEpoch(0.5)), fit3),
    "skipped epoch": (with_cbs(lambda: SkipToEpoch(1)), fit3),
    "cancelled batch": (with_cbs(lambda: Once("after_loss", CancelBatchException)), fit3),
    "cancelled training": (with_cbs(lambda: Once("after_batch", CancelTrainException)), fit3),
    "cancelled training in a batch": (with_cbs(lambda: Once("after_loss", CancelTrainException), lambda: GradientAccumulation(5)), fit3),
    "cancelled epoch": (with_cbs(lambda: Once("after_batch", CancelEpochException)), fit3),
    "cancelled fit": (with_cbs(lambda: Once("after_batch", CancelFitException)), fit3),
    "validation in training": (with_cbs(Validating, lambda: EMA(0.9), metrics=mse), fit3),
    "own callback": (with_cbs(Counter), fit3),
    "CSV": (with_cbs(CSVLogger), fit3),
    "TensorBoard": (with_cbs(lambda: TensorBoard("runs", trace_model=False)), fit3),
    "loss with a state": (lambda path: made(path, loss=MSEWithScale()), fit3),
    "own buffer": (lambda path: made(path, model=lambda: nn.Sequential(Counting(), nn.Linear(3, 1))), fit3),
    "inferred loss": (lambda path: made(path, loss=None), fit3),
    "no validation": (no_validation, fit3),
    "train metrics": (with_cbs(metrics=[mse, AccumMetric(mse)]), fit3),
    "several validation sets": (several_sets, fit3),
    "shuffled validation": (shuffled_validation, fit3),
    "rows": (with_train(loader(shuffle=True)), fit3),
    "workers": (with_train(loader(shuffle=True, num_workers=1)), lambda learn, **o: learn.fit(2, **o)),
    "own generator": (with_train(lambda: DataLoader(NoisyRows(), 3, shuffle=True, generator=torch.Generator().manual_seed(5))), fit3),
    "workers, own generator": (with_train(lambda: DataLoader(NoisyRows(), 3, shuffle=True, num_workers=1, generator=torch.Generator().manual_seed(5))), fit3),
    "drawn as they go": (with_train(lambda: DataLoader(NoisyRows(), batch_sampler=Drawing())), fit3),
    "sampler": (with_train(lambda: DataLoader((X[:ROWS], Y[:ROWS]), 3, sampler=WeightedRandomSampler([1.0] * ROWS, ROWS))), fit3),
    "torch's loader": (with_train(lambda: torch.utils.data.DataLoader(NoisyRows(), 3, shuffle=True)), fit3),
    "stream": (with_train(lambda: DataLoader(Stream(), 3)), fit3),
    "no length": (with_train(NoLength), fit3),
    "list": (with_train(lambda: list(zip(X[:ROWS].split(3), Y[:ROWS].split(3), strict=True))), fit3),
}  # fmt: skip
SLOW = {"workers", "workers, own generator", "TensorBoard"}


def ended(learn: Learner) -> dict[str, Tensor]:
    """Everything that a fit leaves, but for times."""
    recorder = learn.recorder
    loss = learn.loss_func.state_dict() if isinstance(learn.loss_func, nn.Module) else {}
    opt = learn.opt.state_dict()
    state = {
        "model": dict(learn.model.state_dict()),
        "buffers": dict(learn.model.named_buffers()),
        "loss": dict(loss),
        "opt": opt,
        "values": recorder.values,
        "iters": recorder.iters,
        "epochs": recorder.epochs,
        "losses": list(recorder.losses),
        "hps": dict(recorder.hps),
        "averages": [cb.average for cb in learn.cbs if isinstance(cb, (EMA, SWA))],
        "figures": [cb.state_dict() for cb in learn.cbs if isinstance(cb, (ActivationStats, EarlyStopping, Counter))],
        "random": random_states(),
        "at": [learn.train_iter, learn.pct_train, learn.epoch],
    }
    value, tensors = flatten_state(state)
    return {**{name: tensor.clone() for name, tensor in tensors.items()}, "values": value}


def assert_same(one: dict[str, Any], another: dict[str, Any]) -> None:
    assert one.keys() == another.keys()
    for name, value in one.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(another[name], value, rtol=0, atol=0, equal_nan=True, msg=f"{name} differs")
        else:
            assert value == another[name]


def interrupted(make: Make, fit: Fit, path: Path, cb: Callback, **kept: Any) -> bool:
    """Begins a fit that a callback ends; says whether it did."""
    learn = make(path)
    try:
        with learn.added_cbs(cb):
            fit(learn, checkpoint=Checkpoint("run", **kept))
    except (Died, KeyboardInterrupt):
        return True
    return False


def again(make: Make, fit: Fit, path: Path) -> dict[str, Tensor]:
    learn = make(path)
    fit(learn, checkpoint=Checkpoint("run", every_batches=1))
    return ended(learn)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:LBFGS takes one group"),
    pytest.mark.filterwarnings("ignore:the training loss is not a finite number"),
]


STEP = 1 if os.environ.get("MINILEARN_EVERY_BATCH") else 3
"""At every how many batches a fit is ended; `make faults` ends it at each."""


@pytest.mark.parametrize("name", CASES)
def test_a_fit_that_died_before_any_batch_ends_as_one_that_did_not(name: str, tmp_path: Path) -> None:
    make, fit = CASES[name]
    learn = make(tmp_path / "whole")
    fit(learn)
    whole = ended(learn)
    at = 0
    while interrupted(make, fit, tmp_path / str(at), DieAt(at), every_batches=1):
        assert_same(whole, again(make, fit, tmp_path / str(at)))
        at += 4 if name in SLOW else STEP
    assert at >= 2


@pytest.mark.parametrize("name", [name for name in CASES if name not in SLOW])
def test_a_fit_that_heard_ctrl_c_in_any_batch_ends_as_one_that_did_not(name: str, tmp_path: Path) -> None:
    make, fit = CASES[name]
    learn = make(tmp_path / "whole")
    fit(learn)
    whole = ended(learn)
    at = STEP - 1
    while interrupted(make, fit, tmp_path / str(at), SignalAt(at), every_epoch=False):
        assert_same(whole, again(make, fit, tmp_path / str(at)))
        at += STEP
    assert at >= 2


def test_a_file_that_holds_something_else_is_named(tmp_path: Path) -> None:
    make, fit = CASES["plain"]
    folder = CheckpointFolder(tmp_path / "run", 2)
    folder.open()
    folder.write({"job": {}, "epoch": 1}, wait=True)
    with pytest.raises(
        FileError, match=r"000001\.safetensors is no checkpoint of a fit: it lacks batch, buffers, callbacks, drawn"
    ):
        again(make, fit, tmp_path)

"""Every callback of the library in every kind of fit: what one forgets to think of, one after another."""

import inspect
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilearn import callbacks
from minilearn.callback import Callback
from minilearn.callbacks import (
    EMA,
    SWA,
    ActivationStats,
    BnFreeze,
    Cast,
    ChannelsLast,
    Checkpoint,
    CollectData,
    CSVLogger,
    CutMix,
    DevicePlacement,
    Distributed,
    Divergence,
    EarlyStopping,
    FetchPreds,
    GatherPreds,
    GradientAccumulation,
    GradientClip,
    HookCallback,
    LRFinder,
    MCDropout,
    MixedPrecision,
    Mixing,
    MixUp,
    ModelReset,
    ParamScheduler,
    Preflight,
    Profiler,
    ProgressCallback,
    Recorder,
    ReduceLROnPlateau,
    SaveModel,
    ShortEpoch,
    ShowGraph,
    SkipToEpoch,
    TensorBoard,
    TerminateOnNaN,
    TorchScheduler,
    TrackerCallback,
    TrainEval,
    Wandb,
    WeightAverage,
)
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.metrics import accuracy
from minilearn.optim import SGD
from minilearn.optim.groups import set_hypers
from minilearn.schedule import SchedLin

BS = 4


def cosine(opt: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10)


EVERY: dict[str, Callable[[str], Callback]] = {  # each made of the figure that it is to watch, if it does
    "ActivationStats": lambda monitor: ActivationStats(with_hist=True, every=2),
    "BnFreeze": lambda monitor: BnFreeze(),
    "CSVLogger": lambda monitor: CSVLogger(),
    "Cast": lambda monitor: Cast(),
    "ChannelsLast": lambda monitor: ChannelsLast(),
    "Checkpoint": lambda monitor: Checkpoint("kept"),
    "CollectData": lambda monitor: CollectData(3),
    "CutMix": lambda monitor: CutMix(),
    "DevicePlacement": lambda monitor: DevicePlacement("cpu"),
    "Distributed": lambda monitor: Distributed(),
    "Divergence": lambda monitor: Divergence(),
    "EMA": lambda monitor: EMA(0.9),
    "EarlyStopping": lambda monitor: EarlyStopping(monitor, patience=9),
    "FetchPreds": lambda monitor: FetchPreds(),
    "GatherPreds": lambda monitor: GatherPreds(with_input=True),
    "GradientAccumulation": lambda monitor: GradientAccumulation(2 * BS),
    "GradientClip": lambda monitor: GradientClip(0.1),
    "HookCallback": lambda monitor: HookCallback(),
    "LRFinder": lambda monitor: LRFinder(1e-4, 1e-2, num_it=10),
    "MCDropout": lambda monitor: MCDropout(),
    "MixUp": lambda monitor: MixUp(),
    "MixedPrecision bf16": lambda monitor: MixedPrecision("bf16"),
    "MixedPrecision fp16": lambda monitor: MixedPrecision("fp16"),
    "ModelReset": lambda monitor: ModelReset(),
    "ParamScheduler": lambda monitor: ParamScheduler({"lr": SchedLin(0.1, 0.01)}),
    "Preflight": lambda monitor: Preflight(),
    "Profiler": lambda monitor: Profiler(skip=0, active=1),
    "ProgressCallback": lambda monitor: ProgressCallback(),
    "Recorder": lambda monitor: Recorder(add_time=False, train_metrics=True),
    "ReduceLROnPlateau": ReduceLROnPlateau,
    "SWA": lambda monitor: SWA(0.5, swa_lr=0.01),
    "SaveModel": SaveModel,
    "ShortEpoch": lambda monitor: ShortEpoch(0.7),
    "ShowGraph": lambda monitor: ShowGraph(),
    "SkipToEpoch": lambda monitor: SkipToEpoch(1),
    "TensorBoard": lambda monitor: TensorBoard("run", trace_model=False, hists=True),
    "TerminateOnNaN": lambda monitor: TerminateOnNaN(),
    "TorchScheduler": lambda monitor: TorchScheduler(cosine),
    "TrackerCallback": TrackerCallback,
    "TrainEval": lambda monitor: TrainEval(),
    "Wandb": lambda monitor: Wandb(),
}
BASES = {WeightAverage, Mixing}

LOOKS_ON = [
    "ActivationStats", "CSVLogger", "Cast", "Checkpoint", "CollectData", "DevicePlacement", "Distributed", "Divergence",
    "EarlyStopping", "FetchPreds", "GatherPreds", "HookCallback", "ModelReset", "Preflight", "Profiler",
    "ProgressCallback", "Recorder", "ShowGraph", "TensorBoard", "TerminateOnNaN", "TrackerCallback", "TrainEval",
    "Wandb",
]  # fmt: skip
"""Those that leave training alone."""

every_callback = pytest.mark.parametrize("name", EVERY)


@pytest.fixture(scope="module")
def wandb_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A run that writes into a folder of its own and nowhere else."""
    wandb = pytest.importorskip("wandb", reason="needs the package wandb")
    settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True)
    run = wandb.init(mode="offline", dir=tmp_path_factory.mktemp("wandb"), project="test", settings=settings)
    yield run
    run.finish()


@pytest.fixture(autouse=True)
def packages(request: pytest.FixtureRequest) -> None:
    """What a callback needs beside torch; the test is skipped where it is not installed."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    if name == "Wandb":
        request.getfixturevalue("wandb_run")
    if name == "TensorBoard":
        pytest.importorskip("tensorboard", reason="needs the package tensorboard")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order; and what others' packages say of themselves is none of ours."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """Images of 4×4 to two classes, with all that a callback may look for: batch normalisation, dropout, a reset."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.drop, self.linear = nn.Dropout(0.2), nn.Linear(2 * 16, 2)
        self.state: Tensor | None = None

    def reset(self) -> None:
        self.state = None

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.drop(self.norm(self.conv(images)).relu().flatten(1)))


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


class OwnLoss(Net):
    """The same, which is given the labels too and answers with `logits` and `loss`."""

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        logits = super().forward(images)
        return Output(logits, None if labels is None else F.cross_entropy(logits, labels))


def batches(n: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    y = (x.sum((1, 2, 3)) > 0).long()
    return [(x[i : i + BS], y[i : i + BS]) for i in range(0, n, BS)]


TRAIN, VALID = batches(14, 0), batches(10, 1)


class Stream:
    """Batches without a length."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def as_dicts(batches: list[tuple[Tensor, Tensor]]) -> list[dict[str, Tensor]]:
    return [{"images": x, "labels": y} for x, y in batches]


def learner(name: str, path: Path, dls: Any = None, monitor: str = "valid_loss", **options: Any) -> Learner:
    torch.manual_seed(0)
    loss_func = options.pop("loss_func", nn.CrossEntropyLoss())
    cbs = [*([EVERY[name](monitor)] if name else []), *options.pop("cbs", [])]
    model = options.pop("model", Net)()
    learn = Learner(DataLoaders(*(dls or (TRAIN, VALID))), model, loss_func, SGD, 0.1, cbs=cbs, path=path, **options)
    learn.logger = lambda line: None
    return learn


def weights(learn: Learner) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in learn.model.state_dict().items()}


def assert_sound(learn: Learner, rows: int | None = None) -> None:
    """The weights are numbers, each row of the history has a cell a column, and nothing of the fit is left."""
    assert all(value.isfinite().all() for value in learn.model.state_dict().values())
    recorder = learn.recorder
    assert {len(row) for row in recorder.values} <= {len(recorder.column_names)}
    if rows is not None:
        assert len(recorder.values) == rows
    assert_nothing_is_left(learn)


def assert_nothing_is_left(learn: Learner) -> None:
    """What a callback may replace for a fit is as it was, and nothing of the batch is held."""
    assert isinstance(learn.loss_func, nn.CrossEntropyLoss | None)
    assert learn.compiled is None
    assert not learn._running
    assert not learn._at_rest
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert not torch.autograd.profiler._is_profiler_enabled
    for module in learn.model.modules():
        assert not module.training
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        assert not any(getattr(module, kind) for kind in hooks)
    assert all(p.grad is None for p in learn.model.parameters())
    if not any(isinstance(cb, LRFinder) for cb in learn.cbs):  # which alone, in a fit, does not put it back
        assert [group["lr"] for group in learn.opt.param_groups] == pytest.approx([0.1] * len(learn.opt.param_groups))
    left = {"xb", "yb", "pred", "loss", "dl", "iter", "_loss_grad", "output"} & set(vars(learn))
    assert not left


def test_every_callback_is_here() -> None:
    found = [kind for kind in vars(callbacks).values() if inspect.isclass(kind) and issubclass(kind, Callback)]
    assert {name.split()[0] for name in EVERY} == {kind.__name__ for kind in found if kind not in BASES}


@every_callback
def test_it_fits_twice(name: str, tmp_path: Path) -> None:
    learn = learner(name, tmp_path, metrics=accuracy)
    for _ in range(2):
        learn.fit(2)
        assert_sound(learn, rows=2)


@pytest.mark.parametrize("name", LOOKS_ON)
def test_who_looks_on_changes_nothing(name: str, tmp_path: Path) -> None:
    found = []
    for one in ("", name):
        learn = learner(one, tmp_path)
        torch.manual_seed(2)
        learn.fit(2)
        found.append(weights(learn))
    plain, looked = found
    assert [key for key in plain if not torch.equal(plain[key], looked[key])] == []


@every_callback
def test_it_fits_in_a_cycle(name: str, tmp_path: Path) -> None:
    learn = learner(name, tmp_path, metrics=accuracy)
    if name in ("ReduceLROnPlateau", "ParamScheduler", "TorchScheduler"):
        with pytest.raises(ValueError, match=r"lr has (a schedule|two schedules) in this fit"):
            learn.fit_one_cycle(2, 0.1)
    else:
        learn.fit_one_cycle(2, 0.1)
    assert_sound(learn)


# ---- data and models as people have them ----


@contextmanager
def told_of_no_length(name: str) -> Iterator[None]:
    """What needs a length to do its work says so, in an error or in a warning."""
    if name == "ShortEpoch":
        with pytest.raises(ValueError, match="ShortEpoch needs a loader that has a length"):
            yield
    elif name == "ParamScheduler":
        with pytest.warns(RuntimeWarning, match="the training loader has no length"):
            yield
    else:
        yield


@every_callback
def test_it_fits_from_loaders_without_a_length(name: str, tmp_path: Path) -> None:
    learn = learner(name, tmp_path, (Stream(TRAIN), Stream(VALID)), metrics=accuracy)
    with told_of_no_length(name):
        learn.fit(2)
    assert_sound(learn, None if name == "ShortEpoch" else 2)


@every_callback
def test_it_fits_from_a_torch_loader_without_a_length(name: str, tmp_path: Path) -> None:
    class Rows(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(TRAIN)

    loader: Any = torch.utils.data.DataLoader(Rows(), batch_size=None)
    learn = learner(name, tmp_path, (loader, VALID), metrics=accuracy)
    with told_of_no_length(name):
        learn.fit(2)
    assert_sound(learn, None if name == "ShortEpoch" else 2)


@every_callback
def test_it_fits_without_a_validation_set(name: str, tmp_path: Path) -> None:
    learn = learner(name, tmp_path, (TRAIN,), monitor="train_loss", metrics=accuracy)
    learn.fit(2)
    assert_sound(learn, rows=2)


@every_callback
def test_it_fits_with_several_validation_sets(name: str, tmp_path: Path) -> None:
    cbs = [] if name == "Recorder" else [Recorder(add_time=False, train_metrics=True)]
    dls = (TRAIN, {"valid": VALID, "noisy": batches(5, 2)})
    learn = learner(name, tmp_path, dls, monitor="noisy_loss", metrics=accuracy, cbs=cbs)
    learn.fit(2)
    assert_sound(learn, rows=2)
    assert learn.recorder.metric_names[-1] == "noisy_accuracy"


@every_callback
def test_it_fits_a_model_with_a_loss_of_its_own_on_dicts(name: str, tmp_path: Path) -> None:
    dls = (as_dicts(TRAIN), as_dicts(VALID))
    learn = learner(name, tmp_path, dls, model=OwnLoss, loss_func=None, metrics=accuracy)
    if name in ("MixUp", "CutMix"):
        with pytest.raises(ValueError, match=f"{name} blends what loss_func takes, and there is none: .* its loss"):
            learn.fit(2)
    else:
        learn.fit(2)
        assert_sound(learn, rows=2)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "CutMix"])  # which needs an input, not a dict
def test_it_fits_on_dicts(name: str, tmp_path: Path) -> None:
    learn = learner(name, tmp_path, (as_dicts(TRAIN), as_dicts(VALID)), metrics=accuracy)
    learn.fit(2)
    assert_sound(learn, rows=2)


# ---- afterwards ----


@pytest.mark.parametrize("name", [name for name in EVERY if name != "MCDropout"])  # whose predictions differ
def test_predictions_after_the_fit_are_the_models_of_all_rows(name: str, tmp_path: Path) -> None:
    learn = learner(name, tmp_path)
    learn.fit(2)
    before = weights(learn)
    preds, targets = learn.get_preds()
    half = name.startswith("MixedPrecision")
    with torch.no_grad():
        by_hand = learn.model(torch.cat([x for x, _ in VALID])).softmax(1)
    torch.testing.assert_close(preds, by_hand, **({"rtol": 0.05, "atol": 0.02} if half else {}))
    assert torch.equal(targets, torch.cat([y for _, y in VALID]))
    assert [key for key, value in weights(learn).items() if not torch.equal(value, before[key])] == []
    assert_nothing_is_left(learn)


@every_callback
def test_validation_after_the_fit_leaves_it_as_it_is(name: str, tmp_path: Path) -> None:
    learn = learner(name, tmp_path, metrics=accuracy)
    learn.fit(2)
    before, values = weights(learn), [list(row) for row in learn.recorder.values]
    learn.validate()
    assert [key for key, value in weights(learn).items() if not torch.equal(value, before[key])] == []
    assert learn.recorder.values == values
    assert_nothing_is_left(learn)


@every_callback
def test_a_search_for_a_rate_leaves_no_trace(name: str, tmp_path: Path) -> None:
    learn = learner(name, tmp_path, metrics=accuracy)
    learn.fit(1)
    before, values = weights(learn), [list(row) for row in learn.recorder.values]
    learn.lr_find(num_it=10, show_plot=False, suggest_funcs=None)
    assert [key for key, value in weights(learn).items() if not torch.equal(value, before[key])] == []
    assert learn.recorder.values == values
    assert_nothing_is_left(learn)


# ---- whatever ends a fit ----


class Broken(Exception):
    """Comes up in the midst of a fit."""


PARTS = {
    True: ("before_train", "before_batch", "after_pred", "after_loss", "before_backward", "after_backward",
           "before_step", "after_step", "after_batch", "after_train"),
    False: ("before_validate", "before_batch", "after_pred", "after_loss", "after_batch", "after_validate",
            "after_epoch", "after_fit"),
}  # fmt: skip
PLACES = [("before_fit", None), *((event, training) for training, events in PARTS.items() for event in events)]


NO_VALIDATION = ("before_validate", "before_batch", "after_pred", "after_loss", "after_batch")
"""What `LRFinder` leaves out of the fit, so that nothing can break there."""


def breaking(event: str, training: bool | None, error: type[BaseException], order: float) -> Callback:
    """A callback that breaks a fit at an event of the first epoch, in its second batch where the event is of one."""

    def fail(self: Callback) -> None:
        if (training is None or self.training is training) and vars(self.learn).get("iter", 1) >= 1:
            raise error

    return type("Breaks", (Callback,), {event: fail, "order": order})()


@pytest.mark.parametrize("order", [-15, 200], ids=["before the others", "after the others"])
@every_callback
def test_an_error_anywhere_leaves_nothing_and_the_next_fit_goes_well(name: str, order: float, tmp_path: Path) -> None:
    learn = learner(name, tmp_path, metrics=accuracy)
    for i, (event, training) in enumerate(PLACES):
        error = (Broken, KeyboardInterrupt)[i % 2]
        breaks = breaking(event, training, error, order)
        try:
            learn.fit(2, cbs=breaks)
        except error:
            came = True
        else:
            came = False
        assert_sound(learn)
        assert came or (name == "LRFinder" and event in NO_VALIDATION and not training)
        if name == "Checkpoint":  # which would go on with this fit
            shutil.rmtree(tmp_path / "kept", ignore_errors=True)
    learn.fit(2)
    assert_sound(learn, rows=2)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("Recorder", "TrainEval")])  # others need them
def test_it_can_be_removed_in_the_middle(name: str, tmp_path: Path) -> None:
    class Remove(Callback):
        order = 200

        def after_pred(self) -> None:
            if self.iter == 1 and self.epoch == 1 and cb in self.learn.cbs:
                self.learn.remove_cb(cb)

    cb = EVERY[name]("valid_loss")
    learn = learner("", tmp_path, cbs=[cb, Remove()])
    learn.fit(3)
    if name == "LRFinder":  # which alone, in a fit, does not put the rate back
        set_hypers(learn.opt, lr=0.1)
    assert_sound(learn)

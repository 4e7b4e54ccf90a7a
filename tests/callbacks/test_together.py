"""Callbacks in one fit: what one does to another, and every one of them with every kind of fit."""

import csv
import itertools
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilearn.callback import Callback, CancelTrainException, CancelValidException
from minilearn.callbacks import (
    EMA,
    SWA,
    ActivationStats,
    CSVLogger,
    EarlyStopping,
    FetchPreds,
    GradientAccumulation,
    GradientClip,
    HookCallback,
    MixedPrecision,
    MixUp,
    Recorder,
    ReduceLROnPlateau,
    SaveModel,
    ShortEpoch,
    ShowGraph,
    TensorBoard,
)
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.losses import LabelSmoothingCrossEntropy
from minilearn.metrics import accuracy
from minilearn.optim import SGD

ROWS, BS = 22, 4
"""Five batches and a ragged one."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, and no compiler's own warnings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """Images of 4×4 to two classes, with batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.drop, self.linear = nn.Dropout(0.2), nn.Linear(3 * 16, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.drop(self.norm(self.conv(images)).relu().flatten(1)))


def rows(n: int = ROWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return x, (x.sum((1, 2, 3)) > 0).long()


def loaders() -> DataLoaders:
    return DataLoaders.from_tensors(*rows(), *rows(10, seed=1), bs=BS, shuffle=False, device="cpu")


def learner(
    *cbs: Any, dls: Any = None, model: nn.Module | None = None, path: Path | None = None, **more: Any
) -> Learner:
    torch.manual_seed(0)
    more = {"loss_func": nn.CrossEntropyLoss(), "opt_func": SGD, "lr": 0.1, "metrics": accuracy, **more}
    learn = Learner(dls or loaders(), model or Net(), cbs=list(cbs), path=path, **more)
    learn.logger = lambda line: None
    return learn


def weights(learn: Learner) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in learn.model.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# ---- an average of the weights, and others ----


class Watch(Callback):
    """Keeps the weights as they are after each step that was taken."""

    order = EMA.order - 1

    def before_fit(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self._cancelled = False

    def after_cancel_step(self) -> None:
        self._cancelled = True

    def after_step(self) -> None:
        if not self._cancelled:
            self.steps.append({name: p.detach().clone() for name, p in self.model.named_parameters()})
        self._cancelled = False


def moving_average(steps: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    average = dict(steps[0])
    for step in steps[1:]:
        average = {name: decay * average[name] + (1 - decay) * value for name, value in step.items()}
    return average


def assert_averages_each_step(*cbs: Callback, steps: int, **more: Any) -> Learner:
    """The average of a fit of two epochs is that of its real steps, by hand."""
    ema, watch = EMA(0.5, warmup=False), Watch()
    learn = learner(ema, watch, *cbs, **more)
    learn.fit(2)
    assert len(watch.steps) == ema.n_averaged == steps
    for name, value in moving_average(watch.steps, 0.5).items():
        torch.testing.assert_close(dict(learn.model.named_parameters())[name].detach(), value)
    return learn


def test_accumulated_gradients_are_averaged_once_a_step_and_the_last_step_of_an_epoch_too() -> None:
    assert_averages_each_step(GradientAccumulation(8), steps=6)  # 8 + 8 + 6 samples an epoch


def test_the_last_step_of_an_epoch_moves_the_weights_not_the_average() -> None:
    plain, averaged = learner(GradientAccumulation(8)), learner(GradientAccumulation(8), EMA(leaves_average=False))
    for learn in (plain, averaged):
        torch.manual_seed(3)
        learn.fit(3)
    assert_same(weights(plain), weights(averaged))


def test_the_last_step_of_a_training_part_that_was_cut_short_is_averaged() -> None:
    assert_averages_each_step(GradientAccumulation(8), ShortEpoch(0.5), steps=4)  # 8 + 4 samples an epoch


@pytest.mark.parametrize("mode", ["fp16", "bf16"])
def test_mixed_precision_is_averaged_step_by_step(mode: str) -> None:
    learn = assert_averages_each_step(MixedPrecision(mode), steps=12)
    assert all(p.dtype is torch.float32 for p in learn.model.parameters())


def test_a_step_that_the_scaler_left_out_is_not_averaged() -> None:
    ema, watch = EMA(0.5, warmup=False), Watch()
    learner(ema, watch, MixedPrecision("fp16", init_scale=2.0**22)).fit(2)
    assert 0 < ema.n_averaged < 12
    assert ema.n_averaged == len(watch.steps)


def loss_of(learn: Learner) -> float:
    """The validation loss by hand, of the model as it is."""
    x, y = rows(10, seed=1)
    with torch.no_grad():
        return F.cross_entropy(learn.model.eval()(x), y).item()


def column(learn: Learner, name: str) -> list[Any]:
    recorder = learn.recorder
    return [row[recorder.column_names.index(name)] for row in recorder.values]


def test_the_file_of_the_best_epoch_has_the_averages_that_were_validated(tmp_path: Path) -> None:
    learn = learner(EMA(0.9), SaveModel(every_epoch=True), path=tmp_path)
    learn.fit(3)
    for epoch, validated in enumerate(column(learn, "valid_loss")):
        fresh = learner(path=tmp_path)
        fresh.load(f"model_{epoch}", with_opt=False)
        assert loss_of(fresh) == pytest.approx(validated, rel=1e-5)


def test_the_best_averages_are_in_the_model_after_the_fit(tmp_path: Path) -> None:
    learn = learner(EMA(0.9), SaveModel(comp="max"), path=tmp_path)  # the worst, so that it is not the last
    learn.fit(4)
    assert loss_of(learn) == pytest.approx(max(column(learn, "valid_loss")), rel=1e-5)


def test_a_fit_that_was_stopped_early_ends_with_the_average() -> None:
    ema = EMA(0.9)
    learn = learner(ema, EarlyStopping(comp="max", patience=1))  # the loss falls
    learn.fit(9)
    assert len(learn.recorder.values) < 9
    assert_same({name: ema.average[name] for name in ema.average}, {n: weights(learn)[n] for n in ema.average})


def test_two_averages_are_refused_in_either_order() -> None:
    for pair in ([EMA(), SWA()], [SWA(), EMA()]):
        with pytest.raises(ValueError, match="would both be in the model: one only"):
            learner(*pair).fit(1)


def test_a_search_for_a_rate_leaves_the_average_alone() -> None:
    ema = EMA(0.9)
    learn = learner(ema)
    learn.fit(1)
    before, average = weights(learn), {name: t.clone() for name, t in ema.average.items()}
    learn.lr_find(num_it=12, show_plot=False, suggest_funcs=None)
    assert_same(before, weights(learn))
    assert_same(average, ema.average)


class PredictAfterEpoch(Callback):
    """Predicts after each epoch, from within the fit."""

    order = 100

    def before_fit(self) -> None:
        self.preds: list[Tensor] = []

    def after_epoch(self) -> None:
        self.preds.append(self.learn.get_preds(act=lambda pred: pred)[0])


@pytest.mark.parametrize("other", [None, "bf16"])
def test_predictions_within_a_fit_are_those_of_the_average(other: str | None) -> None:
    more = [MixedPrecision(other)] if other else []
    predict, fetch = PredictAfterEpoch(), FetchPreds()
    learn = learner(EMA(0.9), predict, fetch, *more)
    learn.fit(2)
    for pred, loss in zip(predict.preds, column(learn, "valid_loss"), strict=True):
        assert F.cross_entropy(pred, rows(10, seed=1)[1]).item() == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(fetch.preds[0], predict.preds[-1].softmax(1))


def test_predictions_within_a_fit_leave_the_training_as_it_is() -> None:
    plain, looked = learner(EMA(0.9)), learner(EMA(0.9), PredictAfterEpoch(), FetchPreds())
    for learn in (plain, looked):
        torch.manual_seed(3)
        learn.fit(2)
    assert_same(weights(plain), weights(looked))
    assert plain.recorder.values == looked.recorder.values


def test_what_is_saved_after_the_fit_is_the_average(tmp_path: Path) -> None:
    learn = learner(EMA(0.9), path=tmp_path)
    learn.fit(2)
    learn.save("last")
    fresh = learner(path=tmp_path)
    fresh.load("last", with_opt=False)
    assert loss_of(fresh) == pytest.approx(column(learn, "valid_loss")[-1], rel=1e-5)


# ---- blended batches, and others ----


class Keep(Callback):
    """Keeps what the model got and what the loss was taken against, batch by batch of training."""

    order = 5  # after the batch was blended
    run_valid = False
    acts_in_step = False

    def before_fit(self) -> None:
        self.batches: list[tuple[Tensor, Any]] = []

    def before_batch(self) -> None:
        self.batches.append((self.x.clone(), self.yb[0]))


def blended_loss(pred: Tensor, blend: Any, smoothing: float = 0.0) -> Tensor:
    """The loss of a blended batch, by its formula."""
    loss = partial(F.cross_entropy, reduction="none", label_smoothing=smoothing)
    return (blend.lam * loss(pred, *blend.first) + (1 - blend.lam) * loss(pred, *blend.second)).mean()


def assert_trained_by_hand(learn: Learner, keep: Keep, n_acc: int = 1, **options: Any) -> None:
    """One epoch of SGD over the batches that were kept, by hand, ends with the same weights."""
    model = linear().train()
    left = list(keep.batches)
    while left:
        some, count = [], 0
        while left and count < n_acc:
            some.append(left.pop(0))
            count += len(some[-1][0])
        loss = sum(len(x) * blended_loss(model(x), blend, **options) for x, blend in some) / count
        loss.backward()  # type: ignore[union-attr]
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad  # type: ignore[operator]  # noqa: PLW2901
                p.grad = None
    for name, value in model.state_dict().items():
        torch.testing.assert_close(learn.model.state_dict()[name], value)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def blended(*cbs: Callback, **more: Any) -> tuple[Learner, Keep]:
    keep = Keep()
    learn = learner(MixUp(0.8), keep, *cbs, **{"model": linear(), **more})
    torch.manual_seed(5)
    learn.fit(1)
    return learn, keep


def test_blended_batches_train_by_their_formula() -> None:
    assert_trained_by_hand(*blended())


def test_blended_batches_are_accumulated_by_their_rows() -> None:
    assert_trained_by_hand(*blended(GradientAccumulation(8)), n_acc=8)


def test_blended_batches_go_with_label_smoothing() -> None:
    assert_trained_by_hand(*blended(loss_func=LabelSmoothingCrossEntropy(0.1)), smoothing=0.1)
    assert_trained_by_hand(*blended(loss_func=nn.CrossEntropyLoss(label_smoothing=0.1)), smoothing=0.1)


def test_blended_batches_train_in_mixed_precision_nearly_as_in_single() -> None:
    one, other = blended()[0], blended(MixedPrecision("bf16"))[0]
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(other)[name], value, rtol=0.02, atol=0.01)


def test_blended_batches_and_an_average_leave_each_other_alone() -> None:
    one, other = blended()[0], blended(EMA(leaves_average=False))[0]
    assert_same(weights(one), weights(other))


def test_blended_batches_compiled_train_as_uncompiled() -> None:
    torch._dynamo.reset()
    one, other = blended(EMA(0.9))[0], blended(EMA(0.9), compile=True)[0]
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(other)[name], value)


def test_metrics_of_training_see_plain_targets_of_blended_batches() -> None:
    learn = learner(MixUp(0.8), Recorder(train_metrics=True), lr=0.0)
    learn.fit(1)
    assert learn.recorder.metric_names[1:-1] == ["train_loss", "train_accuracy", "valid_loss", "valid_accuracy"]
    assert 0 <= column(learn, "train_accuracy")[0] <= 1


def test_a_last_step_that_is_cancelled_leaves_the_loss_as_it_was() -> None:
    class CancelLast(Callback):
        order = 100

        def before_step(self) -> None:
            if self.iter == 5:
                raise CancelTrainException

    loss_func = nn.CrossEntropyLoss()
    seen: list[Any] = []

    class Look(Callback):
        def before_validate(self) -> None:
            seen.append(self.learn.loss_func)

    learner(MixUp(), GradientAccumulation(8), CancelLast(), Look(), loss_func=loss_func).fit(2)
    assert seen == [loss_func] * 2


# ---- gradients, schedules, figures ----


@pytest.mark.parametrize("n_acc", [None, 8])
def test_true_gradients_are_clipped_in_float16(n_acc: int | None) -> None:
    norms = []

    class Norm(Callback):
        order = GradientClip.order + 1

        def before_step(self) -> None:
            total = torch.stack([p.grad.norm() for p in self.model.parameters() if p.grad is not None]).norm()
            norms.append(total.item())

    more = [GradientAccumulation(n_acc)] if n_acc else []
    learner(MixedPrecision("fp16"), GradientClip(0.05), Norm(), *more).fit(1)
    assert norms == pytest.approx([0.05] * (3 if n_acc else 6), rel=1e-3)


def two_sets() -> DataLoaders:
    noisy = rows(10, seed=2)
    batches = [(noisy[0][i : i + BS], 1 - noisy[1][i : i + BS]) for i in range(0, 10, BS)]
    dls = loaders()
    return DataLoaders(dls.train, {"valid": dls.valid, "noisy": batches}, device="cpu")


@pytest.mark.parametrize("add_time", [True, False])
def test_a_figure_of_a_further_set_slows_saves_and_stops(add_time: bool, tmp_path: Path) -> None:
    rates = []

    class Rates(Callback):
        def before_train(self) -> None:
            rates.append(self.opt.param_groups[-1]["lr"])

    watchers = [
        ReduceLROnPlateau("noisy_loss", patience=1),
        EarlyStopping("noisy_loss", patience=2),
        SaveModel("noisy_loss", fname="best"),
    ]
    learn = learner(*watchers, Rates(), Recorder(add_time=add_time), dls=two_sets(), path=tmp_path, lr=0.3)
    learn.fit(30)
    losses = column(learn, "noisy_loss")
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 3  # the best one, and two that are not
    assert rates[-1] == pytest.approx(rates[best + 1] / 10)
    assert learn.opt.param_groups[-1]["lr"] == pytest.approx(0.3)
    assert learn.validate(2)[0] == pytest.approx(losses[best], rel=1e-5)


class CancelSome(Callback):
    """Cancels the first set's validation in every second epoch."""

    order = -20

    def before_validate(self) -> None:
        if self.epoch % 2 and self.dl is self.dls.valid:
            raise CancelValidException


def assert_file_is_the_history(learn: Learner, path: Path) -> None:
    recorder = learn.recorder
    with path.open(newline="") as file:
        heading, *lines = csv.reader(file)
    assert heading == recorder.metric_names
    assert {len(line) for line in lines} == {len(heading)}
    n = len(recorder.column_names)
    found = [[float(cell) if cell else None for cell in line[1 : 1 + n]] for line in lines]
    assert found == recorder.values


FORMS = list(itertools.product([True, False], [True, False], [True, False], [True, False]))


@pytest.mark.parametrize(("add_time", "train_metrics", "several", "cancelled"), FORMS)
def test_the_file_has_the_table_in_each_of_its_forms(
    add_time: bool, train_metrics: bool, several: bool, cancelled: bool, tmp_path: Path
) -> None:
    recorder, logger = Recorder(add_time=add_time, train_metrics=train_metrics), CSVLogger()
    more = [CancelSome()] if cancelled else []
    learn = learner(recorder, logger, *more, dls=two_sets() if several else loaders(), path=tmp_path)
    printed: list[str] = []
    learn.logger = printed.append
    learn.fit(3)
    assert_file_is_the_history(learn, logger.path)
    assert printed[0].split() == recorder.metric_names
    assert [dict(line).keys() for line in logger.read_log()] == [dict.fromkeys(recorder.metric_names).keys()] * 3


@pytest.mark.parametrize(("add_time", "train_metrics", "several", "cancelled"), FORMS)
def test_tensorboard_has_the_table_in_each_of_its_forms(
    add_time: bool, train_metrics: bool, several: bool, cancelled: bool, tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recorder, board = Recorder(add_time=add_time, train_metrics=train_metrics), TensorBoard("run", trace_model=False)
    more = [CancelSome()] if cancelled else []
    learn = learner(recorder, board, *more, dls=two_sets() if several else loaders(), path=tmp_path)
    learn.fit(3)
    run = accumulator.EventAccumulator(str(board.folder), size_guidance={"scalars": 0})
    run.Reload()
    for name in recorder.column_names[1:]:
        known = [value for value in column(learn, name) if value is not None]
        assert [event.value for event in run.Scalars(name)] == pytest.approx(known, rel=1e-6), name


def test_pictures_are_of_the_first_validation_set(tmp_path: Path) -> None:
    kept = []

    class Look(Callback):
        order = TensorBoard.order - 0.5

        def after_epoch(self) -> None:
            kept.append(board._first._rows[0])  # type: ignore[index]

    board = TensorBoard("run", trace_model=False)
    learner(board, Look(), FetchPreds(ds_idx=0), dls=two_sets(), path=tmp_path).fit(1)
    assert torch.equal(kept[0], rows(10, seed=1)[0][:BS])


def test_graph_and_bar_do_without_a_column_of_times() -> None:
    graph = ShowGraph()
    learn = learner(Recorder(add_time=False), graph)
    learn.fit(2)
    drawn = graph.figure().axes[0].lines[-1].get_ydata()
    assert list(drawn) == column(learn, "valid_loss")


def test_a_short_epoch_goes_on_with_the_cycle_where_it_would_be() -> None:
    def rates(*cbs: Callback) -> list[float]:
        learn = learner(*cbs)
        learn.fit_one_cycle(3, 0.1)
        return learn.recorder.lrs

    whole, short = rates(), rates(ShortEpoch(0.5))
    assert short == [*whole[0:3], *whole[6:9], *whole[12:15]]


def test_predictions_are_of_all_rows_though_epochs_are_short() -> None:
    fetch = FetchPreds()
    learn = learner(ShortEpoch(0.3), fetch)
    learn.fit(1)
    assert len(fetch.preds[0]) == 10
    assert len(learn.get_preds()[0]) == 10


@pytest.mark.parametrize("kind", [HookCallback, ActivationStats])
def test_layers_are_hooked_in_mixed_precision_and_beside_a_compiled_model(kind: type[HookCallback]) -> None:
    torch._dynamo.reset()
    seen: list[torch.dtype] = []

    class Look(kind):  # type: ignore[misc, valid-type]
        order = kind.order

        def hook(self, module: nn.Module, inputs: Any, output: Any) -> Any:
            seen.append(output.dtype)
            return super().hook(module, inputs, output)

    looked = learner(Look(every=3), MixedPrecision("bf16"), compile=True, model=linear())
    plain = learner(MixedPrecision("bf16"), compile=True, model=linear())
    for learn in (looked, plain):
        learn.fit(2)
    assert seen == [torch.bfloat16] * 4
    assert looked.compiled is not None
    assert not any(module._forward_hooks for module in looked.model.modules())
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(looked)[name], value, rtol=0.02, atol=0.02)

"""The history: what is in it, in which order, and that it stays small."""

import json
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import nn
from torch.optim.lr_scheduler import StepLR

from minilearn.vision import torchvision  # isort: skip  # noqa: F401 -- torchmetrics imports it
import torchmetrics  # isort: skip

from minilearn.callback import (
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelTrainException,
    CancelValidException,
)
from minilearn.callbacks import DevicePlacement, Divergence, ParamScheduler, ProgressCallback, TorchScheduler, recorder
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.metrics import mae, mse
from minilearn.optim import SGD, ranger
from minilearn.schedule import SchedLin
from minilearn.states import flatten_state, unflatten_state
from minilearn.tensors import LateScalars

pyplot = pytest.importorskip("matplotlib.pyplot")


def learner(cbs: object = None, opt_func: object = SGD, **kwargs: object) -> Learner:
    learn = Learner(line_dls(), nn.Linear(3, 1), F.mse_loss, opt_func, cbs=cbs, **kwargs)  # type: ignore[arg-type]
    learn.logger = lambda line: None
    return learn


@pytest.fixture(autouse=True)
def close_figures() -> object:
    """Every test leaves no figure open."""
    yield
    pyplot.close("all")


def test_history_of_a_fit() -> None:
    learn = learner(metrics=[mse, mae])
    learn.fit(3, 0.05)
    history = learn.recorder
    assert history.metric_names == ["epoch", "train_loss", "valid_loss", "mse", "mae", "time"]
    assert history.epochs == [0, 1, 2]
    assert history.iters == [2, 4, 6]
    assert len(history.losses) == len(history.lrs) == 6
    assert set(history.lrs) == {0.05}
    assert [len(row) for row in history.values] == [4, 4, 4]
    assert history.values[-1][0] == history.losses[-1] == history.smooth_loss.value
    assert all(seconds > 0 for seconds in history.seconds)


def test_every_hyperparameter_is_kept_batch_by_batch() -> None:
    learn = learner(opt_func=partial(SGD, mom=0.5, nesterov=True))
    learn.fit(2, 0.05, wd=0.1, cbs=ParamScheduler({"mom": SchedLin(0.0, 0.8)}))
    hps = learn.recorder.hps
    assert next(iter(hps)) == "lr"
    assert {"lr", "mom", "wd"} <= set(hps)
    assert hps["mom"] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert hps["lr"] == learn.recorder.lrs == [0.05] * 4
    assert hps["wd"] == [0.1] * 4, "the weights', though the last group is the bias, which is spared it"


def test_figures_are_the_last_layers_those_of_what_has_weight_decay() -> None:
    learn = learner(splitter=lambda m: [list(part.parameters()) for part in m])
    learn.model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    learn.fit(2, [0.01, 0.02], cbs=ParamScheduler({"wd": SchedLin(0.0, 0.8)}))
    assert learn.recorder.hps["wd"] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert learn.recorder.lrs == [0.02] * 4


def test_last_layer_of_biases_alone_has_no_weight_decay_to_show() -> None:
    learn = learner(opt_func=SGD, splitter=lambda m: [[m.weight], [m.bias]])
    learn.fit(1, [0.01, 0.02], wd=0.1)
    assert learn.recorder.hps["wd"] == [0.0, 0.0]
    assert learn.recorder.lrs == [0.02, 0.02]


def test_counts_of_steps_and_what_torchs_schedulers_note_are_no_hyperparameters() -> None:
    learn = learner(opt_func=ranger)
    learn.fit(1, cbs=TorchScheduler(partial(StepLR, step_size=1)))
    learn.fit(1, cbs=TorchScheduler(partial(StepLR, step_size=1)))
    assert set(learn.recorder.hps) == {"lr", "mom", "sqr_mom", "eps", "wd", "l1"}


@pytest.mark.parametrize(
    ("opt_func", "expected"),
    [
        (partial(torch.optim.SGD, momentum=0.5, weight_decay=0.1), {"mom": 0.5, "wd": 0.1}),
        (partial(torch.optim.AdamW, betas=(0.8, 0.7), eps=1e-3), {"mom": 0.8, "sqr_mom": 0.7, "eps": 1e-3}),
        (partial(torch.optim.RMSprop, alpha=0.8, momentum=0.3), {"mom": 0.3, "sqr_mom": 0.8}),
    ],
)
def test_torchs_hyperparameters_are_kept_under_our_names(opt_func: object, expected: dict[str, float]) -> None:
    learn = Learner(line_dls(), nn.Linear(3, 1, bias=False), F.mse_loss, opt_func)  # type: ignore[arg-type]
    with learn.no_logging():
        learn.fit(1, 0.01)
    assert {name: learn.recorder.hps[name] for name in expected} == {name: [v, v] for name, v in expected.items()}


class AsFromAGPU(LateScalars):
    """Gives every number late, as it would come from a GPU."""

    reads_from_cpu = False


def test_rate_that_is_a_tensor_is_kept_as_it_was_in_each_batch() -> None:
    class Shrink(Callback):
        def before_fit(self) -> None:
            for group in self.opt.param_groups:
                group["lr"] = torch.tensor(0.5)

        def after_batch(self) -> None:
            if self.training:
                for group in self.opt.param_groups:
                    group["lr"].mul_(0.5)

    learn = learner(Shrink, opt_func=torch.optim.SGD)
    learn.recorder._late = AsFromAGPU(learn.recorder._take)
    learn.fit(2)
    assert learn.recorder.lrs == [0.5, 0.25, 0.125, 0.0625]


@pytest.mark.parametrize("late", [LateScalars, AsFromAGPU])
def test_optimizer_that_is_exchanged_in_a_fit_leaves_gaps_and_no_error(late: type[LateScalars]) -> None:
    class Exchange(Callback):
        def before_batch(self) -> None:
            if self.training and self.train_iter == 2:
                self.learn.opt = torch.optim.Adagrad(self.model.parameters(), lr=0.5)

    learn = learner(Exchange)
    learn.recorder._late = late(learn.recorder._take)
    learn.fit(2, 0.1)
    assert learn.recorder.lrs == [0.1, 0.1, 0.5, 0.5]
    mom, decay = learn.recorder.hps["mom"], learn.recorder.hps["eps"]
    assert mom[:2] == [0.0, 0.0]
    assert all(math.isnan(value) for value in (*mom[2:], *decay[:2]))


def test_schedule_is_drawn_for_what_was_changed() -> None:
    learn = learner(opt_func=partial(SGD, mom=0.9))
    learn.fit(2, cbs=ParamScheduler({"lr": SchedLin(0.0, 0.1), "mom": SchedLin(0.9, 0.8)}))
    panels = learn.recorder.plot_sched().child_axes
    assert [panel.get_ylabel() for panel in panels] == ["lr", "mom"]
    assert list(panels[0].lines[0].get_ydata()) == learn.recorder.lrs


def test_schedule_of_a_plain_fit_is_its_rate() -> None:
    learn = learner()
    learn.fit(1)
    assert [panel.get_ylabel() for panel in learn.recorder.plot_sched().child_axes] == ["lr"]


@pytest.mark.parametrize("keys", ["wd", ["wd", "mom"]])
def test_schedule_is_drawn_for_what_is_asked(keys: str | list[str]) -> None:
    learn = learner()
    learn.fit(1)
    panels = learn.recorder.plot_sched(keys).child_axes
    assert [panel.get_ylabel() for panel in panels] == ([keys] if isinstance(keys, str) else keys)


def test_schedule_that_is_not_there_is_refused() -> None:
    learn = learner()
    with pytest.raises(ValueError, match="no training batch has been recorded yet"):
        learn.recorder.plot_sched()
    learn.fit(1)
    with pytest.raises(ValueError, match="no hyperparameter 'momm' was recorded; did you mean 'mom'"):
        learn.recorder.plot_sched("momm")


def test_losses_are_the_debiased_moving_average() -> None:
    raw: list[float] = []

    class Keep(Callback):
        def after_loss(self) -> None:
            if self.training:
                raw.append(self.loss.item())

    learn = learner(Keep)
    learn.fit(3, 0.05)
    average, expected = 0.0, []
    for i, loss in enumerate(raw, start=1):
        average = 0.98 * average + 0.02 * loss
        expected.append(average / (1 - 0.98**i))
    assert learn.recorder.losses == pytest.approx(expected, rel=1e-9)


def test_second_fit_has_a_history_of_its_own() -> None:
    learn = learner()
    learn.fit(3)
    learn.fit(1)
    assert len(learn.recorder.values) == 1
    assert len(learn.recorder.losses) == 2


@pytest.mark.parametrize(
    ("event", "cancel", "known"),
    [
        ("before_train", CancelTrainException, [False, True, True]),
        ("before_validate", CancelValidException, [True, False, False]),
        ("before_epoch", CancelEpochException, [False, False, False]),
        ("after_train", CancelEpochException, [True, False, False]),
    ],
)
def test_row_lines_up_with_the_headings_whatever_was_cancelled(
    event: str, cancel: type[Exception], known: list[bool]
) -> None:
    def method(self: Callback) -> None:
        raise cancel

    learn = learner(type("Cancel", (Callback,), {event: method, "order": 60}), metrics=mse)
    learn.fit(1)
    (row,) = learn.recorder.values
    assert [figure is not None for figure in row] == known


def test_cancelled_batch_is_not_recorded_with_the_loss_before_it() -> None:
    class Skip(Callback):
        def before_batch(self) -> None:
            if self.training and self.iter == 1:
                raise CancelBatchException

    learn = learner(Skip)
    learn.fit(2)
    assert len(learn.recorder.losses) == 2


def test_validation_loss_counts_each_row_the_same() -> None:
    dls = line_dls(train_rows=4, valid_rows=7)
    learn = Learner(dls, nn.Linear(3, 1), F.mse_loss, SGD)
    with learn.no_logging():
        learn.fit(1, 0.0)
    x, y = dls.valid_ds.tensors
    assert learn.recorder.values[0][1] == pytest.approx(F.mse_loss(learn.model(x), y).item(), rel=1e-6)


def test_history_stays_small_however_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MAX_POINTS", 8)
    learn = learner(metrics=mse)
    learn.fit(25)
    history = learn.recorder
    assert len(history.losses) == len(history.lrs) <= 8
    assert {len(figures) for figures in history.hps.values()} == {len(history.losses)}
    assert history.stride == 8
    assert history.iters[-1] == history.smooth_loss.count == 50


def test_thinned_schedule_holds_every_strideth_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MAX_POINTS", 8)
    learn = learner()
    learn.fit(25, cbs=ParamScheduler({"lr": SchedLin(0.0, 0.05), "wd": SchedLin(0.0, 0.5)}))
    assert learn.recorder.stride == 8
    assert learn.recorder.lrs == pytest.approx([0.0, 0.008, 0.016, 0.024, 0.032, 0.04, 0.048])


def test_thinned_history_holds_every_strideth_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def losses() -> recorder.Recorder:
        torch.manual_seed(0)
        learn = learner()
        learn.fit(25, 0.01)
        return learn.recorder

    whole = losses().losses
    monkeypatch.setattr(recorder, "MAX_POINTS", 8)
    thinned = losses()
    assert thinned.losses == whole[:: thinned.stride]


def test_memory_of_a_long_epoch_is_flat() -> None:
    import tracemalloc

    class Endless:
        def __iter__(self) -> object:
            x, y = torch.zeros(1, 3), torch.zeros(1, 1)
            for i in range(4000):
                if i == 1000:
                    tracemalloc.start()
                yield x, y
            sizes.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    sizes: list[int] = []
    learn = Learner(DataLoaders(Endless()), nn.Linear(3, 1), F.mse_loss, SGD)
    with learn.no_logging():
        learn.fit(1)
    assert sizes[0] < 400_000  # two figures a batch, of at most 32 bytes and a pointer each, and no tensor


def test_beta_is_checked() -> None:
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\), got 1"):
        recorder.Recorder(beta=1)


def test_history_goes_on_from_its_state_through_a_file() -> None:
    whole, first, second = learner(), learner(), learner()
    for learn in (first, second):
        learn.model.load_state_dict(whole.model.state_dict())
    whole.fit(4, 0.05)
    first.fit(2, 0.05)
    value, tensors = flatten_state({type(cb).__name__: cb.state_dict() for cb in first.cbs})
    state = unflatten_state(json.loads(json.dumps(value)), {name: tensor.clone() for name, tensor in tensors.items()})

    class Resume(Callback):
        order = recorder.Recorder.order + 1

        def before_fit(self) -> None:
            for cb in self.learn.cbs:
                cb.load_state_dict(state.get(type(cb).__name__, {}) if cb is not self else {})

    second.model.load_state_dict(first.model.state_dict())
    second.remove_cb(DevicePlacement).remove_cb(ProgressCallback).add_cb(Resume)
    second.fit(4, 0.05, start_epoch=2)
    assert second.recorder.losses == whole.recorder.losses
    assert second.recorder.hps == whole.recorder.hps
    assert second.recorder.values == whole.recorder.values
    assert second.recorder.iters == whole.recorder.iters
    assert second.train_iter == whole.train_iter == 8


def test_row_is_there_for_every_callback_after_the_epoch() -> None:
    seen: list[recorder.Row] = []

    class Early(Callback):
        order = -50

        def after_epoch(self) -> None:
            seen.append(list(self.learn.recorder.values[-1]))

    learn = learner(Early, metrics=mse)
    learn.fit(3)
    assert seen == learn.recorder.values
    assert all(figure is not None for row in seen for figure in row)


def test_row_of_an_epoch_after_which_the_fit_is_ended_is_kept_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    class Stop(Callback):
        def after_epoch(self) -> None:
            if self.epoch == 1:
                raise CancelFitException

    learn = learner(Stop)
    learn.logger = print
    learn.fit(5)
    assert learn.recorder.epochs == [0, 1]
    assert len(learn.recorder.values) == 2
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["epoch", "0", "1"]


def test_row_of_an_epoch_that_was_cut_short_is_not_kept() -> None:
    class Stop(Callback):
        def after_batch(self) -> None:
            if self.epoch == 1:
                raise CancelFitException

    learn = learner(Stop)
    learn.fit(5)
    assert len(learn.recorder.values) == len(learn.recorder.epochs) == 1


@pytest.mark.parametrize("metrics", [mse, torchmetrics.MeanSquaredError()])
def test_part_cancelled_in_its_first_event_has_no_figures_of_the_epoch_before(metrics: object) -> None:
    class Sometimes(Callback):
        order = -50

        def before_validate(self) -> None:
            if self.epoch != 1:
                raise CancelValidException

    learn = learner(Sometimes, metrics=metrics)
    learn.fit(3)
    assert [[figure is not None for figure in row[1:]] for row in learn.recorder.values] == [
        [False, False],
        [True, True],
        [False, False],
    ]


@pytest.mark.parametrize("order", [0, 60])
def test_epoch_cancelled_before_it_began_has_an_empty_row(order: int) -> None:
    class Skip(Callback):
        def before_epoch(self) -> None:
            raise CancelEpochException

    Skip.order = order
    learn = learner(Skip)
    learn.fit(2)
    assert learn.recorder.values == [[None, None], [None, None]]
    assert learn.recorder.epochs == [0, 1]


def test_metrics_of_training_batches_hold_no_graph() -> None:
    grads: list[bool] = []

    def metric(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        value = (pred - target).abs().mean()
        grads.append(value.requires_grad)
        return value

    learn = Learner(DataLoaders(line_dls().train), nn.Linear(3, 1), F.mse_loss, metrics=metric)
    with learn.no_logging():
        learn.fit(1)
    assert grads == [False, False]


def test_first_loss_that_is_no_number_is_known_by_its_batch_in_every_fit() -> None:
    learn = learner(Divergence("warn"))
    learn.loss_func = lambda pred, target: (pred - target).mean() * float("nan")
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="not a finite number"):
            learn.fit(1)
        assert learn.recorder.nan_at == 0


def test_smooth_loss_is_up_to_date_whenever_it_is_read() -> None:
    counts: list[int] = []

    class Look(Callback):
        order = 60

        def after_batch(self) -> None:
            if self.training:
                counts.append(self.learn.recorder.smooth_loss.count)

    learn = learner(Look)
    learn.recorder._late.reads_from_cpu = False  # as on a GPU
    learn.fit(1)
    assert counts == [1, 2]

"""A training that blows up: named, ended, taken back; and no alarm where all is well."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.callbacks import EMA, Checkpoint, Divergence, DivergenceError, LRFinder, MixedPrecision, Recorder
from minilearn.callbacks.schedule import ParamScheduler
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD
from minilearn.schedule import SchedExp
from tests.conftest import line_dls

NAN = float("nan")


def learner(*cbs: Any, rows: int = 40, model: nn.Module | None = None, **kwargs: Any) -> Learner:
    torch.manual_seed(0)
    net = model or nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    learn = Learner(line_dls(rows), net, kwargs.pop("loss_func", F.mse_loss), cbs=list(cbs), **kwargs)
    learn.logger = lambda text: None
    return learn


def late(learn: Learner) -> Learner:
    """As on a GPU: losses are read at the end of an epoch's training."""
    learn.recorder._late.reads_from_cpu = False
    return learn


class Spoils(Callback):
    "Makes the loss of training batch number `at` nan, each time it comes or once."

    order = Recorder.order - 1
    acts_in_step = False
    run_valid = False

    def __init__(self, at: int, times: int = 1) -> None:
        self.at, self.times = at, times

    def after_loss(self) -> None:
        if self.train_iter == self.at and self.times:
            self.times -= 1
            self.learn.loss = self.loss * NAN


def finite(learn: Learner) -> bool:
    return all(bool(p.isfinite().all()) for p in learn.model.parameters())


# ---- stop ----


def test_default_ends_a_fit_that_blows_up_with_epoch_batch_rate_norm_layer_and_advice() -> None:
    learn = learner(opt_func=SGD)
    with pytest.raises(
        DivergenceError,
        match=r"^the training loss is not a finite number since epoch 0, batch 3 \(batch 3 of this fit, both from 0\), at"
        r" a learning rate of 20; the gradients' norm is nan\. The first output that is not finite is that of the layer"
        r" '2' \(Linear\), though its input is\. Try a learning rate of 2, let learn\.lr_find\(\)",
    ):
        learn.fit(3, 20.0)


def test_batch_is_counted_within_its_epoch_and_in_the_fit() -> None:
    with pytest.raises(DivergenceError, match=r"since epoch 1, batch 4 \(batch 14 of this fit, both from 0\)"):
        learner(Spoils(14)).fit(3)


def test_rate_named_is_that_of_the_batch_though_it_is_seen_late() -> None:
    learn = late(learner(Spoils(2), ParamScheduler({"lr": SchedExp(1.0, 1e-4)})))
    with pytest.raises(DivergenceError, match=r"batch 2 .* at a learning rate of 0.158489;") as caught:
        learn.fit(1)
    assert learn.recorder.lrs[2] == pytest.approx(1.0 * (1e-4) ** 0.2)
    assert "raised in Divergence.after_train" in caught.value.__notes__


def test_history_up_to_there_stays_and_the_learner_can_go_on() -> None:
    learn = learner(Spoils(14))
    with pytest.raises(DivergenceError):
        learn.fit(3)
    assert (len(learn.recorder.values), len(learn.recorder.losses)) == (1, 15)
    assert finite(learn)
    learn.fit(1)
    assert len(learn.recorder.values) == 1


def test_batch_that_gave_it_does_not_move_the_weights() -> None:
    learn, other = learner(Spoils(3)), learner()
    with pytest.raises(DivergenceError):
        learn.fit(1, 0.01)
    other.dls.loaders[0] = [batch for i, batch in enumerate(other.dls.train) if i < 3]
    other.fit(1, 0.01)
    assert all(map(torch.equal, learn.model.parameters(), other.model.parameters()))


def test_weights_that_the_last_step_spoilt_are_no_silent_end() -> None:
    class SpoilsWeights(Callback):
        order = 0

        def after_step(self) -> None:
            if self.iter == 9:
                with torch.no_grad():
                    self.model[2].bias.fill_(NAN)

    with pytest.raises(
        DivergenceError, match=r"the parameter '2.bias' is no longer finite, though all losses .* batch 9"
    ):
        learner(SpoilsWeights()).fit(1)


# ---- which was first ----


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda learn: learn.dls.train.columns[0][5].fill_(NAN),
            "The batch's input has nan or inf in 1 of its 4 rows: 1. Clean",
        ),
        (
            lambda learn: learn.dls.train.columns[1][6].fill_(math.inf),
            "The batch's target has nan or inf in 1 of its 4 rows: 2",
        ),
    ],
    ids=["input", "target"],
)
def test_rows_of_the_batch_that_are_not_finite_are_named(spoil: Callable[[Learner], Any], words: str) -> None:
    learn = learner()
    spoil(learn)
    with pytest.raises(DivergenceError, match=words):
        learn.fit(1)


def test_weights_that_were_nan_before_are_named() -> None:
    learn = late(learner(opt_func=SGD))
    with pytest.raises(DivergenceError, match=r"The parameter '0.weight' and 3 more was not finite before this batch"):
        learn.fit(1, 20.0)


def test_loss_function_is_named() -> None:
    learn = learner(loss_func=lambda pred, y: (pred - pred).mean().sqrt() + F.mse_loss(pred, y).neg().log())
    with pytest.raises(
        DivergenceError, match=r"The loss function gives nan, though the model's answer is finite.*No step"
    ):
        learn.fit(1)


def test_layer_deep_within_is_named_by_its_path() -> None:
    class Logs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - 10).log()

    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), Logs()), nn.Linear(4, 1))
    with pytest.raises(DivergenceError, match=r"is that of the layer '1.1' \(Logs\), though its input is\. No step"):
        learner(model=model).fit(1)


def test_what_cannot_be_seen_again_is_said() -> None:
    with pytest.raises(DivergenceError, match=r"Carried out again, the batch gives a loss of .*a callback, by random"):
        learner(Spoils(2)).fit(1)


def test_look_leaves_buffers_random_numbers_and_gradients_as_they_were() -> None:
    def weights(cb: Divergence | None) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        learn = learner(Nans(), *([cb] if cb else []), model=model, default_cbs=True)
        if cb is None:
            learn.remove_cb(Divergence)
        learn.fit(2, 0.01)
        return [*learn.model.state_dict().values()]

    class Nans(Callback):
        "Shows the Recorder a nan; the step is taken from the true loss."

        order = Recorder.order - 1
        acts_in_step = False

        def after_loss(self) -> None:
            if self.training and self.train_iter == 3:
                self.learn.loss_grad = self.loss
                self.learn.loss = self.loss * NAN

    with pytest.warns(RuntimeWarning, match="not a finite number"):
        looked = weights(Divergence("warn"))
    assert all(map(torch.equal, looked, weights(None)))


# ---- restore ----


def test_restore_goes_back_to_the_beginning_of_the_epoch_and_on_at_a_lower_rate() -> None:
    learn = learner(Spoils(14), opt_func=SGD)
    with pytest.warns(RuntimeWarning, match=r"as at the beginning of epoch 1 again; the fit goes on with 0.1 of its"):
        learn.fit(6, 0.02, cbs=Divergence("restore"))
    assert finite(learn)
    assert len(learn.recorder.values) == 6
    assert learn.recorder.lrs[14:16] == pytest.approx([0.02, 0.002])
    assert learn.opt.param_groups[0]["lr"] == 0.02


@pytest.mark.filterwarnings("ignore:the training loss is not a finite")
def test_a_rate_that_is_far_too_high_is_lowered_until_the_training_holds() -> None:
    learn = learner(opt_func=SGD)
    learn.fit(8, 20.0, cbs=Divergence("restore"))
    assert finite(learn)
    assert (learn.recorder.values[-1][1] or math.inf) < 12


@pytest.mark.parametrize("seen_late", [False, True])
def test_restored_weights_and_averages_are_those_of_the_epochs_beginning(seen_late: bool) -> None:
    seen: dict[str, list[Tensor]] = {}

    class Watch(Callback):
        order = Divergence.order + 1

        def state(self) -> list[Tensor]:
            kept = [t for s in self.opt.state.values() for t in s.values() if isinstance(t, Tensor)]
            return [t.detach().clone() for t in (*self.model.parameters(), *kept, *ema.average.values())]

        def before_train(self) -> None:
            if self.epoch == 1:
                seen["before"] = self.state()

        def after_batch(self) -> None:
            if self.training and self.train_iter == 20 and not seen_late:
                seen["after"] = self.state()

        def after_train(self) -> None:
            if self.epoch == 1 and seen_late:
                seen["after"] = self.state()

    ema = EMA()
    cb = Divergence("restore")
    learn = learner(cb, ema, Watch, Spoils(19))
    if seen_late:
        late(learn)
    with pytest.warns(RuntimeWarning, match="as at the beginning of epoch 1 again"):
        learn.fit(2, 0.01)
    assert len(seen["before"]) > 8
    assert all(map(torch.equal, seen["before"], seen["after"]))


def test_loss_that_is_shown_is_finite_again_after_a_restore() -> None:
    learn = learner(Divergence("restore"), Spoils(14))
    with pytest.warns(RuntimeWarning):
        learn.fit(3, 0.01)
    assert all(math.isfinite(row[0] or 0) for row in learn.recorder.values)
    assert math.isnan(learn.recorder.losses[14])
    assert learn.recorder.smooth_loss.count == 30


@pytest.mark.filterwarnings("ignore:the training loss is not a finite")
def test_restore_is_a_stop_in_the_end() -> None:
    learn = learner(Divergence("restore", max_restores=2), Spoils(-1))
    learn.loss_func = lambda pred, y: F.mse_loss(pred, y) * NAN
    with pytest.raises(DivergenceError, match="The fit went back 2 times already"):
        learn.fit(1)


@pytest.mark.parametrize("scheduled", [True, False])
def test_lowered_rate_leaves_the_schedule_as_it_is(scheduled: bool) -> None:
    rates: list[float] = []

    class Watch(Callback):
        order = Divergence.order + 1

        def before_batch(self) -> None:
            if self.training:
                rates.append(self.opt.param_groups[-1]["lr"])

    cbs = [ParamScheduler({"lr": SchedExp(1e-2, 1e-4)})] if scheduled else []
    learn = learner(Divergence("restore", lr_factor=0.5), Watch, Spoils(4), *cbs)
    with pytest.warns(RuntimeWarning):
        learn.fit(2, 1e-2)
    plain = [1e-2 * 1e-2 ** (i / 20) if scheduled else 1e-2 for i in range(20)]
    assert rates == pytest.approx([*plain[:5], *(0.5 * lr for lr in plain[5:])])


# ---- which of them ----


def test_one_of_a_fit_takes_the_place_of_the_default_one_for_that_fit() -> None:
    learn = learner(Spoils(1, times=2))
    with pytest.warns(RuntimeWarning, match="not a finite number") as caught:
        learn.fit(1, cbs=Divergence("warn"))
    assert len(caught) == 1
    with pytest.raises(DivergenceError):
        learn.fit(1)


def test_a_learner_without_a_recorder_trains_all_the_same() -> None:
    learn = learner(Divergence(), default_cbs=False)
    learn.fit(1)
    assert finite(learn)


def test_finder_within_a_fit_ends_it_itself() -> None:
    learn = learner(opt_func=SGD)
    learn.fit(30, cbs=LRFinder(1e-3, 1e6, stop_div=False))
    assert learn.recorder.losses


# ---- far above its best ----


def judged(losses: list[float]) -> list[str]:
    """The warnings of a fit whose batches have these losses."""

    class Says(Callback):
        order = Recorder.order - 1
        run_valid = False

        def after_loss(self) -> None:
            self.learn.loss_grad = self.loss
            self.learn.loss = torch.tensor(losses[self.train_iter])

    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learner(Says(), rows=4 * len(losses), lr=0.0).fit(1)
    return [str(warning.message) for warning in caught]


def test_loss_that_grows_and_grows_is_named_once() -> None:
    (text,) = judged([2.0] * 50 + [2 * 1.05**i for i in range(250)])
    assert text.startswith("the training is diverging: its loss is rising far above its best, it is ")
    assert "learning rate 0," in text


@pytest.mark.parametrize("length", [8, 12, 30, 64, 70])
def test_fit_too_short_for_the_looks_is_named_at_its_end(length: int) -> None:
    (text,) = judged([2.0 * 3**i for i in range(length)])
    assert "is diverging" in text
    assert ", and was 2 (epoch 0, batch" in text


def test_rise_that_begins_after_the_last_look_is_named_at_the_end() -> None:
    (text,) = judged([2.0] * 120 + [2.0 * 3**i for i in range(30)])
    assert "(epoch 0, batch 149," in text


@pytest.mark.parametrize("epochs", [8, 30, 100])
def test_one_weight_at_too_high_a_rate_is_named_whatever_the_number_of_epochs(epochs: int) -> None:
    # The cost's bend is 2 · mean(x²) = 9.33: steps above 2 / 9.33 = 0.214 lead further from the minimum each time.
    x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [4.0], [6.0]])
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    learn = Learner(DataLoaders.from_tensors(x, y, bs=3, device="cpu"), model, F.mse_loss, SGD)
    learn.logger = lambda text: None
    with pytest.warns(RuntimeWarning, match="is diverging") as caught:
        learn.fit(epochs, 0.3 if epochs < 100 else 0.25)
    assert len(caught) == 1


@pytest.mark.parametrize(
    "losses",
    [
        [2.3 * 0.99**i for i in range(300)],
        [1.0] * 100 + [1e9] + [1.0] * 199,
        [1.0 + i / 30 for i in range(300)],
        [0.7 + 0.02 * i for i in range(300)],
        [-(1.02**i) for i in range(300)],
        [-0.01 + (i / 10) ** 2 for i in range(300)],
        [1e-3] * 100 + [1e-2] * 200,
        [5.0 * (1 + (i * 7919 % 13)) for i in range(300)],
        [0.0] * 300,
        [2.3 * 0.9**i for i in range(20)],
        [1.0] * 10 + [1e9, 1.0],
        [1e-3, 1e-3, *[1e-2] * 20],
        [3.0 + i for i in range(30)],
        [-(2.0**i) for i in range(20)],
        [2.0, 9.0, 40.0, 200.0, 900.0, 4000.0],
    ],
    ids=[
        "falls",
        "one spike",
        "rises slowly",
        "generator",
        "below zero",
        "from below zero",
        "harder data",
        "noisy",
        "zero",
        "short and falls",
        "short, one spike",
        "short, harder data",
        "short, rises slowly",
        "short, below zero",
        "too short",
    ],
)
def test_no_alarm_on_sound_losses(losses: list[float]) -> None:
    assert judged(losses) == []


def test_inf_gradients_of_a_scaler_that_finds_its_scale_are_no_alarm() -> None:
    learn = learner(MixedPrecision("fp16", init_scale=2.0**40))
    learn.fit(2, 1e-3)
    assert len(learn.recorder.values) == 2


def test_trained_table_with_minus_infinity_is_no_alarm() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.line = nn.Parameter(torch.tensor([0.0, -math.inf, 0.0])), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.line(x * self.table.softmax(0))

    learn = learner(model=Masked(), opt_func=torch.optim.SGD)
    learn.fit(2, 1e-3)
    assert len(learn.recorder.values) == 2


# ---- checkpoints ----


def test_no_checkpoint_takes_the_place_of_a_good_one_with_weights_that_are_nan(tmp_path: Path) -> None:
    class SpoilsWeights(Callback):
        order = 0

        def after_step(self) -> None:
            if self.train_iter == 13:
                with torch.no_grad():
                    self.model[2].bias.fill_(NAN)

    learn = learner(SpoilsWeights(), path=tmp_path)
    with pytest.raises(DivergenceError, match=f"The last checkpoint, of finite weights, is in {tmp_path / 'run'}"):
        learn.fit(3, checkpoint=Checkpoint("run", every_batches=1))
    kept = next(cb for cb in learn.cbs if isinstance(cb, Recorder))
    assert len(kept.values) == 1
    fresh = learner(SpoilsWeights(), path=tmp_path)
    taken: list[bool] = []

    class Watch(Callback):
        order = math.inf

        def before_batch(self) -> None:
            if not taken:
                assert (self.epoch, self.iter) == (1, 3)
                taken.append(all(bool(p.isfinite().all()) for p in self.model.parameters()))

    with pytest.raises(DivergenceError):
        fresh.fit(3, checkpoint=Checkpoint("run", every_batches=1), cbs=Watch)
    assert taken == [True]


def test_late_nan_is_seen_before_a_checkpoint_is_written(tmp_path: Path) -> None:
    learn = late(learner(path=tmp_path, opt_func=SGD))
    with pytest.raises(DivergenceError, match="of finite weights") as caught:
        learn.fit(1, 20.0, checkpoint=Checkpoint("run", every_batches=5))
    assert "raised in Checkpoint.after_batch" in caught.value.__notes__


@pytest.mark.parametrize("on_divergence", ["stop", "restore"])
def test_state_goes_there_and_back(on_divergence: str) -> None:
    state: dict[str, Any] = {}

    class Takes(Callback):
        order = Divergence.order + 1

        def after_batch(self) -> None:
            if self.training and self.epoch == 1 and self.iter == 5:
                state.update(cb.state_dict())

    cb = Divergence(on_divergence)
    learner(cb, Takes, rows=160).fit(2, 0.01)
    other = Divergence(on_divergence)
    other.load_state_dict(state)
    again = other.state_dict()
    assert {name: value for name, value in again.items() if name != "kept"} == {
        name: value for name, value in state.items() if name != "kept"
    }
    assert state["best"] == again["best"] > 0
    if on_divergence == "restore":
        assert all(map(torch.equal, state["kept"]["weights"].values(), again["kept"]["weights"].values()))


def test_interrupted_fit_that_is_restored_later_ends_as_one_that_was_not(tmp_path: Path) -> None:
    class Stops(Callback):
        order = -5

        def before_batch(self) -> None:
            if self.training and self.train_iter == 16:
                raise KeyboardInterrupt

    def fit(name: str, *cbs: Any) -> list[Tensor]:
        learn = learner(Divergence("restore"), Spoils(18), path=tmp_path)
        learn.fit(3, 0.01, checkpoint=Checkpoint(name, every_batches=1), cbs=cbs)
        return [*learn.model.parameters()]

    with pytest.warns(RuntimeWarning, match="beginning of epoch 1 again"):
        whole = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("cut", Stops())
    with pytest.warns(RuntimeWarning, match="beginning of epoch 1 again"):
        assert all(map(torch.equal, whole, fit("cut")))


# ---- the rest ----


def test_rates_are_put_back_after_an_error() -> None:
    class Fails(Callback):
        order = Divergence.order + 1

        def after_pred(self) -> None:
            if self.training and self.train_iter == 7:
                raise KeyError("mine")

    learn = learner(Divergence("restore"), Spoils(4), Fails)
    with pytest.warns(RuntimeWarning), pytest.raises(KeyError):
        learn.fit(1, 0.25)
    assert learn.opt.param_groups[0]["lr"] == 0.25


@pytest.mark.filterwarnings("ignore:the training loss is not a finite")
def test_compiled_steps_are_restored_to_the_same_weights() -> None:
    def fit(compile: bool) -> Learner:
        learn = learner(Divergence("restore"), rows=42, opt_func=SGD, compile=compile)
        learn.fit(3, 2.0)
        return learn

    eager, compiled = fit(False), fit(True)
    assert finite(compiled)
    assert compiled.recorder.lrs == pytest.approx(eager.recorder.lrs)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (
            {"on_divergence": "stopp"},
            "on_divergence must be 'stop', 'warn' or 'restore', got 'stopp'; did you mean 'stop'",
        ),
        ({"on_divergence": None}, "on_divergence must be 'stop', 'warn' or 'restore', got None"),
        ({"lr_factor": 1.0}, r"lr_factor must be in \(0, 1\), got 1.0"),
        ({"max_restores": 0}, "max_restores must be a whole number of at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Divergence(**kwargs)


def test_batches_given_as_a_dict_are_looked_at_too() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(3, 1)

        def forward(self, rows: Tensor) -> Tensor:
            return self.line(rows)

    batches = [{"rows": torch.ones(4, 3) * value, "target": torch.ones(4, 1)} for value in (1.0, NAN)]
    learn = Learner(DataLoaders(batches), Model(), F.mse_loss)
    learn.logger = lambda text: None
    with pytest.raises(DivergenceError, match="The batch's input has nan or inf in 4 of its 4 rows"):
        learn.fit(1)

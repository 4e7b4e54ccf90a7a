"""Mixed precision: where autocast is on, what the scaler does, and that nothing of it is left behind."""

import copy
import itertools
import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import events_log, line_dls
from torch import Tensor, nn

from minilearn.callback import (
    Callback,
    CancelBackwardException,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelTrainException,
)
from minilearn.callbacks import AMPMode, DevicePlacement, GradientAccumulation, GradientClip, MixedPrecision, precision
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.metrics import mae
from minilearn.optim import SGD, Adam, Lookahead, Muon


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def learner(cbs: Any = (), opt_func: Any = SGD, model: nn.Module | None = None, **options: Any) -> Learner:
    dls = options.pop("dls", None) or line_dls(32, 8, bs=8)
    options.setdefault("loss_func", F.mse_loss)
    return Learner(dls, model or net(), opt_func=opt_func, cbs=cbs, **options)


def fit(learn: Learner, *args: Any, **options: Any) -> Learner:
    with learn.no_logging():
        learn.fit(*args, **options)
    return learn


def weights(learn: Learner) -> Tensor:
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def autocast_is_on() -> bool:
    return torch.is_autocast_enabled("cpu")


class WhereAutocastIs(Callback):
    """Writes down at which events autocast is on, and in what precision predictions and losses are."""

    order = MixedPrecision.order + 1

    def __init__(self) -> None:
        self.on: dict[str, bool] = {}
        self.dtypes: set[torch.dtype] = set()

    def before_batch(self) -> None:
        self.on["before_batch"] = autocast_is_on()

    def after_pred(self) -> None:
        self.on["after_pred"] = autocast_is_on()
        self.dtypes.add(self.pred.dtype)

    def after_loss(self) -> None:
        self.on["after_loss"] = autocast_is_on()
        self.dtypes.add(self.loss.dtype)

    def after_batch(self) -> None:
        self.on["after_batch"] = autocast_is_on()


# ---- autocast ----


def test_a_batch_is_the_loop_by_hand_under_autocast() -> None:
    learn = learner(MixedPrecision("bf16"), lr=0.1)
    model = copy.deepcopy(learn.model)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(learn, 2)
    for _ in range(2):
        for x, y in learn.dls.train:
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.mse_loss(model(x).float(), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
    torch.testing.assert_close(weights(learn), torch.cat([p.detach().flatten() for p in model.parameters()]))


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
def test_autocast_covers_model_and_loss_and_they_come_out_in_float32(training: bool) -> None:
    look = WhereAutocastIs()
    look.run_train, look.run_valid = training, not training
    fit(learner([look, MixedPrecision("bf16")]), 1)
    assert look.on == {"before_batch": True, "after_pred": True, "after_loss": False, "after_batch": False}
    assert look.dtypes == {torch.float32}


def test_validate_alone_is_in_mixed_precision_too() -> None:
    seen: set[torch.dtype] = set()
    learn = learner(MixedPrecision("bf16"))
    learn.model[0].register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    learn.validate()
    assert seen == {torch.bfloat16}


def test_the_loss_function_runs_under_autocast_and_gets_float32() -> None:
    seen = []

    def loss_func(pred: Tensor, target: Tensor) -> Tensor:
        seen.append((autocast_is_on(), pred.dtype))
        return F.mse_loss(pred, target)

    fit(learner(MixedPrecision("bf16"), loss_func=loss_func), 1)
    assert set(seen) == {(True, torch.float32)}


def test_a_loss_of_half_precision_is_recorded_and_kept_in_float32() -> None:
    look = WhereAutocastIs()
    learn = learner(
        [look, MixedPrecision("bf16")], loss_func=lambda pred, target: ((pred - target) ** 2).mean().bfloat16()
    )
    fit(learn, 1)
    assert look.dtypes == {torch.float32}


def test_metrics_get_float32() -> None:
    seen = set()

    def figure(pred: Tensor, target: Tensor) -> Tensor:
        seen.add(pred.dtype)
        return mae(pred, target)

    fit(learner(MixedPrecision("bf16"), metrics=figure), 1)
    assert seen == {torch.float32}


def test_predictions_in_containers_come_out_in_float32() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Any:
            return {"out": self.a(x), "rest": (self.a(x), torch.arange(3))}

    seen = []

    class Look(Callback):
        order = MixedPrecision.order + 1

        def after_pred(self) -> None:
            seen.append((self.pred["out"].dtype, self.pred["rest"][0].dtype, self.pred["rest"][1].dtype))

    fit(learner([Look, MixedPrecision("bf16")], model=Two(), loss_func=lambda p, t: F.mse_loss(p["out"], t)), 1)
    assert set(seen) == {(torch.float32, torch.float32, torch.int64)}


class Raises(Callback):
    """Raises something at an event."""

    order = MixedPrecision.order + 1

    def __init__(self, event: str, error: BaseException) -> None:
        self.event, self.error = event, error

    def before_batch(self) -> None:
        self.at("before_batch")

    def after_pred(self) -> None:
        self.at("after_pred")

    def at(self, event: str) -> None:
        if event == self.event:
            raise self.error


ENDINGS = [CancelBatchException, CancelTrainException, CancelEpochException, CancelFitException]


@pytest.mark.parametrize("event", ["before_batch", "after_pred"])
@pytest.mark.parametrize("ending", ENDINGS, ids=lambda cls: cls.__name__)
def test_autocast_is_left_when_a_batch_is_cancelled(ending: type[Exception], event: str) -> None:
    outside = []

    class Look(Callback):
        order = MixedPrecision.order + 1
        run_valid = False

        def look(self) -> None:
            outside.append(autocast_is_on())

        def after_batch(self) -> None:
            self.look()

        def after_train(self) -> None:
            self.look()

        def after_epoch(self) -> None:
            self.look()

        def after_fit(self) -> None:
            self.look()

    raises = Raises(event, ending())
    raises.run_valid = False
    fit(learner([MixedPrecision("bf16"), raises, Look]), 1)
    assert outside
    assert not any(outside)


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_autocast_is_left_after_an_error(error: BaseException) -> None:
    learn = learner([MixedPrecision("bf16"), Raises("after_pred", error)])
    with pytest.raises(type(error)):
        fit(learn, 1)
    assert not autocast_is_on()


def test_autocast_is_left_when_the_callback_is_removed_in_a_batch() -> None:
    class Remove(Callback):
        def after_pred(self) -> None:
            if any(isinstance(cb, MixedPrecision) for cb in self.learn.cbs):
                self.learn.remove_cb(MixedPrecision)
                on.append(autocast_is_on())

    on: list[bool] = []
    fit(learner([MixedPrecision("bf16"), Remove]), 1)
    assert on == [False]


def test_the_default_on_a_cpu_is_bf16_without_a_scaler() -> None:
    mixed = MixedPrecision()
    fit(learner(mixed), 1)
    assert (mixed.dtype, mixed.scaler) == (torch.bfloat16, None)


@pytest.mark.parametrize("given", ["fp16", AMPMode.FP16, torch.float16])
def test_a_precision_has_three_spellings(given: Any) -> None:
    assert MixedPrecision(given).dtype is torch.float16


def test_it_takes_part_in_lr_find_and_the_scaler_is_as_before() -> None:
    mixed = MixedPrecision("fp16", growth_interval=3)
    learn = fit(learner(mixed), 1)
    before = mixed.state_dict()
    learn.lr_find(num_it=20, show_plot=False)
    assert mixed.state_dict() == before


# ---- what a device cannot do ----


def test_a_device_without_autocast_is_an_error() -> None:
    learn = learner([MixedPrecision("bf16"), DevicePlacement("meta")])
    with pytest.raises(ValueError, match=r"autocast to bfloat16 is not possible on the device 'meta' \(User specified"):
        fit(learn, 1)


def test_an_autocast_that_goes_on_in_float32_is_an_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="autocast to float64 is not possible on the device 'cpu'"):
            precision.autocast_for(torch.device("cpu"), torch.float64)


def test_a_model_of_float64_is_refused() -> None:
    learn = learner(MixedPrecision("bf16"), model=net().double())
    with pytest.raises(ValueError, match=r"must be float32, got float64, which autocast leaves as it is: learn.model"):
        fit(learn, 1)


def test_a_model_of_float16_is_refused_with_a_scaler() -> None:
    learn = learner(MixedPrecision("fp16"), model=net().half())
    with pytest.raises(ValueError, match="must be float32, got float16"):
        fit(learn, 1)


def test_an_optimizer_that_evaluates_the_loss_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="MixedPrecision: LBFGS evaluates the loss itself within its step"):
        fit(learner(MixedPrecision("bf16"), torch.optim.LBFGS), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amp_mode": "bf6"}, r"amp_mode must be 'bf16' or 'fp16', got 'bf6'; did you mean 'bf16'\?"),
        ({"amp_mode": torch.float32}, "amp_mode must be 'bf16' or 'fp16', got torch.float32"),
        ({"init_scale": 0}, "init_scale must be a finite number greater than 0, got 0"),
        ({"growth_factor": 1}, "growth_factor must be a finite number greater than 1, got 1"),
        ({"backoff_factor": 1}, r"backoff_factor must be in \(0, 1\), got 1"),
        ({"growth_interval": 0}, "growth_interval must be a whole number of at least 1, got 0"),
    ],
)
def test_arguments_are_looked_at(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixedPrecision(**options)


# ---- the scaler ----

OPT_FUNCS: dict[str, Callable[..., Any]] = {
    "SGD": SGD,
    "Adam": Adam,
    "Muon": Muon,
    "Lookahead": lambda p, lr: Lookahead(Adam(p, lr), k=2),
    "torch": torch.optim.AdamW,
    "torch fused": lambda p, lr: torch.optim.AdamW(p, lr, fused=True),
    "Lookahead around torch fused": lambda p, lr: Lookahead(torch.optim.AdamW(p, lr, fused=True), k=2),
}


@pytest.mark.parametrize("name", OPT_FUNCS)
def test_the_scale_itself_changes_nothing(name: str) -> None:
    a, b = (learner(MixedPrecision("fp16", init_scale=s), OPT_FUNCS[name]) for s in (1.0, 1024.0))
    for learn in (a, b):
        fit(learn, 2, 0.01, cbs=GradientClip(0.1))
    torch.testing.assert_close(weights(a), weights(b), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(weights(a), weights(learner()), rtol=1e-2)


class Spoil(Callback):
    """Makes one batch's gradients infinite."""

    def __init__(self, batch: int) -> None:
        self.batch, self.count = batch, 0

    def after_backward(self) -> None:
        if self.count == self.batch:
            next(self.model.parameters()).grad.fill_(math.inf)
        self.count += 1


@pytest.mark.parametrize("name", OPT_FUNCS)
def test_a_step_with_infinite_gradients_is_left_out_and_the_scale_halved(name: str) -> None:
    kept = []

    class Keep(Callback):
        def after_batch(self) -> None:
            if self.training:
                kept.append(weights(self.learn))

    mixed = MixedPrecision("fp16", init_scale=8.0)
    learn = fit(learner([mixed, Spoil(1), Keep], OPT_FUNCS[name]), 1, 0.01)
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(kept)]
    assert moved == [False, True, True]
    assert torch.isfinite(weights(learn)).all()
    assert mixed.scaler is not None
    assert mixed.scaler.get_scale() == 4.0


def test_a_step_left_out_is_cancelled_and_the_schedule_goes_on() -> None:
    log, events = events_log()
    learn = learner([MixedPrecision("fp16"), Spoil(0), log], dls=line_dls(8, 4, bs=8))
    with learn.no_logging():
        learn.fit_one_cycle(1, 0.1)
    batch = events[events.index("before_batch") : events.index("after_train")]
    assert batch == [
        "before_batch",
        "after_pred",
        "after_loss",
        "before_backward",
        "after_backward",
        "before_step",
        "after_cancel_step",
        "after_step",
        "after_batch",
    ]
    assert learn.pct_train == 1.0


def test_a_fused_optimizer_leaves_the_step_out_itself_and_keeps_nothing_of_it() -> None:
    log, events = events_log()
    learn = fit(learner([MixedPrecision("fp16"), Spoil(0), log], OPT_FUNCS["torch fused"]), 1, 0.01)
    assert "after_cancel_step" not in events
    assert not {"grad_scale", "found_inf"} & set(vars(learn.opt))


def test_the_recorded_loss_is_not_scaled() -> None:
    scaled, plain = (fit(learner(MixedPrecision(mode)), 1, 1e-6) for mode in ("fp16", "bf16"))
    assert scaled.recorder.losses == pytest.approx(plain.recorder.losses, rel=1e-2)


def test_clipping_sees_gradients_that_are_scaled_back() -> None:
    clip = GradientClip(1000.0)
    fit(learner([MixedPrecision("fp16"), clip], lr=1e-6), 1)
    other = GradientClip(1000.0)
    fit(learner([other], lr=1e-6), 1)
    assert clip.norm is not None
    assert other.norm is not None
    torch.testing.assert_close(clip.norm, other.norm, rtol=1e-2, atol=0)


def test_a_step_without_gradients_is_no_error() -> None:
    class Cancel(Callback):
        order = MixedPrecision.order + 1

        def before_backward(self) -> None:
            raise CancelBackwardException

    learn = learner([MixedPrecision("fp16"), Cancel])
    before = weights(learn)
    assert torch.equal(weights(fit(learn, 1)), before)


def test_a_batch_cancelled_after_its_gradients_were_scaled_back_leaves_the_scaler_ready() -> None:
    class Cancel(Callback):
        order = MixedPrecision.order + 1

        def before_step(self) -> None:
            if self.iter == 0:
                self.opt.zero_grad()
                raise CancelBatchException

    learn = learner([MixedPrecision("fp16"), Cancel])
    before = weights(learn)
    assert not torch.equal(weights(fit(learn, 1)), before)


def test_accumulated_gradients_are_scaled_back_once() -> None:
    mixed = fit(learner([MixedPrecision("fp16", init_scale=64.0), GradientAccumulation(16)], lr=0.1), 2)
    plain = fit(learner([GradientAccumulation(16)], lr=0.1), 2)
    torch.testing.assert_close(weights(mixed), weights(plain), rtol=1e-2, atol=1e-2)


def test_the_scale_goes_on_from_fit_to_fit() -> None:
    mixed = MixedPrecision("fp16", init_scale=8.0)
    learn = fit(learner([mixed, Spoil(0)]), 1)
    fit(learn, 1)
    assert mixed.scaler is not None
    assert mixed.scaler.get_scale() == 4.0


@pytest.mark.parametrize("when", ["before the fit", "in the fit"])
def test_the_scalers_state_comes_back_through_json(when: str) -> None:
    mixed = MixedPrecision("fp16", init_scale=8.0, growth_interval=3)
    fit(learner([mixed]), 2)
    state = json.loads(json.dumps(mixed.state_dict()))
    other = MixedPrecision("fp16", init_scale=2.0, growth_interval=3)

    class Load(Callback):
        def before_epoch(self) -> None:
            other.load_state_dict(state)
            raise CancelFitException

    if when == "before the fit":
        other.load_state_dict(state)
    fit(learner([other, Load]), 1)
    assert other.state_dict() == mixed.state_dict()
    assert state["scaler"]["scale"] == 32.0


def test_a_scaler_without_a_fit_has_no_state() -> None:
    assert MixedPrecision("fp16").state_dict() == {"scaler": None}


# ---- beside a compiled model ----


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["bf16", "fp16"])
def test_with_compile_the_model_is_compiled_and_the_numbers_are_eagers(mode: str) -> None:
    def trained(compile: bool) -> Learner:
        learn = learner([MixedPrecision(mode), GradientClip(0.5), GradientAccumulation(16)], compile=compile)
        return fit(learn, 2, 0.1)

    eager, compiled = trained(False), trained(True)
    assert compiled.compiled is not None
    assert {key[0] for key in compiled.compiled._graphs} == {"training", "answer"}
    # The compiler keeps float32 between operations that eager rounds to 8 bits, one by one.
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=2e-2, atol=5e-3)


def test_validation_over_another_loader_is_in_mixed_precision() -> None:
    learn = learner(MixedPrecision("bf16"))
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    loss = learn.validate(dl=DataLoaders.from_tensors(x, y, x, y, bs=4).valid)[0]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        wanted = F.mse_loss(learn.model.eval()(x).float(), y).item()
    assert loss == pytest.approx(wanted, rel=1e-2)

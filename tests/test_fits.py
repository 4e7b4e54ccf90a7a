"""The scheduled fits: their rates as numbers, layer by layer, and what they leave behind."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import Tensor, nn

from minilearn.callback import Callback, CancelBatchException, CancelFitException, CancelStepException
from minilearn.callbacks import ParamScheduler, TorchScheduler
from minilearn.learner import Learner
from minilearn.optim import SGD, Adagrad, Adam, Lookahead, OptimWrapper
from minilearn.optim.groups import hypers, set_hyper
from minilearn.schedule import SchedNo

MomSGD = partial(SGD, mom=0.9)


class Rates(Callback):
    """Keeps each layer's rate, and the momentum of the last, in every training batch."""

    def __init__(self) -> None:
        self.lrs: list[list[float]] = []
        self.moms: list[float] = []

    def after_loss(self) -> None:
        if self.training:
            groups = hypers(self.opt)
            self.lrs.append([group["lr"] for group in groups])
            self.moms.append(groups[-1].get("mom", math.nan))

    def layer(self, i: int) -> list[float]:
        return [rates[i] for rates in self.lrs]


def two_layers(model: nn.Module) -> list[list[Tensor]]:
    return [list(part.parameters()) for part in model.children()]


def learner(batches: int = 4, opt_func: Callable[..., torch.optim.Optimizer] = MomSGD, **kwargs: object) -> Learner:
    """A Learner of one layer, whose only parameter group it is."""
    torch.manual_seed(0)
    learn = Learner(line_dls(4 * batches), nn.Linear(3, 1, bias=False), F.mse_loss, opt_func, **kwargs)  # type: ignore[arg-type]
    learn.logger = lambda line: None
    return learn


def deep_learner(batches: int = 4, **kwargs: object) -> Learner:
    """A Learner of two layers, a parameter group each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False))
    learn = Learner(line_dls(4 * batches), model, F.mse_loss, MomSGD, splitter=two_layers, **kwargs)  # type: ignore[arg-type]
    learn.logger = lambda line: None
    return learn


# lr_max 0.01, from 0.01/25 to 0.01 over a quarter, then to 0.01/100,000; eight batches, at 0, 1/8, … 7/8.
ONE_CYCLE = [0.0004, 0.0052, 0.01, 0.00933013372, 0.007500025, 0.00500005, 0.002500075, 0.000669966282]
ONE_CYCLE_MOMS = [0.95, 0.9, 0.85, 0.85669872981, 0.875, 0.9, 0.925, 0.94330127019]


def test_one_cycle_has_the_rates_and_momenta_of_the_formula() -> None:
    learn = learner()
    learn.fit_one_cycle(2, 0.01)
    assert learn.recorder.lrs == pytest.approx(ONE_CYCLE, rel=1e-8)
    assert learn.recorder.hps["mom"] == pytest.approx(ONE_CYCLE_MOMS, rel=1e-10)


def test_one_cycle_is_fastais_formula_at_every_batch() -> None:
    learn = learner(batches=10)
    learn.fit_one_cycle(5, 0.02, div=10, div_final=1e3, pct_start=0.3)

    def cosine(start: float, end: float, pos: float) -> float:
        return start + (1 + math.cos(math.pi * (1 - pos))) * (end - start) / 2

    expected = [
        cosine(0.002, 0.02, t / 0.3) if t < 0.3 else cosine(0.02, 0.00002, (t - 0.3) / 0.7)
        for t in (i / 50 for i in range(50))
    ]
    assert learn.recorder.lrs == pytest.approx(expected, rel=1e-12)


def test_one_cycle_takes_the_learners_rate_and_its_momenta() -> None:
    learn = learner(lr=0.01, moms=(0.8, 0.7, 0.6))
    learn.fit_one_cycle(2)
    assert learn.recorder.lrs == pytest.approx(ONE_CYCLE, rel=1e-8)
    assert learn.recorder.hps["mom"][:3] == pytest.approx([0.8, 0.75, 0.7])


def test_momenta_of_the_call_go_before_the_learners() -> None:
    learn = learner(moms=(0.8, 0.7, 0.6))
    learn.fit_one_cycle(2, 0.01, moms=(0.5, 0.4, 0.5))
    assert learn.recorder.hps["mom"][:3] == pytest.approx([0.5, 0.45, 0.4])


def test_flat_cos_is_flat_and_then_falls() -> None:
    learn = learner()
    learn.fit_flat_cos(2, 0.01)
    assert learn.recorder.lrs == pytest.approx([0.01] * 7 + [0.00500005], rel=1e-12)
    assert set(learn.recorder.hps["mom"]) == {0.9}


def test_sgdr_starts_each_cycle_anew() -> None:
    learn = learner(batches=2)
    learn.fit_sgdr(2, 1, 0.01)
    assert learn.recorder.lrs == pytest.approx([0.01, 0.005, 0.01, 0.00853553391, 0.005, 0.00146446609], rel=1e-8)


def test_sgdr_restarts_with_the_first_batch_of_an_epoch_whatever_the_rounding() -> None:
    learn = learner(batches=3)
    learn.fit_sgdr(10, 1, 0.01, cycle_mult=1)
    assert learn.recorder.lrs[::3] == pytest.approx([0.01] * 10, rel=1e-6)


def test_warmup_cos_rises_along_a_line_and_falls_along_a_cosine() -> None:
    learn = learner()
    learn.fit_warmup_cos(2, 0.01, pct_warmup=0.25, div_final=10)
    expected = [0.0001, 0.00505, 0.01, 0.00939711432, 0.00775, 0.0055, 0.00325, 0.00160288568]
    assert learn.recorder.lrs == pytest.approx(expected, rel=1e-8)


def test_wsd_warms_up_stays_and_falls_as_one_minus_the_root() -> None:
    learn = learner()
    learn.fit_wsd(2, 0.01, pct_warmup=0.25, pct_decay=0.5, div_final=10)
    expected = [0.0001, 0.00505, 0.01, 0.01, 0.01, 0.0055, 0.00363603897, 0.00220577137]
    assert learn.recorder.lrs == pytest.approx(expected, rel=1e-8)


def test_shares_that_fill_the_whole_leave_no_flat_part() -> None:
    learn = learner()
    learn.fit_wsd(2, 0.01, pct_warmup=0.5, pct_decay=0.5, div=2, div_final=10)
    assert learn.recorder.lrs[:5] == pytest.approx([0.005, 0.00625, 0.0075, 0.00875, 0.01], rel=1e-9)


FINE_TUNE = (  # frozen, to 0.001 and 0.01 over 0.99; then to 0.00005 and 0.005 over 0.3; four batches each
    [4e-05, 0.000183292054, 0.000527615663, 0.000867392338, 1e-05, 4.732050808e-05, 4.058733917e-05, 1.415326499e-05],
    [0.0004, 0.001832920539, 0.005276156626, 0.008673923383, 0.001, 0.004732050808, 0.004058733917, 0.001415326499],
)


def test_fine_tune_has_its_rates_in_every_layer() -> None:
    learn, rates = deep_learner(), Rates()
    learn.fine_tune(1, 0.01, cbs=rates)
    for i in (0, 1):
        assert rates.layer(i) == pytest.approx(FINE_TUNE[i], rel=1e-6)


def test_fine_tune_trains_the_last_layer_alone_and_then_all() -> None:
    moved: list[list[bool]] = []

    class Watch(Callback):
        def before_epoch(self) -> None:
            self.weights = [p.detach().clone() for p in self.model.parameters()]

        def after_train(self) -> None:
            moved.append([not torch.equal(p, w) for p, w in zip(self.model.parameters(), self.weights, strict=True)])

    deep_learner().fine_tune(2, cbs=Watch)
    assert moved == [[False, True], [True, True], [True, True]]


def test_fine_tune_without_frozen_epochs_is_its_second_fit() -> None:
    learn, rates = deep_learner(), Rates()
    learn.fine_tune(1, 0.01, freeze_epochs=0, cbs=rates)
    assert rates.layer(1) == pytest.approx(FINE_TUNE[1][4:], rel=1e-6)


def test_fine_tune_leaves_no_layer_frozen_when_it_is_broken_off() -> None:
    class Break(Callback):
        def after_batch(self) -> None:
            raise KeyboardInterrupt

    learn = deep_learner()
    with pytest.raises(KeyboardInterrupt):
        learn.fine_tune(1, cbs=Break)
    assert all(p.requires_grad for p in learn.model.parameters())


@pytest.mark.parametrize("start_epoch", [1, 2, 3, 4])
def test_fine_tune_counts_its_epochs_over_both_fits(start_epoch: int) -> None:
    whole, rest = Rates(), Rates()
    deep_learner().fine_tune(3, freeze_epochs=2, cbs=whole)
    deep_learner().fine_tune(3, freeze_epochs=2, cbs=rest, start_epoch=start_epoch)
    assert len(rest.lrs) == 4 * (5 - start_epoch)
    assert rest.lrs == whole.lrs[4 * start_epoch :]
    assert rest.moms == whole.moms[4 * start_epoch :]


@pytest.mark.parametrize(
    ("lr", "first", "last"),
    [(slice(0.0001, 0.01), 0.0001, 0.01), (slice(0.01), 0.001, 0.01), ([0.002, 0.01], 0.002, 0.01)],
)
def test_every_layer_has_a_cycle_of_its_own(lr: object, first: float, last: float) -> None:
    learn, rates = deep_learner(), Rates()
    learn.fit_one_cycle(2, lr, cbs=rates)  # type: ignore[arg-type]
    assert rates.layer(0) == pytest.approx([first / 0.01 * rate for rate in ONE_CYCLE], rel=1e-8)
    assert rates.layer(1) == pytest.approx([last / 0.01 * rate for rate in ONE_CYCLE], rel=1e-8)


def test_frozen_layer_keeps_its_place_among_the_rates() -> None:
    learn, rates = deep_learner(), Rates()
    learn.freeze()
    learn.fit_one_cycle(2, slice(0.0001, 0.01), cbs=rates)
    assert rates.layer(0) == pytest.approx([0.01 * rate for rate in ONE_CYCLE], rel=1e-8)
    assert rates.layer(1) == pytest.approx(ONE_CYCLE, rel=1e-8)


Fit = Callable[..., None]
FITS: dict[str, Fit] = {
    "one_cycle": lambda learn, **kwargs: learn.fit_one_cycle(3, slice(1e-4, 1e-2), **kwargs),
    "flat_cos": lambda learn, **kwargs: learn.fit_flat_cos(3, slice(1e-4, 1e-2), **kwargs),
    "sgdr": lambda learn, **kwargs: learn.fit_sgdr(2, 1, slice(1e-4, 1e-2), **kwargs),
    "warmup_cos": lambda learn, **kwargs: learn.fit_warmup_cos(3, slice(1e-4, 1e-2), **kwargs),
    "wsd": lambda learn, **kwargs: learn.fit_wsd(3, slice(1e-4, 1e-2), **kwargs),
}


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
@pytest.mark.parametrize("start_epoch", [1, 2])
def test_fit_gone_on_with_has_exactly_the_rates_of_the_whole(fit: Fit, start_epoch: int) -> None:
    whole, rest = Rates(), Rates()
    fit(deep_learner(7), cbs=whole)
    fit(deep_learner(7), cbs=rest, start_epoch=start_epoch)
    assert len(whole.lrs) == 21
    assert rest.lrs == whole.lrs[7 * start_epoch :]
    assert rest.moms == whole.moms[7 * start_epoch :]


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_scheduled_fit_leaves_the_optimizer_as_fit_found_it(fit: Fit) -> None:
    learn = deep_learner()
    fit(learn)
    assert [(group["lr"], group["mom"]) for group in learn.opt.param_groups] == [(1e-3, 0.9)] * 2


def test_plain_fit_after_one_cycle_trains_with_its_own_rate_and_momentum() -> None:
    learn = learner()
    learn.fit_one_cycle(1, 0.01)
    learn.fit(1, 0.02)
    assert set(learn.recorder.lrs) == {0.02}
    assert set(learn.recorder.hps["mom"]) == {0.9}


def test_momentum_is_put_back_whatever_ended_the_fit() -> None:
    class Break(Callback):
        def after_batch(self) -> None:
            raise KeyboardInterrupt

    learn = learner()
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(1, 0.01, cbs=Break)
    assert learn.opt.param_groups[0]["mom"] == 0.9


def test_schedule_counts_batches_cancelled_ones_and_those_without_a_step_too() -> None:
    class Skip(Callback):
        def before_batch(self) -> None:
            if self.training and self.iter == 1:
                raise CancelBatchException

        def before_step(self) -> None:
            if self.iter == 2:
                raise CancelStepException

    learn, rates = learner(), Rates()
    learn.fit_one_cycle(2, 0.01, cbs=[Skip, rates])
    assert rates.layer(0) == pytest.approx([ONE_CYCLE[i] for i in (0, 2, 3, 4, 6, 7)], rel=1e-8)


def test_fit_ended_early_leaves_the_rest_of_the_schedule_out() -> None:
    class Stop(Callback):
        def after_epoch(self) -> None:
            raise CancelFitException

    learn = learner()
    learn.fit_one_cycle(2, 0.01, cbs=Stop)
    assert learn.recorder.lrs == pytest.approx(ONE_CYCLE[:4], rel=1e-8)


def test_usual_momenta_leave_an_optimizer_without_momentum_as_it_is() -> None:
    learn = learner(opt_func=SGD)
    learn.fit_one_cycle(2, 0.01)
    assert set(learn.recorder.hps["mom"]) == {0.0}
    assert learn.recorder.lrs == pytest.approx(ONE_CYCLE, rel=1e-8)


def test_one_cycle_works_where_there_is_no_momentum_at_all() -> None:
    learn = learner(opt_func=Adagrad)
    learn.fit_one_cycle(2, 0.01)
    assert learn.recorder.lrs == pytest.approx(ONE_CYCLE, rel=1e-8)


@pytest.mark.parametrize("where", ["call", "learner"])
@pytest.mark.parametrize(
    ("opt_func", "fix"),
    [
        (
            SGD,
            r"SGD was made without momentum: make it with mom=0\.9, opt_func=partial\(SGD, mom=0\.9\), or leave moms",
        ),
        (torch.optim.SGD, r"momentum=0\.9, opt_func=partial\(torch\.optim\.SGD, momentum=0\.9\), or leave moms out"),
        (partial(torch.optim.Adam, betas=(0.0, 0.9)), r"make it with betas=\(0\.9, 0\.999\), opt_func=partial\(torch"),
        (
            lambda params, lr: Lookahead(SGD(params, lr)),
            r"SGD was made without momentum: make it with mom=0\.9, or leave",
        ),
        (partial(OptimWrapper, opt=torch.optim.SGD), r"SGD was made without momentum: make it with momentum=0\.9, or"),
        (Adagrad, "Adagrad has no momentum: leave moms out"),
    ],
)
def test_momenta_asked_from_an_optimizer_without_are_refused_with_the_fix(
    where: str, opt_func: Callable[..., torch.optim.Optimizer], fix: str
) -> None:
    moms = (0.9, 0.8, 0.9)
    learn = learner(opt_func=opt_func, **({"moms": moms} if where == "learner" else {}))
    with pytest.raises(ValueError, match=r"moms asks for momenta \(0\.9, 0\.8, 0\.9\), but .*" + fix):
        learn.fit_one_cycle(1, 0.01, **({"moms": moms} if where == "call" else {}))
    assert not learn.recorder.values, "nothing was done"


@pytest.mark.parametrize(
    ("opt_func", "momentum"),
    [
        (partial(torch.optim.SGD, momentum=0.9), lambda group: group["momentum"]),
        (torch.optim.AdamW, lambda group: group["betas"][0]),
        (Adam, lambda group: group["mom"]),
    ],
)
def test_torchs_optimizers_cycle_their_momentum_too(opt_func: object, momentum: Callable[[dict], float]) -> None:
    seen: list[float] = []

    class Look(Callback):
        def before_step(self) -> None:
            seen.append(momentum(self.opt.param_groups[0]))

    learn = learner(opt_func=opt_func)  # type: ignore[arg-type]
    learn.fit_one_cycle(2, 0.01, cbs=Look)
    assert seen == pytest.approx(ONE_CYCLE_MOMS, rel=1e-10)
    assert learn.recorder.hps["mom"] == seen
    assert momentum(learn.opt.param_groups[0]) == 0.9


def test_momentum_set_by_hand_is_what_comes_back() -> None:
    learn = learner()
    learn.create_opt()
    set_hyper(learn.opt, "mom", 0.5)
    learn.fit_one_cycle(1, 0.01)
    assert learn.opt.param_groups[0]["mom"] == 0.5


def test_weight_decay_and_a_new_optimizer_are_fits() -> None:
    learn = learner()
    learn.create_opt()
    before = learn.opt
    learn.fit_one_cycle(1, 0.01, wd=0.1, reset_opt=True)
    assert learn.opt is not before
    assert set(learn.recorder.hps["wd"]) == {0.1}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda learn: learn.fit_one_cycle(1, pct_start=2), ValueError, r"pct_start must be in \[0, 1\], got 2"),
        (lambda learn: learn.fit_one_cycle(1, div=0), ValueError, "div must be a finite number greater than 0, got 0"),
        (lambda learn: learn.fit_one_cycle(1, div_final=-1), ValueError, "div_final must be .* greater than 0, got -1"),
        (lambda learn: learn.fit_one_cycle(1, moms=(0.9, 1.5, 0.9)), ValueError, r"moms must be in \[0, 1\), got 1.5"),
        (lambda learn: learn.fit_one_cycle(1, moms=(0.9, 0.8)), TypeError, r"moms must be three .*, got \(0.9, 0.8\)"),
        (lambda learn: learn.fit_one_cycle(1, [0.1, 0.2]), ValueError, "lr_max"),
        (lambda learn: learn.fit_one_cycle(-1), ValueError, "n_epoch must be a whole number of at least 0, got -1"),
        (lambda learn: learn.fit_one_cycle(1, cbs=3), TypeError, "cbs must be a Callback or a list of them, got 3"),
        (lambda learn: learn.fit_flat_cos(1, pct_start="a"), TypeError, "pct_start must be a number, got 'a'"),
        (lambda learn: learn.fit_flat_cos(1, [0.1, 0.2]), ValueError, "lr"),
        (lambda learn: learn.fit_sgdr(0, 1), ValueError, "n_cycles must be a whole number of at least 1, got 0"),
        (lambda learn: learn.fit_sgdr(1, 0), ValueError, "cycle_len must be a whole number of at least 1, got 0"),
        (lambda learn: learn.fit_sgdr(1, 1, cycle_mult=1.5), TypeError, "cycle_mult must be a whole number, got 1.5"),
        (lambda learn: learn.fit_warmup_cos(1, pct_warmup=-1), ValueError, r"pct_warmup must be in \[0, 1\], got -1"),
        (lambda learn: learn.fit_wsd(1, pct_decay=1.2), ValueError, r"pct_decay must be in \[0, 1\], got 1.2"),
        (
            lambda learn: learn.fit_wsd(1, pct_warmup=0.6, pct_decay=0.6),
            ValueError,
            "pct_warmup and pct_decay must add up to at most 1, got 0.6 and 0.6",
        ),
        (lambda learn: learn.fine_tune(1, base_lr=0), ValueError, "base_lr must be a finite number greater than 0"),
        (lambda learn: learn.fine_tune(1, lr_mult=0), ValueError, "lr_mult must be a finite number greater than 0"),
        (lambda learn: learn.fine_tune(1, freeze_epochs=-1), ValueError, "freeze_epochs must be a whole number"),
    ],
)
def test_argument_out_of_its_range_is_named_before_anything_is_done(
    call: Callable[[Learner], None], error: type[Exception], message: str
) -> None:
    learn = learner()
    weight = learn.model.weight.clone()  # type: ignore[operator, union-attr]
    with pytest.raises(error, match=message):
        call(learn)
    assert torch.equal(learn.model.weight, weight)  # type: ignore[arg-type]
    assert learn.model.weight.requires_grad  # type: ignore[union-attr]


def test_learner_refuses_momenta_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"moms must be in \[0, 1\), got 1.0"):
        learner(moms=(0.9, 0.8, 1.0))


def test_fit_of_no_epochs_does_nothing() -> None:
    learn = learner()
    learn.fit_one_cycle(0, 0.01)
    assert learn.recorder.lrs == []


def test_scheduled_fit_within_a_fit_is_refused() -> None:
    class Nest(Callback):
        def after_epoch(self) -> None:
            self.learn.fit_one_cycle(1)

    with pytest.raises(RuntimeError, match="in a fit already"):
        learner().fit(1, cbs=Nest)


def test_one_cycle_learns() -> None:
    learn = learner(opt_func=Adam, batches=8)
    learn.fit_one_cycle(20, 0.3)
    assert (learn.recorder.values[-1][1] or math.inf) < 0.05


def test_rate_below_zero_is_named_as_it_was_given() -> None:
    learn = learner()
    with pytest.raises(ValueError, match=r"^lr_max must be a finite number of at least 0, got -0\.01$"):
        learn.fit_one_cycle(1, -0.01)
    assert not learn.recorder.values, "nothing was done"


def test_momenta_may_be_an_array() -> None:
    cycled, expected = Rates(), Rates()
    learner().fit_one_cycle(1, moms=torch.tensor([0.875, 0.75, 0.875]), cbs=cycled)  # type: ignore[arg-type]
    learner().fit_one_cycle(1, moms=(0.875, 0.75, 0.875), cbs=expected)
    assert cycled.moms == expected.moms


def test_start_after_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"start_epoch must be at most n_epoch, .* got 3 and n_epoch=2$"):
        learner().fit_one_cycle(2, start_epoch=3)
    with pytest.raises(ValueError, match=r"start_epoch must be at most freeze_epochs \+ epochs, 3 here, got 4$"):
        deep_learner().fine_tune(2, start_epoch=4)


def test_schedule_beside_one_cycle_of_the_same_rate_is_refused() -> None:
    learn = learner()
    halved = TorchScheduler(partial(torch.optim.lr_scheduler.StepLR, step_size=1))
    for scheduler, name in ((halved, "TorchScheduler"), (ParamScheduler({"lr": SchedNo(0.1, 0.1)}), "ParamScheduler")):
        with pytest.raises(ValueError, match=f"^lr has two schedules in this fit, .* and one of {name}, .* leave one"):
            learn.fit_one_cycle(1, cbs=scheduler)
    with pytest.raises(ValueError, match=r"^mom has two schedules"):
        learn.fit_one_cycle(1, cbs=ParamScheduler({"momentum": SchedNo(0.5, 0.5)}))
    learn.fit_one_cycle(1, cbs=ParamScheduler({"wd": SchedNo(0.5, 0.5)}))
    assert learn.opt.hypers[0]["mom"] == 0.9  # type: ignore[attr-defined]


def test_freeze_with_an_optimizer_of_one_group_says_why_nothing_is_frozen() -> None:
    learn, lines = deep_learner(), []
    learn.opt_func, learn.logger = torch.optim.LBFGS, lines.append
    learn.freeze()
    assert lines == ["freeze_to(-1): nothing is frozen, as LBFGS has all parameters in one group"]

"""Schedules and torch's schedulers within a fit: what is set, when, and what is put back."""

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from minilearn.callback import Callback, CancelBatchException, CancelStepException, CancelValidException
from minilearn.callbacks import ParamScheduler, Recorder, TorchScheduler, TrainEval
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD, Lookahead
from minilearn.schedule import SchedLin

MomSGD = partial(SGD, mom=0.9)


def learner(batches: int = 4, opt_func: Callable[..., torch.optim.Optimizer] = MomSGD, **kwargs: object) -> Learner:
    torch.manual_seed(0)
    learn = Learner(line_dls(4 * batches), nn.Linear(3, 1), F.mse_loss, opt_func, **kwargs)  # type: ignore[arg-type]
    learn.logger = lambda line: None
    return learn


def through_json(state: dict) -> dict:
    return json.loads(json.dumps(state))


# ---- ParamScheduler ----


def test_every_batch_has_the_value_of_the_share_done_before_it() -> None:
    learn = learner()
    learn.fit(2, cbs=ParamScheduler({"lr": SchedLin(0.0, 0.08), "mom": lambda t: 0.5}))
    assert learn.recorder.lrs == pytest.approx([0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07])
    assert set(learn.recorder.hps["mom"]) == {0.5}


def test_first_value_is_there_before_the_first_epoch() -> None:
    class Look(Callback):
        def before_epoch(self) -> None:
            seen.append(self.opt.param_groups[0]["lr"])

    seen: list[float] = []
    learner().fit(1, cbs=[ParamScheduler({"lr": SchedLin(0.5, 1.0)}), Look])
    assert seen == [0.5]


def test_schedule_may_give_a_value_for_each_layer() -> None:
    class Look(Callback):
        def after_loss(self) -> None:
            if self.training:
                seen.append([group["lr"] for group in self.opt.param_groups])

    seen: list[list[float]] = []
    learn = learner(splitter=lambda model: [[model.weight], [model.bias]])
    learn.fit(1, cbs=[ParamScheduler({"lr": lambda t: [t / 10, t]}), Look])
    assert seen == [[0.0, 0.0], [0.025, 0.25], [0.05, 0.5], [0.075, 0.75]]


def test_wrong_number_of_values_is_refused_before_the_first_batch() -> None:
    learn = learner()
    with pytest.raises(ValueError, match="lr"):
        learn.fit(1, cbs=ParamScheduler({"lr": lambda t: [0.1, 0.2, 0.3]}))
    assert learn.train_iter == 0


def test_weight_decay_stays_off_where_it_was_off() -> None:
    class Look(Callback):
        def before_step(self) -> None:
            seen.append([group["wd"] for group in self.opt.param_groups])

    seen: list[list[float]] = []
    learn = learner()
    learn.fit(1, cbs=[ParamScheduler({"wd": SchedLin(0.1, 0.5)}), Look])
    assert seen == [[pytest.approx(0.1 * i), 0.0] for i in (1, 2, 3, 4)]
    assert [group["wd"] for group in learn.opt.param_groups] == [0.0, 0.0]


def test_callback_that_stays_schedules_every_fit_anew() -> None:
    learn = learner(cbs=ParamScheduler({"lr": SchedLin(0.0, 0.4), "mom": SchedLin(0.4, 0.8)}))
    for _ in range(2):
        learn.fit(1)
        assert learn.recorder.lrs == pytest.approx([0.0, 0.1, 0.2, 0.3])
        assert learn.opt.param_groups[0]["mom"] == 0.9


def test_scheduler_that_is_removed_in_a_fit_puts_back_what_was() -> None:
    class Remove(Callback):
        def after_batch(self) -> None:
            if self.training and self.iter == 1:
                self.learn.remove_cb(ParamScheduler)

    learn = learner()
    learn.add_cbs([ParamScheduler({"mom": lambda t: 0.5}), Remove])
    learn.fit(1)
    assert learn.recorder.hps["mom"] == [0.5, 0.5, 0.9, 0.9]


def test_rate_that_is_a_tensor_stays_that_tensor() -> None:
    learn = learner(opt_func=lambda params, lr: torch.optim.SGD(params, torch.tensor(lr)))
    learn.create_opt()
    rate = learn.opt.param_groups[0]["lr"]
    learn.fit(1, 0.25, cbs=ParamScheduler({"lr": SchedLin(0.0, 0.04)}))
    assert learn.recorder.lrs == pytest.approx([0.0, 0.01, 0.02, 0.03])
    assert learn.opt.param_groups[0]["lr"] is rate
    assert rate.item() == 0.25  # what the fit was given, before and after the schedule


def test_state_has_what_comes_back_after_a_fit_that_is_gone_on_with() -> None:
    class Save(Callback):
        def after_epoch(self) -> None:
            saved.update(through_json(scheduler.state_dict()), opt=copy.deepcopy(self.opt.state_dict()))

    saved: dict = {}
    scheduler = ParamScheduler({"mom": SchedLin(0.4, 0.8)})
    opt_func = torch.optim.AdamW
    learner(opt_func=opt_func).fit(1, cbs=[scheduler, Save])
    learn = learner(opt_func=opt_func)
    learn.create_opt()
    learn.opt.load_state_dict(saved["opt"])
    assert learn.opt.param_groups[0]["betas"][0] == pytest.approx(0.7)
    resumed = ParamScheduler(scheduler.scheds)
    resumed.load_state_dict(saved)
    learn.fit(2, start_epoch=1, cbs=resumed)
    assert learn.opt.param_groups[0]["betas"] == (0.9, 0.999)


def test_torchs_names_are_scheduled_too() -> None:
    learn = learner(opt_func=torch.optim.AdamW)
    learn.fit(1, cbs=ParamScheduler({"weight_decay": SchedLin(0.0, 0.8), "momentum": lambda t: 0.5}))
    assert learn.recorder.hps["wd"] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert set(learn.recorder.hps["mom"]) == {0.5}
    assert [(group["weight_decay"], group["betas"]) for group in learn.opt.param_groups] == [
        (0.01, (0.9, 0.999)),
        (0.0, (0.9, 0.999)),
    ]


def test_two_schedulers_leave_nothing_of_each_other_behind() -> None:
    learn = learner()
    stepped = TorchScheduler(partial(LinearLR, start_factor=0.5))
    learn.fit(2, cbs=[ParamScheduler({"mom": lambda t: 0.5}), stepped])
    assert set(learn.recorder.hps["mom"]) == {0.5}
    assert [(group["lr"], group["mom"]) for group in learn.opt.param_groups] == [(1e-3, 0.9)] * 2
    learn.fit(2, cbs=[TorchScheduler(partial(OneCycleLR, max_lr=0.1), "batch"), stepped])
    assert [(group["lr"], group["mom"]) for group in learn.opt.param_groups] == [(1e-3, 0.9)] * 2


def test_counts_of_an_optimizer_go_on_beside_a_scheduler() -> None:
    learn = learner(opt_func=lambda params, lr: Lookahead(SGD(params, lr)))
    for _ in range(2):
        learn.fit(1, cbs=TorchScheduler(partial(StepLR, step_size=1)))
    assert learn.opt.param_groups[0]["lookahead_step"] == 8


def test_unknown_hyperparameter_is_refused_with_the_nearest() -> None:
    learn = learner()
    with pytest.raises(ValueError, match="SGD has no hyperparameter 'momm'; did you mean 'mom'") as caught:
        learn.fit(1, cbs=ParamScheduler({"momm": SchedLin(0.9, 0.8)}))
    assert "It has lr, mom," in str(caught.value)
    assert learn.train_iter == 0


def test_schedule_that_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match=r"scheds\['lr'\] must be a function of the share .*, got 0\.1"):
        ParamScheduler({"lr": 0.1})  # type: ignore[dict-item]


def test_schedules_that_are_no_dict_are_refused() -> None:
    with pytest.raises(TypeError, match="scheds must be a dict of names and schedules, got an object of function"):
        ParamScheduler(SchedLin(0, 1))  # type: ignore[arg-type]


def test_schedule_without_a_counter_is_refused() -> None:
    with pytest.raises(ValueError, match="needs TrainEval"):
        learner(default_cbs=False).fit(1, cbs=ParamScheduler({"lr": SchedLin(0, 1)}))


def test_schedule_needs_no_other_default_callback() -> None:
    class Look(Callback):
        def before_step(self) -> None:
            seen.append(self.opt.param_groups[0]["lr"])

    seen: list[float] = []
    learner(default_cbs=False, cbs=TrainEval).fit(1, cbs=[ParamScheduler({"lr": SchedLin(0.0, 0.4)}), Look])
    assert seen == pytest.approx([0.0, 0.1, 0.2, 0.3])


class Stream:
    """Four batches, and no length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(line_dls(16).train)


def test_schedule_over_a_loader_without_length_moves_once_an_epoch_and_says_so() -> None:
    learn = Learner(DataLoaders(Stream()), nn.Linear(3, 1), F.mse_loss, MomSGD)
    with learn.no_logging(), pytest.warns(RuntimeWarning, match="no length .* moves from epoch to epoch"):
        learn.fit(2, cbs=ParamScheduler({"lr": SchedLin(0.1, 0.2)}))
    assert learn.recorder.lrs == pytest.approx([0.1] * 4 + [0.15] * 4)


def test_schedule_over_one_epoch_of_a_loader_without_length_is_refused() -> None:
    learn = Learner(DataLoaders(Stream()), nn.Linear(3, 1), F.mse_loss, MomSGD)
    with pytest.raises(ValueError, match=r"no length \(__len__\).*would stay at its start"):
        learn.fit(1, cbs=ParamScheduler({"lr": SchedLin(0.1, 0.2)}))


def test_loader_longer_than_its_length_stays_at_the_end() -> None:
    class Liar(Stream):
        def __len__(self) -> int:
            return 2

    learn = Learner(DataLoaders(Liar()), nn.Linear(3, 1), F.mse_loss, MomSGD)
    with learn.no_logging():
        learn.fit(1, cbs=ParamScheduler({"lr": SchedLin(0.1, 0.2)}))
    assert learn.recorder.lrs == pytest.approx([0.1, 0.15, 0.2, 0.2])


# ---- TorchScheduler ----


def by_hand(make: Callable[[torch.optim.Optimizer], LRScheduler], lr: float, steps: int) -> list[float]:
    """The rate before each of so many steps of the scheduler."""
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    sched, rates = make(opt), []
    for _ in range(steps):
        rates.append(opt.param_groups[-1]["lr"])
        opt.step()
        sched.step()
    return rates


def in_turn(opt: torch.optim.Optimizer) -> LRScheduler:
    parts = [LinearLR(opt, 0.1, total_iters=3), CosineAnnealingLR(opt, 5)]
    return SequentialLR(opt, parts, milestones=[3])


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], LRScheduler]] = {
    "step": partial(StepLR, step_size=2),
    "milestones": partial(MultiStepLR, milestones=[2, 5]),
    "lambda": partial(LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
    "cycle": partial(OneCycleLR, max_lr=0.1, total_steps=8, cycle_momentum=False),
    "cyclic": partial(CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=3, cycle_momentum=False),
    "in turn": in_turn,
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_torchs_scheduler_per_batch_is_as_by_hand(make: Callable[[torch.optim.Optimizer], LRScheduler]) -> None:
    learn = learner()
    learn.fit(2, 0.05, cbs=TorchScheduler(make, "batch"))
    assert learn.recorder.lrs == by_hand(make, 0.05, 8)


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_torchs_scheduler_per_epoch_is_as_by_hand(make: Callable[[torch.optim.Optimizer], LRScheduler]) -> None:
    learn = learner(batches=2)
    learn.fit(8, 0.05, cbs=TorchScheduler(make))
    assert learn.recorder.lrs[::2] == learn.recorder.lrs[1::2] == by_hand(make, 0.05, 8)


def test_step_rates_are_those_of_the_formula() -> None:
    learn = learner(batches=1)
    learn.fit(5, 0.1, cbs=TorchScheduler(partial(StepLR, step_size=2, gamma=0.5)))
    assert learn.recorder.lrs == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])


@pytest.mark.parametrize("step_per", ["batch", "epoch"])
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_fit_gone_on_with_has_exactly_the_rates_of_the_whole(
    make: Callable[[torch.optim.Optimizer], LRScheduler], step_per: str
) -> None:
    whole, rest = learner(batches=2), learner(batches=2)
    whole.fit(4, 0.05, cbs=TorchScheduler(make, step_per))
    rest.fit(4, 0.05, cbs=TorchScheduler(make, step_per), start_epoch=2)
    assert rest.recorder.lrs == whole.recorder.lrs[4:]


@pytest.mark.parametrize("when", ["before the fit", "within it"])
@pytest.mark.parametrize("step_per", ["batch", "epoch"])
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_scheduler_goes_on_from_its_state_through_json(
    make: Callable[[torch.optim.Optimizer], LRScheduler], step_per: str, when: str
) -> None:
    class Save(Callback):
        order = TorchScheduler.order + 1

        def after_epoch(self) -> None:
            if self.epoch == 1:
                saved.update(through_json(scheduler.state_dict()), opt=copy.deepcopy(self.opt.state_dict()))

    class Load(Callback):
        order = TorchScheduler.order + 1

        def before_fit(self) -> None:
            if when == "within it":
                resumed.load_state_dict(saved)

    saved: dict = {}
    whole, rest = learner(batches=2), learner(batches=2)
    scheduler, resumed = TorchScheduler(make, step_per), TorchScheduler(make, step_per)
    whole.fit(4, 0.05, cbs=[scheduler, Save])
    rest.create_opt()
    rest.opt.load_state_dict(saved["opt"])
    if when == "before the fit":
        resumed.load_state_dict(saved)
    rest.fit(4, 0.07, cbs=[resumed, Load], start_epoch=2)
    assert rest.recorder.lrs == whole.recorder.lrs[4:]


def test_each_fit_begins_with_its_own_rate() -> None:
    learn = learner(batches=1, cbs=TorchScheduler(partial(StepLR, step_size=1, gamma=0.5)))
    learn.fit(3, 0.1)
    learn.fit(3, 0.2)
    assert learn.recorder.lrs == pytest.approx([0.2, 0.1, 0.05])


def test_rate_that_a_scheduler_by_hand_began_with_is_not_taken_over() -> None:
    learn = learner(batches=1)
    learn.create_opt()
    StepLR(learn.opt, 1)
    learn.fit(2, 0.1, cbs=TorchScheduler(partial(LambdaLR, lr_lambda=lambda step: 0.5**step)))
    assert learn.recorder.lrs == [0.1, 0.05]
    assert learn.opt.param_groups[0]["initial_lr"] == 1e-3


def test_optimizer_is_left_as_it_was() -> None:
    learn = learner(opt_func=torch.optim.AdamW)
    learn.create_opt()
    before = [{key: value for key, value in group.items() if key != "params"} for group in learn.opt.param_groups]
    learn.fit(1, cbs=TorchScheduler(partial(OneCycleLR, max_lr=0.1), "batch"))
    after = [{key: value for key, value in group.items() if key != "params"} for group in learn.opt.param_groups]
    assert after == before


def test_scheduler_that_cycles_momentum_is_recorded() -> None:
    learn = learner(opt_func=torch.optim.AdamW)
    learn.fit(1, cbs=TorchScheduler(partial(OneCycleLR, max_lr=0.1), "batch"))
    assert learn.recorder.hps["mom"][0] == 0.95
    assert min(learn.recorder.hps["mom"]) < 0.87


@pytest.mark.parametrize(("step_per", "steps"), [("batch", 12), ("epoch", 3)])
def test_number_of_steps_is_given_where_it_is_left_open(step_per: str, steps: int) -> None:
    seen: list[int] = []

    def mine(opt: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
        seen.append(total_steps)
        return StepLR(opt, 1)

    for make in (partial(OneCycleLR, max_lr=0.1, cycle_momentum=False), CosineAnnealingLR, mine):
        scheduler = TorchScheduler(make, step_per)
        learner().fit(3, cbs=scheduler)
        seen.append(getattr(scheduler.sched, "total_steps", getattr(scheduler.sched, "T_max", steps)))
    assert seen == [steps] * 4


def test_number_of_steps_that_is_given_stays() -> None:
    scheduler = TorchScheduler(partial(OneCycleLR, max_lr=0.1, epochs=5, steps_per_epoch=4, cycle_momentum=False))
    learner().fit(3, cbs=scheduler)
    assert scheduler.sched.total_steps == 20
    scheduler = TorchScheduler(partial(CosineAnnealingLR, T_max=7))
    learner().fit(3, cbs=scheduler)
    assert scheduler.sched.T_max == 7


def test_cancelled_steps_and_batches_move_the_scheduler_without_a_warning() -> None:
    class Gather(Callback):
        def before_batch(self) -> None:
            if self.training and self.iter == 2:
                raise CancelBatchException

        def before_step(self) -> None:
            if self.iter % 2 == 0:
                raise CancelStepException

    learn = learner()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn.fit(1, 0.8, cbs=[Gather, TorchScheduler(partial(StepLR, step_size=1, gamma=0.5), "batch")])
    assert learn.recorder.lrs == [0.8, 0.4, 0.1]


def test_plateau_watches_the_validation_loss() -> None:
    learn = learner(batches=1)
    learn.fit(4, 0.0, cbs=(scheduler := TorchScheduler(partial(ReduceLROnPlateau, patience=0, factor=0.5))))
    assert scheduler.state_dict()["figures"] == [row[1] for row in learn.recorder.values]


def test_plateau_halves_the_rate_when_the_figure_stands_still() -> None:
    class Freeze(Callback):
        def before_step(self) -> None:
            raise CancelStepException

    learn = learner(batches=1)
    scheduler = TorchScheduler(partial(ReduceLROnPlateau, patience=0, factor=0.5), monitor="train_loss")
    learn.fit(4, 0.8, cbs=[Freeze, scheduler])
    assert learn.recorder.lrs == pytest.approx([0.8, 0.8, 0.4, 0.2])


def test_plateau_goes_on_from_its_figures() -> None:
    class Save(Callback):
        order = TorchScheduler.order + 1

        def after_epoch(self) -> None:
            if self.epoch == 2:
                saved.update(through_json(scheduler.state_dict()))

    saved: dict = {}
    plateau = partial(ReduceLROnPlateau, patience=1, factor=0.5, threshold=10.0, threshold_mode="abs")
    scheduler, resumed = TorchScheduler(plateau), TorchScheduler(plateau)
    whole, rest = learner(batches=1), learner(batches=1)
    whole.fit(8, 1e-4, cbs=[scheduler, Save])
    assert len(set(whole.recorder.lrs)) > 3
    resumed.load_state_dict(saved)
    rest.fit(8, 1e-4, cbs=resumed, start_epoch=3)
    assert rest.recorder.lrs == whole.recorder.lrs[3:]


def test_plateau_takes_no_step_where_the_figure_is_missing() -> None:
    class Skip(Callback):
        def before_validate(self) -> None:
            raise CancelValidException

    scheduler = TorchScheduler(partial(ReduceLROnPlateau, patience=0))
    learner(batches=1).fit(3, cbs=[Skip, scheduler])
    assert scheduler.state_dict()["steps"] == 0


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (partial(ReduceLROnPlateau), {"monitor": "valid_los"}, "no figure 'valid_los' to monitor; did you mean"),
        (partial(ReduceLROnPlateau), {"step_per": "batch"}, "valid_loss is a figure of the epoch: .*'epoch'"),
    ],
)
def test_figure_that_cannot_be_watched_is_refused(make: object, kwargs: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learner().fit(1, cbs=TorchScheduler(make, **kwargs))  # type: ignore[arg-type]


def test_scheduler_refuses_what_is_no_function_or_unit() -> None:
    sched = StepLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), 2)
    with pytest.raises(TypeError, match=r"sched_func must be a function of the optimizer, .* an object of StepLR"):
        TorchScheduler(sched)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="step_per must be 'batch' or 'epoch', got 'step'"):
        TorchScheduler(StepLR, step_per="step")
    with pytest.raises(TypeError, match="sched_func must give one of torch's schedulers, got 3"):
        learner().fit(1, cbs=TorchScheduler(lambda opt: 3))


def test_number_of_batches_of_a_loader_without_length_is_refused() -> None:
    learn = Learner(DataLoaders(Stream()), nn.Linear(3, 1), F.mse_loss, MomSGD)
    with pytest.raises(ValueError, match=r"no length .* which T_max needs with step_per='batch'"):
        learn.fit(1, cbs=TorchScheduler(CosineAnnealingLR, "batch"))


def test_torchs_one_cycle_cycles_the_momentum_of_our_optimizers() -> None:
    learn = learner()
    learn.fit(1, cbs=TorchScheduler(partial(OneCycleLR, max_lr=0.1, pct_start=0.5), "batch"))
    by_hand = torch.optim.SGD([torch.ones(1, requires_grad=True)], 0.1, momentum=0.9)
    schedule = OneCycleLR(by_hand, max_lr=0.1, pct_start=0.5, total_steps=4)
    wanted = []
    for _ in range(4):
        wanted.append(by_hand.param_groups[0]["momentum"])
        by_hand.step()
        if len(wanted) < 4:
            schedule.step()
    assert learn.recorder.hps["mom"] == wanted
    assert learn.opt.param_groups[0]["mom"] == 0.9


def test_schedulers_stand_after_the_recorder() -> None:
    assert ParamScheduler.order > Recorder.order
    assert TorchScheduler.order > Recorder.order

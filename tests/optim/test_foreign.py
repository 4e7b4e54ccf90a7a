"""Optimizers from elsewhere train in a Learner as they are."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import line_dls
from torch import Tensor, nn

from minilearn.callback import Callback, CancelEpochException
from minilearn.learner import Learner
from minilearn.optim import Adam, Lookahead
from minilearn.optim.foreign import make_optimizer, needs_closure

mse = nn.functional.mse_loss


def learner(opt_func: Callable[..., torch.optim.Optimizer], **options: Any) -> Learner:
    torch.manual_seed(0)
    return Learner(line_dls(), nn.Linear(3, 1), mse, opt_func, **options)


def fit(learn: Learner, *args: Any, **options: Any) -> Learner:
    with learn.no_logging():
        learn.fit(*args, **options)
    return learn


class Plain(torch.optim.Optimizer):
    """The usual form: a closure that may be left out, the loss returned."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])
        return loss


class NoClosure(Plain):
    """A step that takes no closure at all, and returns nothing."""

    def step(self) -> None:  # type: ignore[override]
        super().step()


class OtherNames(Plain):
    """A constructor with names of its own, and a decay that has none of the usual names."""

    def __init__(self, parameters: Iterator[Tensor], lr: float, shrink: float = 0.0) -> None:
        torch.optim.Optimizer.__init__(self, parameters, {"lr": lr, "shrink": shrink})


@pytest.mark.parametrize("opt_func", [Plain, NoClosure, OtherNames])
def test_usual_forms_train_as_torchs_sgd(opt_func: type[torch.optim.Optimizer]) -> None:
    mine, theirs = fit(learner(opt_func), 3, 0.05), fit(learner(torch.optim.SGD), 3, 0.05)
    torch.testing.assert_close(list(mine.model.parameters()), list(theirs.model.parameters()))


class Strict(Plain):
    """Takes no group with a setting that it does not know, and no second group."""

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0) -> None:
        torch.optim.Optimizer.__init__(self, params, {"lr": lr, "weight_decay": weight_decay})
        if len(self.param_groups) > 1:
            raise NotImplementedError("one group only")


def test_weight_decay_of_one_group_for_all_is_warned_of() -> None:
    with pytest.warns(RuntimeWarning, match="Strict takes one group of parameters: weight decay is for biases and"):
        learner(Strict).create_opt()


@pytest.mark.parametrize("opt_func", [Strict, torch.optim.LBFGS])
@pytest.mark.filterwarnings("ignore:Strict takes one group")
def test_single_group_holds_all_parameters_in_the_models_order(opt_func: type[torch.optim.Optimizer]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    learn = Learner(
        line_dls(), model, mse, opt_func, splitter=lambda m: [list(m[2].parameters()), list(m[:2].parameters())]
    )
    learn.create_opt()
    (group,) = learn.opt.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


def test_single_group_leaves_frozen_parameters_out() -> None:
    learn = learner(torch.optim.LBFGS)
    learn.model.bias.requires_grad_(False)
    learn.create_opt()
    assert [len(group["params"]) for group in learn.opt.param_groups] == [1]


def test_error_of_an_optimizer_that_takes_neither_form_is_its_first() -> None:
    def refuses(params: Any, lr: float) -> torch.optim.Optimizer:
        raise ValueError(f"no: {type(params[0]).__name__}")

    with pytest.raises(ValueError, match="no: dict"):
        learner(refuses).create_opt()


def test_groups_that_were_tried_in_vain_are_left_as_they_were() -> None:
    model = nn.Linear(3, 1)
    groups = [{"params": [model.weight]}, {"params": [model.bias]}]
    make_optimizer(torch.optim.LBFGS, groups, 1.0, model)
    assert [sorted(group) for group in groups] == [["params"], ["params"]]


def test_who_needs_a_closure_is_told_by_the_signature() -> None:
    params = list(nn.Linear(3, 1).parameters())
    made = [torch.optim.LBFGS(params), Lookahead(torch.optim.LBFGS(params)), Plain(params), NoClosure(params)]
    assert [needs_closure(opt) for opt in made] == [True, True, False, False]
    torch.optim.lr_scheduler.ConstantLR(made[0])  # wraps the step
    assert needs_closure(made[0])


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD: z steps, x averages, gradients are taken at y between the two; the model holds x or y."""

    def __init__(self, params: Any, lr: float, mom: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "mom": mom, "k": 0, "train_mode": False})
        self.modes: list[bool] = []

    @torch.no_grad()
    def _turn(self, mode: bool) -> None:
        self.modes.append(mode)
        for group in self.param_groups:
            if group["train_mode"] != mode:
                for p in group["params"]:
                    if "z" in self.state[p]:  # y = mom·x + (1 - mom)·z
                        p.lerp_(self.state[p]["z"], 1 - group["mom"] if mode else 1 - 1 / group["mom"])
                group["train_mode"] = mode

    def train(self) -> None:
        self._turn(True)

    def eval(self) -> None:
        self._turn(False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            assert group["train_mode"], "the optimizer is not in training mode"
            group["k"] += 1
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                x = (p - (1 - group["mom"]) * z) / group["mom"]
                z -= group["lr"] * p.grad
                x += (z - x) / group["k"]
                p.copy_(group["mom"] * x + (1 - group["mom"]) * z)


def test_schedule_free_optimizer_is_validated_with_its_averaged_weights() -> None:
    learn = learner(ScheduleFree)
    model = copy.deepcopy(learn.model)
    opt, figures = ScheduleFree(model.parameters(), 0.1), []
    for _ in range(3):
        opt.train()
        for x, y in learn.dls.train:
            mse(model(x), y).backward()
            opt.step()
            opt.zero_grad()
        opt.eval()
        ((x, y),) = learn.dls.valid
        figures.append(mse(model(x), y).item())
    fit(learn, 3, 0.1)
    assert [row[1] for row in learn.recorder.values] == pytest.approx(figures, rel=1e-5)
    torch.testing.assert_close(list(learn.model.parameters()), list(model.parameters()))


def test_schedule_free_optimizer_is_in_evaluation_mode_when_an_epoch_ends_without_validation() -> None:
    modes = []

    class Saves(Callback):
        def after_epoch(self) -> None:
            modes.append(self.opt.param_groups[0]["train_mode"])

    learn = learner(ScheduleFree, cbs=Saves)
    learn.dls = [learn.dls.train]
    fit(learn, 2, 0.1)
    assert modes == [False, False]


def test_look_at_the_validation_set_within_training_leaves_the_optimizer_in_training_mode() -> None:
    class Look(Callback):
        def after_batch(self) -> None:
            if self.training:
                self.learn.validate()

    plain, looking = fit(learner(ScheduleFree), 2, 0.1), fit(learner(ScheduleFree, cbs=Look), 2, 0.1)
    torch.testing.assert_close(list(plain.model.parameters()), list(looking.model.parameters()))


def test_schedule_free_optimizer_is_in_evaluation_mode_after_a_cancelled_epoch_and_after_an_error() -> None:
    class Cancels(Callback):
        def after_step(self) -> None:
            raise CancelEpochException

        def after_epoch(self) -> None:
            assert not self.opt.param_groups[0]["train_mode"]
            raise KeyboardInterrupt

    learn = learner(ScheduleFree, cbs=Cancels)
    with pytest.raises(KeyboardInterrupt):
        fit(learn, 2, 0.1)
    assert learn.opt.modes[-1] is False


def test_validation_before_any_fit_needs_no_optimizer() -> None:
    with (learn := learner(ScheduleFree)).no_logging():
        assert learn.validate()[0] is not None


def test_optimizer_that_is_a_module_keeps_its_own_modes() -> None:
    class ModuleToo(Plain, nn.Module):
        def __init__(self, params: Any, lr: float) -> None:
            nn.Module.__init__(self)
            Plain.__init__(self, params, lr)

    learn = learner(ModuleToo)
    learn.create_opt()
    learn.opt.train()
    fit(learn, 1)
    assert learn.opt.training


def test_lookahead_around_a_foreign_optimizer_trains() -> None:
    learn = learner(lambda p, lr: Lookahead(NoClosure(p, lr), k=2))
    before = learn.validate()[0]
    assert fit(learn, 5, 0.05).validate()[0] < before


def test_optimizers_of_ones_own_are_made_as_before() -> None:
    learn = learner(Adam)
    learn.create_opt()
    assert [group["no_wd"] for group in learn.opt.param_groups] == [False, True]

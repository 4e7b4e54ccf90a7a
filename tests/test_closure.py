"""Optimizers that evaluate the loss several times in a step, in the training loop."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import events_log, line_dls
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.learner import Learner
from minilearn.optim import Lookahead

LBFGS = torch.optim.LBFGS
mse = nn.functional.mse_loss


def learner(opt_func: Callable[..., torch.optim.Optimizer], model: nn.Module | None = None, **options: Any) -> Learner:
    torch.manual_seed(0)
    dls = line_dls(train_rows=32, valid_rows=8, bs=options.pop("bs", 32))
    return Learner(dls, model or nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), mse, opt_func, **options)


def fit(learn: Learner, *args: Any, **options: Any) -> Learner:
    with learn.no_logging():
        learn.fit(*args, **options)
    return learn


class ThreeLooks(torch.optim.Optimizer):
    """Takes three small steps of gradient descent within each of its own."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.losses: list[float] = []

    def step(self, closure: Callable[[], Tensor]) -> None:  # type: ignore[override]
        for _ in range(3):
            self.losses.append(closure().item())
            for group in self.param_groups:
                for p in group["params"]:
                    p.data = p.data - group["lr"] * p.grad


OPT_FUNCS = {
    "LBFGS": LBFGS,
    "LBFGS with a line search": partial(LBFGS, line_search_fn="strong_wolfe"),
    "Lookahead around LBFGS": lambda p, lr: Lookahead(LBFGS(p, lr), k=2, alpha=0.8),
}


@pytest.mark.parametrize("name", OPT_FUNCS)
def test_full_batch_regression_equals_the_loop_written_by_hand_bit_for_bit(name: str) -> None:
    learn = learner(OPT_FUNCS[name])
    model = copy.deepcopy(learn.model)
    opt = OPT_FUNCS[name](model.parameters(), lr=1.0)
    ((x, y),) = learn.dls.train

    def closure() -> Tensor:
        opt.zero_grad()
        loss = mse(model(x), y)
        loss.backward()
        return loss

    for _ in range(5):
        opt.step(closure)
    fit(learn, 5, 1.0)
    assert all(torch.equal(p, q) for p, q in zip(learn.model.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("name", OPT_FUNCS)
def test_lbfgs_reaches_the_noise_of_the_data(name: str) -> None:
    learn = fit(learner(OPT_FUNCS[name], nn.Linear(3, 1)), 10, 1.0)
    assert learn.validate()[0] < 0.02  # the noise's variance is 0.01


def test_second_fit_goes_on_with_the_same_lbfgs() -> None:
    learn = fit(learner(LBFGS), 1, 1.0)
    opt, evaluations = learn.opt, learn.opt.state[learn.model[0].weight]["func_evals"]
    fit(learn, 1)
    assert learn.opt is opt
    assert opt.state[learn.model[0].weight]["func_evals"] > evaluations


def test_events_are_those_of_any_other_optimizer() -> None:
    logs = []
    for opt_func in (LBFGS, torch.optim.SGD):
        log, events = events_log()
        fit(learner(opt_func, bs=8), 2, 0.1, cbs=log)
        logs.append(events)
    assert logs[0] == logs[1]


def test_first_evaluation_is_the_batchs_own() -> None:
    learn = learner(ThreeLooks, nn.Linear(3, 1))
    calls: list[int] = []
    learn.model.register_forward_hook(lambda *args: calls.append(learn.model.training))
    fit(learn, 1, 0.01)
    assert calls == [True] * 3 + [False]


def test_what_callbacks_see_after_the_step_is_the_first_evaluation() -> None:
    seen: list[float] = []

    class Look(Callback):
        def after_step(self) -> None:
            seen.append(self.loss.item())
            assert mse(self.pred, self.y).item() == seen[-1]

    learn = fit(learner(ThreeLooks, nn.Linear(3, 1)), 1, 0.01, cbs=Look)
    assert seen == learn.opt.losses[:1]
    assert learn.opt.losses[0] > learn.opt.losses[1] > learn.opt.losses[2]


def test_gradients_changed_by_a_callback_count_in_the_first_evaluation_alone() -> None:
    class NoGradient(Callback):
        def before_step(self) -> None:
            for p in self.model.parameters():
                p.grad.zero_()

    learn = fit(learner(ThreeLooks, nn.Linear(3, 1)), 1, 0.01, cbs=NoGradient)
    assert learn.opt.losses[0] == learn.opt.losses[1] > learn.opt.losses[2]


class Extrapolated(torch.optim.Optimizer):
    """Moves first and asks for the gradient there, as schedule-free optimizers with a closure do."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> None:  # type: ignore[override]
        params = [p for group in self.param_groups for p in group["params"]]
        for p in params:
            p.mul_(0.5)
        with torch.enable_grad():
            closure()
        for p in params:
            p.sub_(p.grad, alpha=0.1)


def test_optimizer_that_moves_before_it_asks_gets_the_gradient_of_there() -> None:
    learn = learner(Extrapolated, nn.Linear(3, 1))
    x, y = next(iter(learn.dls.train))
    w, b = (p.detach().clone() * 0.5 for p in learn.model.parameters())
    error = x @ w.T + b - y
    fit(learn, 1)
    torch.testing.assert_close(learn.model.weight.detach(), w - 0.1 * 2 * (error.T @ x) / len(x))


class ClearsFirst(torch.optim.SGD):
    """Clears the gradients before it asks, in either way."""

    set_to_none = True

    def step(self, closure: Callable[[], Tensor]) -> None:  # type: ignore[override]
        self.zero_grad(set_to_none=self.set_to_none)
        with torch.enable_grad():
            closure()
        super().step()


class ZeroesFirst(ClearsFirst):
    set_to_none = False


@pytest.mark.parametrize("kind", [ClearsFirst, ZeroesFirst])
def test_optimizer_that_clears_the_gradients_before_it_asks_gets_them_anew(kind: type[ClearsFirst]) -> None:
    learn, plain = (fit(learner(opt_func), 3, 0.1) for opt_func in (kind, torch.optim.SGD))
    torch.testing.assert_close(list(learn.model.parameters()), list(plain.model.parameters()))


class SharpnessAware(torch.optim.Optimizer):
    """SAM in its usual form: the closure is optional by the signature, and asserted."""

    def __init__(self, params: Any, lr: float, rho: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        assert closure is not None, "SAM needs a closure"
        params = [(p, group) for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p, _ in params]).norm()
        moves = [p.grad * group["rho"] / norm for p, group in params]
        for (p, _), move in zip(params, moves, strict=True):
            p.add_(move)
        self.zero_grad()
        torch.enable_grad()(closure)()
        for (p, group), move in zip(params, moves, strict=True):
            p.sub_(move).sub_(p.grad, alpha=group["lr"])


def sharpness_aware(params: Any, lr: float) -> torch.optim.Optimizer:
    opt = SharpnessAware(params, lr)
    opt.needs_closure = True  # type: ignore[attr-defined]
    return opt


def test_optimizer_that_says_so_gets_a_closure() -> None:
    learn = learner(sharpness_aware)
    model = copy.deepcopy(learn.model)
    opt = SharpnessAware(model.parameters(), 0.1)
    ((x, y),) = learn.dls.train

    def closure() -> None:
        mse(model(x), y).backward()

    for _ in range(3):
        closure()
        opt.step(closure)  # type: ignore[arg-type]
        opt.zero_grad()
    fit(learn, 3, 0.1)
    torch.testing.assert_close(list(learn.model.parameters()), list(model.parameters()))


def test_batch_that_is_a_dict_is_evaluated_again() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, features: Tensor) -> Tensor:
            out: Tensor = self.linear(features)
            return out

    learn = learner(LBFGS, Named())
    learn.dls = [[{"features": x, "y": y} for x, y in dl] for dl in learn.dls]
    assert fit(learn, 4, 1.0).validate()[0] < 0.02


def test_error_in_a_later_evaluation_says_what_the_model_was_given_and_where() -> None:
    class Fails(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("no")
            return super().forward(x)

    with pytest.raises(RuntimeError) as caught:
        fit(learner(LBFGS, Fails(3, 1)), 1, 1.0)
    notes = "\n".join(caught.value.__notes__)
    assert "the model was given (float32 (32, 3))" in notes
    assert "training batch 0 of 1" in notes


def test_one_batch_by_hand_after_a_fit_steps_with_a_closure() -> None:
    learn = fit(learner(LBFGS), 1, 1.0)
    before = learn.model[0].weight.detach().clone()
    learn.model.train()
    learn.training = True
    learn.one_batch(0, next(iter(learn.dls.train)))
    assert not torch.equal(before, learn.model[0].weight)

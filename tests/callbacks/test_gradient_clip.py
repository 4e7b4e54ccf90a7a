"""Clipped gradients: by norm, by value, adaptively."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.callbacks import GradientClip
from minilearn.callbacks.gradient_clip import clip_adaptively_
from minilearn.learner import Learner
from minilearn.optim import SGD


class Keep(Callback):
    """Keeps the gradients before and after they are clipped."""

    order = GradientClip.order - 1

    def __init__(self) -> None:
        self.before: list[Tensor] = []
        self.after: list[Tensor] = []

    def before_step(self) -> None:
        self.before = [p.grad.clone() for p in self.model.parameters()]

    def after_step(self) -> None:
        self.after = [p.grad.clone() for p in self.model.parameters()]


def fitted(clip: Any, **options: Any) -> tuple[Learner, Keep]:
    torch.manual_seed(0)
    model, keep = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), Keep()
    learn = Learner(line_dls(), model, F.mse_loss, options.pop("opt_func", SGD), cbs=[keep, clip], lr=0.1, **options)
    with learn.no_logging():
        learn.fit(1)
    return learn, keep


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_by_norm_the_total_norm_is_at_most_max_norm(norm_type: float) -> None:
    _, keep = fitted(GradientClip(0.1, norm_type))
    assert flat(keep.before).norm(norm_type) > 0.2
    torch.testing.assert_close(flat(keep.after).norm(norm_type), torch.tensor(0.1), rtol=1e-4, atol=0)
    torch.testing.assert_close(F.normalize(flat(keep.after), dim=0), F.normalize(flat(keep.before), dim=0))


def test_gradients_below_max_norm_stay_as_they_are() -> None:
    _, keep = fitted(GradientClip(1e6))
    torch.testing.assert_close(keep.after, keep.before, rtol=0, atol=0)


def test_the_norm_that_is_kept_is_the_one_before_clipping_and_a_tensor() -> None:
    clip = GradientClip(0.1)
    _, keep = fitted(clip)
    assert isinstance(clip.norm, Tensor)
    torch.testing.assert_close(clip.norm, flat(keep.before).norm())


def test_without_arguments_the_total_norm_is_at_most_1() -> None:
    _, keep = fitted(GradientClip)
    assert flat(keep.before).norm() > 1.1
    torch.testing.assert_close(flat(keep.after).norm(), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_by_value_each_number_is_clipped() -> None:
    _, keep = fitted(GradientClip(value=0.05))
    assert torch.equal(flat(keep.after), flat(keep.before).clamp(-0.05, 0.05))


def naive(weight: Tensor, grad: Tensor, factor: float, eps: float) -> Tensor:
    """Equation 3 of the paper, a unit at a time."""
    if weight.squeeze().ndim <= 1:
        return grad * min(1.0, factor * max(weight.norm(), eps) / grad.norm())
    return torch.stack(
        [g * min(1.0, factor * max(w.norm(), eps) / g.norm()) for w, g in zip(weight, grad, strict=True)]
    )


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 2), (6,), (), (1, 5)], ids=str)
@pytest.mark.parametrize("factor", [0.01, 1.0])
def test_adaptively_each_unit_is_clipped_as_in_the_paper(shape: tuple[int, ...], factor: float) -> None:
    torch.manual_seed(0)
    p = torch.randn(shape, requires_grad=True)
    p.grad = grad = torch.randn(shape)
    wanted = naive(p.detach(), grad.clone(), factor, 1e-3)
    clip_adaptively_([p], factor)
    torch.testing.assert_close(p.grad, wanted)


def test_adaptively_weights_and_gradients_of_0_are_no_trouble() -> None:
    zero, still = torch.zeros(2, 2, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    clip_adaptively_([zero, still], 0.1, eps=0.5)
    torch.testing.assert_close(zero.grad.norm(dim=1), torch.full((2,), 0.05))
    assert torch.equal(still.grad, torch.zeros(2, 2))


def test_adaptively_in_a_fit_modules_are_spared() -> None:
    torch.manual_seed(0)
    model, keep = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), Keep()
    learn = Learner(line_dls(), model, F.mse_loss, SGD, cbs=[keep, GradientClip(adaptive=0.01, spare=model[2])])
    with learn.no_logging():
        learn.fit(1)
    same = [torch.equal(a, b) for a, b in zip(keep.after, keep.before, strict=True)]
    assert same == [False, False, True, True]


def test_parameters_of_the_optimizer_that_are_not_the_models_are_clipped_too() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(()))

        def forward(self, pred: Tensor, target: Tensor) -> Tensor:
            return F.mse_loss(pred * self.factor, target)

    loss, seen = Scaled(), []

    class Look(Callback):
        def after_step(self) -> None:
            grads = [p.grad for p in (*self.model.parameters(), loss.factor)]
            seen.append(flat(grads).norm().item())

    dls, model = line_dls(), nn.Linear(3, 1)
    learn = Learner(
        dls, model, loss, SGD, cbs=[Look, GradientClip(0.1)], splitter=lambda m: [*m.parameters(), loss.factor]
    )
    with learn.no_logging():
        learn.fit(1)
    assert seen == pytest.approx([0.1, 0.1], rel=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("options", [{"max_norm": 0.1}, {"adaptive": 0.01}], ids=["norm", "adaptive"])
def test_with_compile_the_numbers_are_eagers(options: dict[str, float]) -> None:
    (eager, _), (compiled, _) = fitted(GradientClip(**options)), fitted(GradientClip(**options), compile=True)
    for a, b in zip(eager.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_norm": 0.0}, ValueError, r"max_norm must be a finite number greater than 0, got 0.0"),
        ({"max_norm": 1, "value": 1}, ValueError, "GradientClip clips one way: give max_norm or value, not both"),
        ({"value": 1, "adaptive": 1}, ValueError, "GradientClip clips one way: give value or adaptive, not both"),
        ({"value": -1}, ValueError, "value must be a finite number greater than 0, got -1"),
        ({"adaptive": 0}, ValueError, "adaptive must be a finite number greater than 0, got 0"),
        ({"norm_type": 0}, ValueError, "norm_type must be a finite number greater than 0, got 0"),
        ({"eps": 0}, ValueError, "eps must be a finite number greater than 0, got 0"),
        ({"max_norm": "1"}, TypeError, "max_norm must be a number, got '1'"),
        ({"adaptive": 0.1, "spare": ["head"]}, TypeError, "spare must be modules, got 'head'"),
    ],
)
def test_arguments_are_looked_at(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GradientClip(**options)

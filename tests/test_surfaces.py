"""The surfaces have the minima that they name, and optimizers find them as they should."""

import math
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from minilearn.optim import SGD, Adam
from minilearn.surfaces import ROSENBROCK, SADDLE, SURFACES, VALLEY, X2_SIN_X, Surface, as_surface, descend, steps_to

EVERY = pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)


def example_settings() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    examples = Path(__file__).parent.parent / "examples"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(examples)  # as when it is run: from there it takes its command line
        return runpy.run_path(str(examples / "every_optimizer.py"))["SETTINGS"]


SETTINGS = example_settings()


def hessian(surface: Surface, point: tuple[float, ...]) -> torch.Tensor:
    return torch.autograd.functional.hessian(surface, torch.tensor(point, dtype=torch.float64))


@EVERY
def test_minima_are_where_the_surface_says(surface: Surface) -> None:
    for point in surface.minima:
        p = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(surface(p), p)
        assert slope.abs().max() < 1e-9
        assert torch.linalg.eigvalsh(hessian(surface, point)).min() > 0


@EVERY
def test_minimum_is_the_lowest_place_in_the_window(surface: Surface) -> None:
    axes = [torch.linspace(low, high, 201, dtype=torch.float64) for low, high in surface.window]
    grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), dim=-1)
    lowest = surface(torch.tensor(surface.minimum, dtype=torch.float64))
    assert lowest <= surface(grid).min() + 1e-12
    assert all(low < x < high for x, (low, high) in zip(surface.start, surface.window, strict=True))


def test_heights_and_bends_are_those_of_the_docstrings() -> None:
    at_minima = X2_SIN_X(torch.tensor(X2_SIN_X.minima, dtype=torch.float64))
    assert at_minima.tolist() == pytest.approx([-24.0830, -3.9453], abs=5e-5)
    assert SADDLE(torch.tensor(SADDLE.minima)).tolist() == [-0.25, -0.25]
    bends = torch.linalg.eigvalsh(hessian(VALLEY, (0.0, 0.0)))
    assert bends.max() / bends.min() == 25
    assert torch.linalg.eigvalsh(hessian(SADDLE, (0.0, 0.0))).tolist() == [-1.0, 1.0]
    assert ROSENBROCK(torch.tensor([-1.2, 1.0])).item() == pytest.approx(24.2)  # Rosenbrock's own figure


def test_path_is_that_of_a_loop_written_by_hand() -> None:
    path = descend(SGD, "valley", (1.0, 0.5), steps=3, lr=0.05)
    x, y, expected = 1.0, 0.5, [[1.0, 0.5]]
    for _ in range(3):
        x, y = x - 0.05 * x, y - 0.05 * 25 * y
        expected.append([x, y])
    assert path.tolist() == [pytest.approx(point) for point in expected]


@pytest.mark.parametrize("opt_func", [SGD, torch.optim.Adam, partial(torch.optim.LBFGS, max_iter=4)])
def test_path_has_a_point_for_the_start_and_for_each_step(opt_func: Callable[..., torch.optim.Optimizer]) -> None:
    path = descend(opt_func, ROSENBROCK, steps=5, lr=1e-3)
    assert path.shape == (6, 2)
    assert path[0].tolist() == [-1.2, 1.0]
    assert not path.requires_grad


def test_start_of_one_variable_may_be_a_number() -> None:
    assert descend(SGD, "x2_sin_x", 2, steps=0, lr=0.1).tolist() == [[2.0]]


def test_steps_to_counts_from_where_the_path_stays() -> None:
    path = torch.tensor([[0.0], [3.0], [1.0], [1.0]])
    assert steps_to(path, (1.0,), 0.5) == 2
    assert steps_to(path, (1.0,), 5.0) == 0
    assert steps_to(path, (0.0,), 0.5) is None
    assert steps_to(torch.full((3, 1), math.nan), (0.0,), 0.5) is None


@pytest.mark.parametrize("start", [2.5, 5.0])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_optimizer_of_the_example_reaches_the_minimum(name: str, start: float) -> None:
    path = descend(SETTINGS[name], X2_SIN_X, start, steps=500)
    assert steps_to(path, X2_SIN_X.minimum, 0.02) is not None
    assert X2_SIN_X(path[-1]).item() == pytest.approx(-24.083, abs=0.01)


def test_every_optimizer_of_the_library_is_in_the_example() -> None:
    import minilearn.optim

    kinds = {type(opt_func([torch.ones(1, requires_grad=True)])).__name__ for opt_func in SETTINGS.values()}
    classes = {name for name in minilearn.optim.__all__ if isinstance(getattr(minilearn.optim, name), type)}
    assert classes - {"Optimizer"} <= kinds


def test_momentum_rolls_over_the_flat_place_on_which_plain_descent_comes_to_rest() -> None:
    # From 2.0 the way leads left, down to a stationary point at 0 behind which it goes on down. There the slope is
    # about 3x² on both sides: a plain step, lr·3x², is less than what is left of the way to 0, x, as long as
    # x < 1 / (3 lr), so that however many steps it takes it never crosses. Momentum arrives with speed.
    plain = descend(SGD, X2_SIN_X, 2.0, steps=1500, lr=0.01)
    moved = descend(partial(SGD, mom=0.9), X2_SIN_X, 2.0, steps=300, lr=0.01)
    assert plain.min().item() > 0
    assert plain[-1].item() < 0.05
    assert moved[-1].item() == pytest.approx(-2.28893, abs=1e-3)


def test_momentum_leaves_a_saddle_sooner_than_plain_descent() -> None:
    # Beside the ridge by a thousandth the slope along it is a thousandth: a plain step multiplies the distance by
    # 1 + lr, which 150 times makes a factor of 20. Momentum adds such steps up: about 1 + lr / (1 - mom) each.
    plain = descend(SGD, SADDLE, steps=150, lr=0.02)
    moved = descend(partial(SGD, mom=0.9), SADDLE, steps=150, lr=0.02)
    assert 0 < plain[-1, 1].item() < 0.03
    assert moved[-1, 1].item() > 0.8


@pytest.mark.parametrize("opt_func", [SGD, partial(SGD, mom=0.9), partial(Adam, wd=0)])
def test_nobody_leaves_the_ridge_itself(opt_func: Callable[..., torch.optim.Optimizer]) -> None:
    path = descend(opt_func, SADDLE, (-2.0, 0.0), steps=300, lr=0.05)
    assert path[:, 1].abs().max() == 0
    assert path[-1, 0].abs() < 0.05


def test_plain_descent_diverges_in_the_valley_just_above_its_bound() -> None:
    assert steps_to(descend(SGD, VALLEY, steps=500, lr=0.079), VALLEY.minimum, 1e-3) is not None
    assert descend(SGD, VALLEY, steps=500, lr=0.081)[-1, 1].abs() > 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: as_surface("vally"), "no surface 'vally'; did you mean 'valley'?"),
        (lambda: descend(SGD, "valley", (1.0,), lr=0.1), "start must have 2 numbers for narrow valley.*, got 1"),
        (lambda: descend(SGD, "valley", steps=-1, lr=0.1), "steps must be a whole number of at least 0, got -1"),
    ],
)
def test_what_cannot_be_descended_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

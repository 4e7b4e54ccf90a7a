"""Surfaces of one or two variables on which optimizers are compared, and the path that one takes down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minilearn.errors import did_you_mean, whole

OptFunc = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class Surface:
    """A function to minimise, with what is known about it and the window in which it is drawn.

    Calling it gives the function's values at points (…, dims): (…,).
    """

    name: str
    """What it is called in a title."""
    function: Callable[[Tensor], Tensor]
    """Points, (…, dims), to values, (…,)."""
    minima: tuple[tuple[float, ...], ...]
    """Its minima within the window, (dims,) each, the lowest first."""
    window: tuple[tuple[float, float], ...]
    """From where to where it is drawn, for each variable."""
    start: tuple[float, ...]
    """Where to begin where nobody says otherwise, (dims,)."""
    log_levels: bool = False
    """Whether its contours are evenly spaced in the logarithm of the height."""

    def __call__(self, points: Tensor) -> Tensor:
        return self.function(points)

    @property
    def dims(self) -> int:
        """The number of variables, 1 or 2."""
        return len(self.window)

    @property
    def minimum(self) -> tuple[float, ...]:
        """Where it is least within the window, (dims,)."""
        return self.minima[0]


def _valley(points: Tensor) -> Tensor:
    x, y = points.unbind(-1)
    return (x**2 + 25 * y**2) / 2


def _saddle(points: Tensor) -> Tensor:
    x, y = points.unbind(-1)
    return x**2 / 2 - y**2 / 2 + y**4 / 4


def _rosenbrock(points: Tensor) -> Tensor:
    x, y = points.unbind(-1)
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def _x2_sin_x(points: Tensor) -> Tensor:
    (x,) = points.unbind(-1)
    return x**2 * torch.sin(x)


VALLEY = Surface(
    "narrow valley: (x² + 25·y²) / 2", _valley, ((0.0, 0.0),), ((-5.5, 2.0), (-1.8, 1.8)), (-5.0, 1.2), log_levels=True
)
"""A quadratic 25 times as steep across as along (condition number 25): plain descent diverges above a rate of 0.08."""

SADDLE = Surface(
    "saddle: x²/2 - y²/2 + y⁴/4", _saddle, ((0.0, 1.0), (0.0, -1.0)), ((-2.2, 2.2), (-1.7, 1.7)), (-2.0, 1e-3)
)
"""A saddle at the origin, a valley's floor at each side of it: minima at (0, ±1), height -1/4.

On the ridge y = 0 the slope along y is exactly zero: whoever starts there stays, with any optimizer that moves by the
gradient alone.
"""

ROSENBROCK = Surface(
    "Rosenbrock: (1 - x)² + 100·(y - x²)²", _rosenbrock, ((1.0, 1.0),), ((-1.7, 1.5), (-0.5, 2.0)), (-1.2, 1.0), True
)
"""A curved valley with steep sides and an almost flat floor; least, 0, at (1, 1).

Source: Rosenbrock 1960, The Computer Journal 3(3), with his start (-1.2, 1).
"""

X2_SIN_X = Surface("x²·sin(x)", _x2_sin_x, ((5.08698509410227,), (-2.28892972810340,)), ((-4.0, 6.7),), (2.5,))
"""One variable, two minima: f(5.0870) = -24.0830 and f(-2.2889) = -3.9453, both where tan x = -x / 2.

Between them lies a stationary point at 0, with the slope about 3·x² on both sides of it: from the right, plain descent
comes to rest there, as its steps shrink with the square of what is left; with momentum it arrives with some speed,
rolls over, and goes on down to -2.2889.
"""

SURFACES = {"valley": VALLEY, "saddle": SADDLE, "rosenbrock": ROSENBROCK, "x2_sin_x": X2_SIN_X}


def as_surface(surface: Surface | str) -> Surface:
    """A surface, also by its name in `SURFACES`.

    Raises:
        ValueError: there is none of the name.
    """
    if isinstance(surface, Surface):
        return surface
    if surface not in SURFACES:
        raise ValueError(f"no surface '{surface}'{did_you_mean(str(surface), SURFACES)}")
    return SURFACES[surface]


def descend(
    opt_func: OptFunc,
    surface: Surface | str,
    start: Sequence[float] | float | None = None,
    steps: int = 100,
    **hypers: Any,
) -> Tensor:
    """The path that an optimizer takes down a surface.

    The computation is in double precision. A path that has left what numbers can say stays at nan or infinity.

    Args:
        opt_func: called with a list of one parameter, (dims,), and `hypers`, gives a `torch.optim.Optimizer`.
        surface: a `Surface`, or its name in `SURFACES`.
        start: where it begins, (dims,); the surface's own by default.
        steps: how many steps it takes, at least 0.
        hypers: such as ``lr=0.1``, where `opt_func` does not hold them already.
    Returns:
        The points with the start first, float64 (steps + 1, dims).
    Raises:
        ValueError: there is no such surface, or `start` has another number of variables.

    >>> descend(torch.optim.SGD, "valley", (1.0, 0.0), steps=2, lr=0.5)[:, 0]
    tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)
    """
    surface = as_surface(surface)
    begin = surface.start if start is None else (float(start),) if isinstance(start, (int, float)) else tuple(start)
    if len(begin) != surface.dims:
        raise ValueError(f"start must have {surface.dims} numbers for {surface.name}, got {len(begin)}")
    p = torch.nn.Parameter(torch.tensor(begin, dtype=torch.float64))
    opt = opt_func([p], **hypers)
    path = [p.detach().clone()]

    def loss() -> Tensor:
        opt.zero_grad()
        height = surface(p)
        height.backward()  # type: ignore[no-untyped-call]
        return height

    for _ in range(whole("steps", steps)):
        opt.step(loss)  # type: ignore[arg-type]
        path.append(p.detach().clone())
    return torch.stack(path)


def steps_to(path: Tensor, point: Sequence[float], tolerance: float) -> int | None:
    """The step after which a path stays within a distance of a point; None where it does not to its end.

    Args:
        path: points, (steps + 1, dims).
        point: where to, (dims,).
        tolerance: the distance, in the variables' units.

    >>> steps_to(torch.tensor([[3.0], [1.0], [2.0], [1.1], [0.9]]), (1.0,), 0.2)
    3
    """
    near = ((path - torch.tensor(point, dtype=path.dtype)).norm(dim=-1) <= tolerance).tolist()
    if not near[-1]:
        return None
    return len(near) - next((i for i, close in enumerate(reversed(near)) if not close), len(near))

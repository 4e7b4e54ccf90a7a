"""Metrics that are averages, added up over batches without waiting for the device."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from minilearn import distributed
from minilearn.data.shares import share_of
from minilearn.errors import in_range
from minilearn.tensors import LateScalars, batch_size, shape_text


class Batch(Protocol):
    """What a metric reads of the loop: a Learner, or anything else that has these."""

    @property
    def pred(self) -> Any:
        """The model's output."""

    @property
    def xb(self) -> Any:
        """The inputs."""

    @property
    def yb(self) -> tuple[Any, ...]:
        """The targets."""

    @property
    def loss(self) -> Tensor:
        """The batch's loss."""


_OF_SUMS = frozenset({"reset", "accumulate", "value", "join"})
"""What belongs together: who changes one of them in a subclass has to look after `join` too."""


class Metric:
    """A number that is accumulated over batches: `reset`, `accumulate` for each batch, then `value`.

    Subclass it for a metric that is no average of a function over rows; set `name` for its column's heading.
    """

    name: str = ""

    by_steps: bool = False
    """Whether it takes on what a whole step comes to, and so a batch without a row of this process's own too."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def of_all_rows(self) -> bool:
        """Whether in several processes it has to be given the rows of all of them, as nobody says how to join it.

        So it is where a class has `reset`, `accumulate` or `value` of its own but no `join` that goes with them.
        """
        return not next(("join" in vars(kind) for kind in type(self).__mro__ if _OF_SUMS & vars(kind).keys()), False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Metric":
        """A copy with sums of its own; `func` stays the same, as a callback's method would take its Learner along."""
        func = self.__dict__.get("func")
        memo[id(func)] = func
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def reset(self) -> None:
        """Forgets what was accumulated."""
        raise NotImplementedError

    def accumulate(self, learn: Batch) -> None:
        """Takes a batch on: `learn.pred`, `learn.yb`, `learn.loss`."""
        raise NotImplementedError

    @property
    def value(self) -> float | None:
        """The metric over all that was accumulated; None where there was nothing."""
        raise NotImplementedError

    def join(self) -> None:
        """Takes on what the same metric has accumulated in the other processes of the job: all have the same then.

        Not needed: without one a metric is given the rows of all processes in each batch, which costs their sending
        (`of_all_rows`). Every process joins, also one that has seen no row.

        Raises:
            NotImplementedError: it does not say how.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What was accumulated, for a run that is gone on with: its attributes that are numbers, tensors or lists."""
        return {name: own(value) for name, value in vars(self).items() if isinstance(value, (int, float, Tensor, list))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        vars(self).update({name: own(value) for name, value in state.items()})


def own(value: Any) -> Any:
    """A copy of a tensor or a list, which what goes on accumulating does not change; anything else as it is."""
    return value.detach().clone() if isinstance(value, Tensor) else list(value) if isinstance(value, list) else value


def unwrapped(func: Any) -> Any:
    """The function that partials are made of."""
    while isinstance(func, partial):
        func = func.func
    return func


def function_name(func: Any) -> str:
    """A readable name of a metric: its own, the wrapped function's, or its class's; without a leading underscore.

    >>> def _ratio(pred, target): ...
    >>> function_name(partial(_ratio))
    'ratio'
    """
    plain = unwrapped(func)
    name = str(getattr(plain, "__name__", None) or type(plain).__name__).lstrip("_")
    return "lambda" if name == "<lambda>" else name or "metric"


def single_target(who: str, batch: Batch) -> Tensor:
    """The batch's target, where it is one tensor that meets one tensor of predictions.

    Raises:
        ValueError: it is not.
    """
    pred, yb = batch.pred, batch.yb
    if isinstance(pred, Tensor) and len(yb) == 1 and isinstance(yb[0], Tensor):
        return yb[0]
    raise ValueError(f"{who}: needs one tensor of predictions and one of targets, got {shape_text((pred, yb))}")


class AvgMetric(Metric):
    """The average of `func(pred, target)` over the rows: each batch counts by its size, so a ragged one counts right.

    Args:
        func: gives a scalar for a batch, the mean over its rows.
        name: the column's heading; by default the function's name.
    """

    def __init__(self, func: Callable[..., Any], name: str | None = None) -> None:
        self.name = name or function_name(func)
        plain = unwrapped(func)
        self.func: Callable[..., Any] = getattr(plain, "mean_of", func)
        self._finish: Callable[[float], float] = getattr(plain, "then", float)
        self._late = LateScalars(self._add)
        self.reset()

    def reset(self) -> None:
        """Forgets what was accumulated."""
        self._late.clear()
        self._total: float = 0.0
        self._count: float = 0

    def accumulate(self, learn: Batch) -> None:
        """Takes a batch on; nothing is read from the device."""
        value = self._of(learn)
        if value.__class__ is not Tensor or value.ndim:
            value = self._as_scalar(value)
        size = self._rows(learn)
        if value.is_cpu:  # there is nothing to wait for
            self._total += value.item() * size
            self._count += size
        else:
            self._late.append(value, size)

    @property
    def value(self) -> float | None:
        """The average over all rows; None where there were none. Waits for the device."""
        self._late.read()
        return self._finish(self._total / self._count) if self._count else None

    def join(self) -> None:
        """Adds the other processes' rows."""
        join_averages([self])

    def state_dict(self) -> dict[str, Any]:
        """What was accumulated. Waits for the device."""
        self._late.read()
        return super().state_dict()

    def _of(self, learn: Batch) -> Any:
        return self.func(learn.pred, *learn.yb)

    def _rows(self, learn: Any) -> float:
        """How many rows a batch counts for."""
        return batch_size(learn.yb or learn.xb)

    def _as_scalar(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            return torch.as_tensor(value, dtype=torch.float64)
        if value.ndim:
            raise ValueError(f"metric '{self.name}' must give one number a batch, got shape {tuple(value.shape)}")
        return value

    def _add(self, values: list[float], sizes: list[float]) -> None:
        for value, size in zip(values, sizes, strict=True):
            self._total += value * size
            self._count += size


def join_averages(metrics: Sequence[AvgMetric]) -> None:
    """Adds the other processes' rows to averages, which takes one message for all of them."""
    for metric in metrics:
        metric._late.read()
    sums = distributed.sum_numbers([number for metric in metrics for number in (metric._total, metric._count)])
    for metric, total, count in zip(metrics, sums[::2], sums[1::2], strict=True):
        metric._total, metric._count = total, round(count)


class AvgLoss(AvgMetric):
    """The average of the loss over the rows, each batch counting by its size."""

    by_steps = True

    def __init__(self) -> None:
        super().__init__(float, name="loss")
        self._finish = float

    def _of(self, learn: Batch) -> Tensor:
        return learn.loss

    def _rows(self, learn: Any) -> float:
        share = share_of(learn.dl) if getattr(learn, "training", False) else None
        # In training the mean of the processes' losses is that of the step's rows.
        return batch_size(learn.yb or learn.xb) if share is None else share.total / share.world


class AvgSmoothLoss(Metric):
    """The moving average of the training loss: each batch enters with weight ``1 - beta``, debiased.

    ``s ← beta·s + (1 - beta)·loss``, ``value = s / (1 - beta^count)``.

    Args:
        beta: how much of the average stays, in [0, 1).
    """

    name = "loss"

    def __init__(self, beta: float = 0.98) -> None:
        self.beta = in_range("beta", beta, 0, 1)
        self._late = LateScalars(self.update_all)
        self.reset()

    def reset(self) -> None:
        """Forgets what was accumulated."""
        self._late.clear()
        self.count, self._average = 0, 0.0

    def accumulate(self, learn: Batch) -> None:
        """Takes a batch's loss on; nothing is read from the device."""
        self._late.append(learn.loss)

    def join(self) -> None:
        """The mean over the processes, which have taken on as many batches each."""
        self._late.read()
        (self._average,) = distributed.mean_numbers([self._average])

    def state_dict(self) -> dict[str, float]:
        """What is needed to go on. Waits for the device."""
        self._late.read()
        return {"count": self.count, "average": self._average}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Goes on from what `state_dict` gave."""
        self._late.clear()
        self.count, self._average = int(state["count"]), state["average"]

    def update(self, loss: float) -> float:
        """Takes on a loss that has been read already; gives the average with it."""
        return self.update_all([loss])[0]

    def update_all(self, losses: Iterable[float], _: object = None) -> list[float]:
        """Takes on losses that have been read already; gives the average after each."""
        values, beta = [], self.beta
        for loss in losses:
            self.count += 1
            self._average = beta * self._average + (1 - beta) * loss
            values.append(self._average / (1 - beta**self.count))
        return values

    @property
    def value(self) -> float | None:
        """The average so far; None before the first batch. Waits for the device."""
        self._late.read()
        return self._average / (1 - self.beta**self.count) if self.count else None


class Perplexity(AvgLoss):
    """The exponential of the average loss over the rows; of a cross-entropy it is the perplexity of a language model.

    As in fastai it is the loss of whatever `loss_func` is, and each batch counts by its rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name, self._finish = "perplexity", _exp


perplexity = Perplexity
"""fastai's name: given to a Learner, the class is made anew there, so that two Learners share no sums."""


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:  # where torch says inf
        return math.inf


class LossMetric(AvgMetric):
    """The average over the rows of a part of the loss, which the loss function leaves on itself as an attribute.

    Args:
        attr: the name of the attribute of `learn.loss_func`: a scalar, set anew in each batch.
        nm: the column's heading; by default `attr`.
    Raises:
        ValueError: in the first batch, where the loss function has no such attribute.
    """

    def __init__(self, attr: str, nm: str | None = None) -> None:
        super().__init__(float, name=nm or attr)
        self.attr, self._finish = attr, float

    def _of(self, learn: Any) -> Any:
        loss_func = unwrapped(learn.loss_func)
        if not hasattr(loss_func, self.attr):
            raise ValueError(
                f"LossMetric: the loss function, {function_name(loss_func)}, has no attribute '{self.attr}':"
                f" it must set self.{self.attr} in each batch"
            )
        return getattr(loss_func, self.attr)


def LossMetrics(attrs: str | Sequence[str], nms: str | Sequence[str] | None = None) -> list[Metric]:
    """A `LossMetric` for each of several attributes of the loss function.

    Args:
        attrs: names, a list or one text with commas.
        nms: the columns' headings, as many; by default the names.
    Raises:
        ValueError: there are not as many headings as names.

    >>> [metric.name for metric in LossMetrics("content,style")]
    ['content', 'style']
    """
    names = attrs.split(",") if isinstance(attrs, str) else list(attrs)
    headings = names if nms is None else nms.split(",") if isinstance(nms, str) else list(nms)
    if len(headings) != len(names):
        raise ValueError(f"nms must have a name for each of attrs, {len(names)}, got {len(headings)}")
    return [LossMetric(attr, heading) for attr, heading in zip(names, headings, strict=True)]


class ValueMetric(Metric):
    """A figure that somebody else works out, a callback for example, read when the epoch's row is written.

    Args:
        func: called without arguments, gives the number, or None where there is none.
        metric_name: the column's heading; by default the function's name.
    """

    def __init__(self, func: Callable[[], Any], metric_name: str | None = None) -> None:
        self.func, self.name = func, metric_name or function_name(func)

        self._joined: list[float | None] = []

    def reset(self) -> None:
        """Nothing is kept."""
        self._joined = []

    def accumulate(self, learn: Batch) -> None:
        """Nothing is taken from a batch."""

    def join(self) -> None:
        """Every process asks `func`, and takes what rank 0's says."""
        self._joined = []
        self._joined = [distributed.from_main(self.value)]

    @property
    def value(self) -> float | None:
        """What `func` says now; in several processes, what rank 0's said when they joined."""
        if self._joined:
            return self._joined[0]
        value = self.func()
        return None if value is None else float(value)

"""Averages of the weights over the course of a fit: in the model whenever it is looked at, out of it in training."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import get_ema_multi_avg_fn

from minilearn import distributed
from minilearn.callback import Callback
from minilearn.callbacks.device import DevicePlacement
from minilearn.errors import in_range
from minilearn.optim.pieces import piece_for, piece_of
from minilearn.sharding import reshard

Tensors = list[Tensor]
Update = Callable[[Tensors, Tensors, int], None]
"""Takes weights into an average of so many."""

HALVES = (torch.float16, torch.bfloat16)
"""Precisions too coarse to average in: a step of a thousandth would be rounded away."""


class WeightAverage(Callback):
    """What `EMA` and `SWA` share: when an average of the weights is in the model, and when it is not.

    In training the model has its own weights. At the end of an epoch's training they are set aside and the average is
    written over them (`copy_`: a compiled graph goes on with the same tensors), so that validation, predictions and
    whatever saves the model see the average; the next epoch's training begins with the weights that were set aside.
    A validation that a callback asks for in the middle of training sees the average too. After the fit, whatever ended
    it, the average stays in the model, and a next fit trains on from it and averages anew.

    Memory: the average once more than the weights, and while it is in the model the weights once more.

    Args:
        leaves_average: whether the average is in the model after the fit; else the weights are, and `average` has it.
    Raises:
        ValueError: when a fit begins: there are two averages, or the optimizer has one of its own.
    """

    order = DevicePlacement.order + 1  # the model is on its device; whoever saves or measures comes later
    run_valid = False
    run_search = False  # what a search trains is thrown away
    acts_in_step = False  # it reads the weights after the step

    average: dict[str, Tensor]
    """The average by the parameters' names (and those of running statistics), from the first step on; empty before."""
    n_averaged: int
    """How many times the weights have entered the average."""

    def __init__(self, leaves_average: bool = True) -> None:
        self.leaves_average = leaves_average
        self._fitting, self._in_training_part = False, False
        self._pending: Mapping[str, Any] | None = None
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """The average, how many it is of, and the weights set aside while it is in the model: no copies."""
        return {"n_averaged": self.n_averaged, "average": dict(self.average), "weights": dict(self._weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave, in the fit that runs or else in the next one.

        Raises:
            ValueError: the state is of a model with other parameters.
        """
        if self._fitting:
            self._take_on(state)
        else:
            self._pending = state

    def before_fit(self) -> None:
        self._refuse()
        self._forget()
        self._fitting, state, self._pending = True, self._pending, None
        if state is not None:
            self._take_on(state)

    def before_train(self) -> None:
        self._in_training_part = True
        self._take_out()

    def before_batch(self) -> None:
        self._take_out()  # it is in where a validation in the middle of training failed, and its error was caught

    def before_step(self) -> None:
        self._take_out()  # what is left of accumulated gradients is stepped in after_train, where it is in

    def after_train(self) -> None:
        self._in_training_part = False
        # Layers that normalise have seen other rows in each process: rank 0's running averages count.
        parameters = dict(self.model.named_parameters())
        distributed.same_as_main(t for name, t in self.average.items() if name not in parameters)
        self._put_in()

    def before_validate(self) -> None:
        self._put_in()

    def after_validate(self) -> None:
        if self._in_training_part:  # a callback's look in between
            self._take_out()

    def after_epoch(self) -> None:
        self._in_training_part = False  # after_train does not come where the epoch was cancelled
        self._put_in()

    def after_fit(self) -> None:
        self._end()  # before a callback that brings back the best weights

    def cleanup_fit(self) -> None:
        self._end()

    def averaged(self) -> dict[str, Tensor]:
        """The model's tensors that enter the average, by name."""
        return dict(self.model.named_parameters())

    def set_aside(self) -> dict[str, Tensor]:
        """The model's tensors that are another's with the average than with the weights, by name."""
        return self.averaged()

    def _forget(self) -> None:
        self.average, self.n_averaged = {}, 0
        self._own: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._columns: list[tuple[Tensors, Tensors]] = []

    def _refuse(self) -> None:
        name = type(self).__name__
        for cb in self.learn.cbs:
            if isinstance(cb, WeightAverage) and cb is not self:
                raise ValueError(f"{name} and {type(cb).__name__} would both be in the model: one only")
        if all(callable(getattr(self.opt, mode, None)) for mode in ("train", "eval")):
            raise ValueError(f"{type(self.opt).__name__} averages the weights itself: leave {name} out")

    def _begin(self) -> None:
        """Makes the lists that are worked on in each step, and the average, of the weights as they are."""
        self._own = {name: t for name, t in self.set_aside().items() if not t.is_meta}
        self.average = {
            name: t.detach().to(torch.float32 if t.dtype in HALVES else t.dtype, copy=True)
            for name, t in self._own.items()
        }
        columns: dict[Any, tuple[Tensors, Tensors]] = {}
        for name, t in self.averaged().items():
            if t.is_floating_point() or t.is_complex():
                average, own = columns.setdefault((t.device, t.dtype), ([], []))
                average.append(piece_of(self.average[name]))
                own.append(t)
        self._columns = list(columns.values())

    def _average_with(self, function: Update) -> None:
        """Takes the weights into the average; the first ones are the average."""
        if not self.n_averaged:
            self._begin()
        else:
            for average, own in self._columns:
                now = [piece_of(t) for t in own]  # of a sharded parameter; loading may have laid it elsewhere
                function(average, [t.float() for t in now] if now[0].dtype in HALVES else now, self.n_averaged)
        self.n_averaged += 1

    def _put_in(self) -> None:
        if self._fitting and self.n_averaged and not self._weights:
            reshard(self.model)
            self._weights = {name: t.detach().clone() for name, t in self._own.items()}
            _write(self._own, self.average)

    def _take_out(self) -> None:
        if self._weights:
            reshard(self.model)
            _write(self._own, self._weights)
            self._weights = {}

    def _end(self) -> None:
        if self.leaves_average:
            self._put_in()
            if self._weights:
                _write(self._own, self.average)  # once more: Ctrl-C may have come in the midst of it
        else:
            self._take_out()
        self._own, self._weights, self._columns = {}, {}, []
        self._fitting = self._in_training_part = False

    def _take_on(self, state: Mapping[str, Any]) -> None:
        self._forget()
        if not state["n_averaged"]:
            return
        self._begin()
        for kind in ("average", "weights"):
            held = state[kind]
            if wrong := [name for name in held if name not in self._own] or [
                n for n in self._own if held and n not in held
            ]:
                raise ValueError(
                    f"{type(self).__name__}: the state is of a model with other parameters: '{wrong[0]}' is in one of"
                    f" the two only"
                )
        _write(self.average, state["average"])
        self._weights = {name: t.to(self._own[name].device, copy=True) for name, t in state["weights"].items()}
        self.n_averaged = state["n_averaged"]


class EMA(WeightAverage):
    """Keeps a moving average of the weights, taken after each step: ``average ← d·average + (1 - d)·weights``.

    In the first steps `d` is smaller than `decay`, ``min(decay, (1 + t) / (10 + t))`` at the average's t-th change: so
    the average follows from the start, and a short fit is not validated with the weights that it began with. After a
    cancelled step (accumulated gradients) nothing is averaged. When it is in the model: see `WeightAverage`.

    A batch costs one multi-tensor `lerp` on the weights: on a CPU 20 µs for 10 small tensors, 0.5 ms for 1.2 million
    numbers, and 10 µs more in the first steps. Nothing waits for a device; a compiled step stays one graph.

    Args:
        decay: how much of the average stays at each step, in [0, 1).
        warmup: whether `d` begins smaller; without it the sums are those of torch's `AveragedModel`, and a fit should
            be much longer than 1 / (1 - decay) steps.
        norm_stats: whether the running statistics of normalisation layers are averaged too; else they stay those of
            the weights.
        leaves_average: whether the average is in the model after the fit; else the weights are, and `average` has it.
    Raises:
        ValueError: `decay` is outside [0, 1); when a fit begins: there are two averages, or the optimizer has its own.
    Source: `get_ema_multi_avg_fn` of torch.optim.swa_utils; the beginning as in TensorFlow's
        `ExponentialMovingAverage(num_updates=…)`.

    >>> ema = EMA(0.99)
    """

    order = WeightAverage.order

    def __init__(
        self, decay: float = 0.999, *, warmup: bool = True, norm_stats: bool = True, leaves_average: bool = True
    ) -> None:
        super().__init__(leaves_average)
        self.decay, self.warmup, self.norm_stats = in_range("decay", decay, 0, 1), warmup, norm_stats
        self._steady = _moving(self.decay)

    def after_cancel_step(self) -> None:
        self._cancelled = True

    def after_step(self) -> None:
        if self._cancelled:
            self._cancelled = False
            return
        now = (1 + self.n_averaged) / (10 + self.n_averaged)
        warm = self.warmup and now < self.decay
        self._average_with(_moving(now) if warm else self._steady)

    def averaged(self) -> dict[str, Tensor]:
        """The model's parameters, and the running means and variances of its normalisation layers, by name."""
        return super().averaged() | (_statistics(self.model) if self.norm_stats else {})

    def _forget(self) -> None:
        super()._forget()
        self._cancelled = False


def _moving(decay: float) -> Update:
    """torch's function of average, weights and count, for a moving average."""
    function: Update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return function


def _write(into: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Writes values over tensors of the same names.

    Through `data`, which autograd does not watch: between a batch's forward and backward pass a callback may validate,
    after which the weights are bit for bit what they were.
    """
    for name, t in into.items():
        piece_of(t).data.copy_(piece_for(values[name], t))


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """The running means and variances of normalisation layers, by name."""
    return {
        f"{place}.{name}" if place else name: t
        for place, module in model.named_modules()
        if isinstance(module, _NormBase)
        for name, t in module.named_buffers(recurse=False)
        if t.is_floating_point()
    }

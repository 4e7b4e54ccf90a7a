"""A training that blows up: seen where the loss is read anyway, explained, ended or taken back."""

import copy
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from minilearn import distributed
from minilearn.batches import own_loss, prediction_of
from minilearn.callback import Callback, CancelBatchException
from minilearn.callbacks.average import WeightAverage
from minilearn.callbacks.checkpoint import Checkpoint
from minilearn.callbacks.lr_find import LRFinder
from minilearn.callbacks.precision import MixedPrecision, autocast_for, in_float32
from minilearn.callbacks.recorder import Recorder
from minilearn.callbacks.swa import SWA
from minilearn.diagnosis import Diagnosis, diagnose, not_finite, weights_are_finite
from minilearn.errors import did_you_mean, in_range, warn, whole
from minilearn.job_errors import of_all
from minilearn.tensors import map_tensors
from minilearn.votes import votes

if TYPE_CHECKING:
    from minilearn.learner import Learner

ANSWERS = ("stop", "warn", "restore")
LOOK_EVERY, LOOKS, FAR = 16, 3, 30.0
"""Far above its best, and rising: at `LOOKS` looks in a row, one each `LOOK_EVERY` recorded losses, the average loss is
more than its least plus `FAR` times its first, and more than at the look before."""
FEWEST = 8
"""A fit too short for so many looks is judged at its end, where it has at least as many losses as this."""
FIRST = 1 << 52
"""What a process answers whose loss is no number: this, less the batch and its own number. The largest was first."""
GO_BACK_TOO = (WeightAverage, MixedPrecision)
"""The callbacks whose state belongs to the weights: it goes back with them."""


class DivergenceError(ArithmeticError):
    """The training loss, or a weight, is not a finite number any more; the message says since when, where and why."""


class Divergence(Callback):
    """Names a training that blows up: where it began, at which rate, which layer was first; and ends it.

    - `after_loss`: has a loss that the Recorder has read been nan or infinite? From a CPU it is the batch's own, before
      its step (with a compiled step, after it); from a GPU it is seen some hundred batches late, or at the end of the
      epoch's training. Nothing waits.
    - `after_train`, and whenever a checkpoint is to be written: are the weights finite? So no checkpoint with weights
      that are not takes the place of a good one, and no fit ends with such weights in silence.
    - Then the batch at hand is carried out once more with a look at every layer (`diagnose`).
    - Once a fit, a warning where the average loss is far above its best and rising (`FAR`), whatever `on_divergence`
      says; at the end of a fit, however short, also where the rise began too late for that. A loss that is below zero
      has no scale to judge this by, and gets none.

    Of several processes all do the same at the same batch, some tenths of a second after one has seen it; the text is
    of the one whose loss was the first that is no number, and names its rank.

    Of several in a fit the last one given counts, so ``learn.fit(1, cbs=Divergence("restore"))`` takes the place of the
    default one. Without a Recorder, and beside an `LRFinder`, it does nothing. Costs 0.4 µs a batch, one pass over the
    weights an epoch and a checkpoint; with "restore" a copy of model and optimizer in memory, taken at the beginning of
    each epoch. It only looks on, so steps may be compiled whole.

    Args:
        on_divergence: what is done. "stop": the fit ends with a `DivergenceError`; the Learner can be used, but its
            weights may be nan. "warn": a warning, and the fit goes on. "restore": weights, averages of them and the
            optimizer's state go back to the beginning of the epoch, the rest of the fit goes on at a lower rate; what
            was recorded stays, and so do the batches' numbers.
        lr_factor: with "restore", what the learning rate is multiplied by each time, in (0, 1), schedules or not.
        max_restores: with "restore", how often in a fit; then it is a "stop".
    Raises:
        ValueError: an argument is out of its range.
        DivergenceError: in a fit: the loss or a weight is not finite.
    """

    order = SWA.order + 1  # after the Recorder has read the loss; has the last word on the rate
    acts_in_step = False
    run_valid = False
    run_search = False  # a search ends itself

    def __init__(self, on_divergence: str = "stop", lr_factor: float = 0.1, max_restores: int = 3) -> None:
        if on_divergence not in ANSWERS:
            near = did_you_mean(on_divergence, ANSWERS) if isinstance(on_divergence, str) else "."
            raise ValueError(f"on_divergence must be 'stop', 'warn' or 'restore', got {on_divergence!r}{near}")
        self.on_divergence = on_divergence
        self.lr_factor = in_range("lr_factor", lr_factor, 0, 1, open_low=True)
        self.max_restores = whole("max_restores", max_restores, 1)
        self._recorder: Recorder | None = None
        self._rates: list[Any] = []
        self._never_finite: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        self.restores = 0
        self._told = self._judged = False
        self._next, self._rising = LOOK_EVERY, 0
        self._first = self._best = self._last = math.nan
        self._kept: dict[str, Any] | None = None
        self._text = ""

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """What was seen, and what "restore" keeps. In a fit also the last look at the weights before a checkpoint.

        Raises:
            DivergenceError: the weights are not finite: a checkpoint of them would take the place of a good one.
        """
        if self._recorder is not None:
            self._look_at_weights()
        names = ("restores", "_told", "_judged", "_next", "_rising", "_first", "_best", "_last", "_kept")
        return {name.strip("_"): getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self.restores = state["restores"]
        for name, value in state.items():
            if name != "restores":
                setattr(self, f"_{name}", copy.deepcopy(value))
        if self.restores and "learn" in self.__dict__:
            self.learn.build_handlers()

    # ---- the events ----

    def before_fit(self) -> None:
        self._forget()
        cbs = self.learn.cbs
        after = cbs[next(i for i, cb in enumerate(cbs) if cb is self) + 1 :]
        rests = any(isinstance(cb, Divergence) for cb in after) or any(isinstance(cb, LRFinder) for cb in cbs)
        recorders = [cb for cb in cbs if isinstance(cb, Recorder)]
        self._recorder = recorders[0] if recorders and not rests else None
        self._never_finite = set()  # else such as a table that masks with -inf, which is trained all the same
        if self._recorder is not None and not weights_are_finite(self._trained().values()):
            self._never_finite = set(not_finite(self._trained()))

    def before_epoch(self) -> None:
        if self._recorder is None:
            return
        self._next = min(self._next, len(self._recorder.arrived) + LOOK_EVERY)  # as every second one may have gone

    def before_train(self) -> None:
        watching = self._recorder is not None and self.on_divergence == "restore"
        if watching and weights_are_finite(self._trained().values()):
            self._kept = self._keep()
        if not self.restores:  # `_go_back` and `load_state_dict` wake them
            self.learn.rest_cb(self, "before_batch", "after_step")

    def before_batch(self) -> None:
        if self.restores:
            self._slow_down()

    def after_loss(self) -> None:
        recorder = self._recorder
        if recorder is None:
            return
        at = recorder.nan_at
        if (at is not None or votes.open) and (
            seen := votes.ask("diverged", 0 if at is None or self._told else self._seen(at))
        ):
            self._answer(seen)
            if self.on_divergence == "restore":
                self.opt.zero_grad()
                raise CancelBatchException
        elif self._next < len(recorder.arrived):
            self._look(recorder)

    def after_step(self) -> None:
        self._put_rates_back()

    def after_cancel_batch(self) -> None:
        self._put_rates_back()

    def after_cancel_train(self) -> None:
        self._put_rates_back()

    def after_train(self) -> None:
        if self._recorder is not None:
            average = self._recorder.smooth_loss.value  # of all processes by now
            self._look_at_weights(losses_too=average is not None and not math.isfinite(average))
            if self.epoch + 1 == self.n_epoch:
                self._look_back(self._recorder.losses)

    def after_cancel_epoch(self) -> None:
        self._put_rates_back()

    def after_cancel_fit(self) -> None:
        self._put_rates_back()

    def cleanup_fit(self) -> None:
        self._put_rates_back()
        self._recorder, self._kept = None, None

    # ---- looking ----

    def _trained(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _look_at_weights(self, losses_too: bool = True) -> None:
        """Answers where a weight is not finite; with `losses_too`, where a loss of any process was not, either."""
        assert self._recorder is not None
        if self._told:
            return
        at = self._recorder.nan_at
        if seen := losses_too and votes.at_once("diverged", 0 if at is None else self._seen(at)):
            self._answer(seen)
        elif not weights_are_finite(self._trained().values()):
            bad = [name for name in not_finite(self._trained()) if name not in self._never_finite]
            if bad:
                self._answer(self._seen(self._recorder.smooth_loss.count), bad)

    def _seen(self, batch: int) -> int:
        """This process's answer: a loss, or a weight, is no number since this batch. What it can tell, it notes now."""
        if votes.open and self._recorder is not None and self._recorder.nan_at is not None and not self._text:
            self._text = f"rank {distributed.rank()}: {self._what_happened(None)}"
        return FIRST - batch * distributed.world_size() - distributed.rank()

    def _look(self, recorder: Recorder) -> None:
        """Judges the losses that have arrived since the last look."""
        while self._next < len(recorder.arrived):
            loss, self._next = recorder.arrived[self._next], self._next + LOOK_EVERY
            if math.isnan(self._first):
                self._judged = not min(recorder.arrived[: self._next]) >= 0
                self._first = max(loss, recorder.arrived[0])
                self._best, self._last = min(recorder.arrived[: self._next]), loss
            if self._judged or not loss >= 0:
                self._judged = True
                continue
            self._best = min(self._best, loss)
            far = loss > self._best + FAR * self._first
            self._rising = self._rising + 1 if far and loss > self._last else 0
            self._last = loss
            if self._rising >= LOOKS and self._first > 0:
                self._warn_of_rise(loss, self._best)

    def _look_back(self, losses: list[float]) -> None:
        """Judges a fit at its end: a small one may blow up between two looks, or before the last of `LOOKS`.

        It is named where the average loss, at the end and at two points shortly before, is far above the highest of the
        fit's first quarter, and rising.
        """
        if self._told or self._judged or len(losses) < FEWEST or not min(losses) >= 0:
            return
        first, best, apart = max(losses[: len(losses) // 4]), min(losses), max(1, len(losses) // LOOK_EVERY)
        ends = losses[-1 - (LOOKS - 1) * apart :: apart]
        if first > 0 and best + FAR * first < ends[0] and all(a < b for a, b in pairwise(ends)):
            self._warn_of_rise(losses[-1], best)

    def _warn_of_rise(self, loss: float, best: float) -> None:
        self._judged = True
        lr = self.opt.param_groups[-1]["lr"]
        warn(
            f"the training is diverging: its loss is rising far above its best, it is {loss:.4g} on average, and was"
            f" {best:.4g} (epoch {self.epoch}, batch {self.iter}, learning rate {lr:g},"
            f" {self._gradient_text(self._diagnose())}). Where that is not meant, try a learning rate of"
            f" {lr / 10:.2g}, or let learn.lr_find() look for one."
        )

    # ---- naming ----

    def _answer(self, seen: int, bad: list[str] | None = None) -> None:
        """Does what `on_divergence` says. `bad`: the parameters that are not finite, though no loss has shown it."""
        if votes.open and not bad:
            text = distributed.of_rank(self._text, (FIRST - seen) % distributed.world_size())
        else:
            text = self._what_happened(bad)
        self._text = ""
        if self.on_divergence == "warn":
            self._told = True
            warn(text)
            return
        if self.on_divergence == "restore" and self._kept is not None and self.restores < self.max_restores:
            self._go_back()
            rate = self.lr_factor**self.restores
            warn(
                f"{text} Model and optimizer are as at the beginning of epoch {self.epoch} again; the fit goes on with"
                f" {rate:.3g} of its learning rate ({self.restores} of at most {self.max_restores} times)."
            )
            return
        raise of_all(DivergenceError(text + self._what_now()))

    def _what_happened(self, bad: list[str] | None) -> str:
        recorder = self._recorder
        assert recorder is not None
        done = recorder.iters[-1] if recorder.iters else 0
        rates, at = recorder.lrs, recorder.nan_at
        if bad:
            lr = rates[-1] if rates else math.nan
            others = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            what = f"the parameter '{bad[0]}'{others} is no longer finite, though all losses up to epoch {self.epoch}"
            return f"{what}, batch {recorder.smooth_loss.count - 1 - done} were (learning rate {lr:g}). {_advice(lr)}"
        assert at is not None
        lr = rates[min(at // recorder.stride, len(rates) - 1)]
        found = self._diagnose()
        what = (
            f"the training loss is not a finite number since epoch {self.epoch}, batch {at - done} (batch {at} of this"
            f" fit, both from 0), at a learning rate of {lr:g}; {self._gradient_text(found)}."
        )
        cause = f" {found.cause[0].upper()}{found.cause[1:]}." if found is not None else ""
        if found is not None and found.in_data:
            return f"{what}{cause} Clean the data, or leave those rows out."
        if at == 0 and not (found is not None and found.in_weights):
            return f"{what}{cause} No step had been taken, so the learning rate is not the cause."
        return f"{what}{cause} {_advice(lr)}"

    def _what_now(self) -> str:
        if self.restores:
            return f" The fit went back {self.restores} times already."
        kept = [str(self.learn.path / cb.path) for cb in self.learn.cbs if isinstance(cb, Checkpoint)]
        return f" The last checkpoint, of finite weights, is in {kept[0]}." if kept else ""

    def _diagnose(self) -> Diagnosis | None:
        """Looks at the batch at hand, where there is one."""
        learn = self.learn
        if "xb" not in learn.__dict__:
            return None
        precision = None
        for cb in learn.cbs:
            if isinstance(cb, MixedPrecision) and cb.dtype is not None:
                device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
                precision = autocast_for(device, cb.dtype)

        def loss_of(output: Any) -> Tensor:
            if "output" in learn.__dict__ or learn.loss_func is None:
                loss: Tensor = own_loss(output)
                return loss
            return learn.loss_func(map_tensors(in_float32, prediction_of(output)), *learn.yb)

        return diagnose(learn.model, learn.xb, learn.yb, loss_of, precision)

    def _gradient_text(self, found: Diagnosis | None) -> str:
        return "the gradients' norm is unknown" if found is None else f"the gradients' norm is {found.grad_norm:.3g}"

    # ---- going back ----

    def _keep(self) -> dict[str, Any] | None:
        """A copy of what "restore" goes back to; None where a layer has no weights yet."""
        learn = self.learn
        if any(is_lazy(value) for value in _weights(learn).values()):
            return None
        return {
            "weights": {name: value.detach().clone() for name, value in _weights(learn).items()},
            "opt": copy.deepcopy(learn.opt.state_dict()["state"]),
            "loss": None if self._recorder is None else self._recorder.smooth_loss.value,
            "callbacks": [copy.deepcopy(dict(cb.state_dict())) for cb in _going_back(learn)],
        }

    def _go_back(self) -> None:
        learn, kept, recorder = self.learn, self._kept, self._recorder
        assert kept is not None
        assert recorder is not None
        self._put_rates_back()
        with torch.no_grad():
            for name, value in _weights(learn).items():
                value.copy_(kept["weights"][name])
        groups = learn.opt.state_dict()["param_groups"]  # rates and momenta go on as they are
        learn.opt.load_state_dict({"state": copy.deepcopy(kept["opt"]), "param_groups": groups})
        for cb, state in zip(_going_back(learn), kept["callbacks"], strict=True):
            cb.load_state_dict(copy.deepcopy(state))
        recorder.forgive(kept["loss"])
        self.restores += 1
        learn.build_handlers()
        self._next = len(recorder.arrived) + LOOK_EVERY

    def _slow_down(self) -> None:
        """Lowers the rates that the batch begins with, whoever has set them; `_put_rates_back` comes after the step.

        So a schedule that computes a rate from the one before finds its own.
        """
        self._put_rates_back()
        self._rates = [group["lr"] for group in self.opt.param_groups]
        for group in self.opt.param_groups:
            group["lr"] = group["lr"] * self.lr_factor**self.restores

    def _put_rates_back(self) -> None:
        if self._rates:
            for group, lr in zip(self.opt.param_groups, self._rates, strict=True):
                group["lr"] = lr
            self._rates = []


def _advice(lr: float) -> str:
    return (
        f"Try a learning rate of {lr / 10:.2g}, let learn.lr_find() look for one, or clip the gradients,"
        " cbs=GradientClip(); cbs=Divergence('restore') goes back and on at a lower rate by itself."
    )


def _weights(learn: "Learner") -> dict[str, Tensor]:
    """Parameters and buffers; a tied one once."""
    return {**dict(learn.model.named_parameters()), **dict(learn.model.named_buffers())}


def _going_back(learn: "Learner") -> Iterator[Callback]:
    return (cb for cb in learn.cbs if isinstance(cb, GO_BACK_TOO))

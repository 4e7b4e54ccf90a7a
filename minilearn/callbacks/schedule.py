"""Hyperparameters that change over a fit: by schedules of the share that is done, or by torch's schedulers."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from minilearn.callback import Callback
from minilearn.callbacks.recorder import Recorder
from minilearn.callbacks.train_eval import TrainEval
from minilearn.data.loader import length
from minilearn.data.shares import steps
from minilearn.errors import describe, did_you_mean, warn
from minilearn.optim.groups import hyper_name, set_hyper
from minilearn.optim.hypers import HYPERS, OF_TORCHS_SCHEDULERS, Setter, place

LayerSchedule = Callable[[float], float | Sequence[float]]
"""Gives, for the share of training that is done, a value for every layer, or a list with one for each."""


class ParamScheduler(Callback):
    """Sets hyperparameters before each training batch, by the share of the fit's training that is done (`pct_train`).

    The first batch is at 0, the last at 1 - 1/batches; batches count, not steps, so cancelled ones and those whose
    gradients are gathered for a later step move the schedule too. A fit that begins at `start_epoch` uses just the
    values that the whole fit uses from there on. After the fit, whatever ended it, the optimizer has again what it had
    before: the next one does not train with a leftover. What was used is in `learn.recorder.hps`. A batch costs 25 µs
    a name on a CPU, 50 µs where layers have rates of their own.

    Over a loader without a length the share is known at the start of each epoch only, so the schedule moves once an
    epoch; a warning says so.

    Args:
        scheds: for each name (``lr``, ``mom``, ``wd``, …) a function of the share, in [0, 1], that gives a value, or a
            list of one value a layer.
    Raises:
        TypeError: `scheds` is no dict of functions.
        ValueError: when a fit begins: the optimizer has no such hyperparameter, or another callback schedules it; the
            number of values is not that of its layers, the Learner has no `TrainEval`, which counts, or a fit of one
            epoch is over a loader without a length.
    Source: the moment and the meaning of the share are those of `ParamScheduler` in fastai 2.8.

    >>> from minilearn.schedule import SchedCos
    >>> falling = ParamScheduler({"lr": SchedCos(0.1, 0.0)})
    """

    order = Recorder.order + 10  # fastai's 60: after callbacks that would set a rate of their own
    run_valid = False
    run_search = False  # a search sets the rate itself

    def __init__(self, scheds: Mapping[str, LayerSchedule]) -> None:
        if not isinstance(scheds, Mapping):
            raise TypeError(f"scheds must be a dict of names and schedules, got {describe(scheds)}")
        for name, sched in scheds.items():
            if not callable(sched):
                raise TypeError(
                    f"scheds['{name}'] must be a function of the share of training that is done, such as"
                    f" SchedCos(0.1, 0.0), got {describe(sched)}"
                )
        self.scheds = dict(scheds)
        self._before: list[dict[str, Any]] | None = None
        self._opt: Optimizer | None = None
        self._set_for: Optimizer | None = None
        self._setters: list[tuple[LayerSchedule, Setter]] = []

    def state_dict(self) -> dict[str, Any]:
        """What the optimizer had before the fit, a dict a group."""
        return {"before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes on what the optimizer had before the fit that is gone on with."""
        self._before = state["before"] or self._before

    def before_fit(self) -> None:
        self._look_at_names()
        if not any(isinstance(cb, TrainEval) for cb in self.learn.cbs):
            raise ValueError("a schedule needs TrainEval, which counts how far training has come: add cbs=TrainEval()")
        self._look_at_length()
        if self._before is None:
            self._before = [_kept(group, self.scheds) for group in self.opt.param_groups]
        self._opt = self.opt
        self._set(self.epoch / self.n_epoch if self.n_epoch else 0.0)

    def before_batch(self) -> None:
        self._set(min(self.pct_train, 1.0))

    def cleanup_fit(self) -> None:
        if self._opt is not None and self._before is not None:
            put_back(self._opt, self._before)
        self._opt = self._before = self._set_for = None
        self._setters = []

    def _set(self, share: float) -> None:
        if self._set_for is not self.learn.opt:
            self._set_for = opt = self.learn.opt
            self._setters = [(sched, Setter(opt, name, set_hyper)) for name, sched in self.scheds.items()]
        for sched, setter in self._setters:
            setter(sched(share))

    def _look_at_names(self) -> None:
        """Refuses a hyperparameter that the optimizer does not have, or that another callback schedules too."""
        own = [hyper_name(self.opt, name) for name in self.scheds]
        for cb in self.learn.cbs:
            if isinstance(cb, TorchScheduler):
                others = ["lr"]
            elif isinstance(cb, ParamScheduler) and cb is not self:
                others = [hyper_name(self.opt, name) for name in cb.scheds]
            else:
                continue
            if twice := [name for name in own if name in others]:
                raise ValueError(
                    f"{twice[0]} has two schedules in this fit, one of ParamScheduler (fit_one_cycle and its like have"
                    f" one) and one of {type(cb).__name__}, of which only the last would count: leave one out"
                )

    def _look_at_length(self) -> None:
        if length(self.dls.train) is not None:
            return
        says = "the training loader has no length (__len__), so how far training has come is known once an epoch only"
        if self.n_epoch == 1:
            raise ValueError(
                f"{says}: in a fit of one epoch, a schedule would stay at its start. Give the loader a __len__, or"
                " train for more epochs in one fit"
            )
        warn(f"{says}: the schedule moves from epoch to epoch, not from batch to batch")


class TorchScheduler(Callback):
    """Drives one of torch's learning rate schedulers, made anew for each fit.

    A parameter `total_steps` or `T_max` that is left open gets the number of steps of the fit, in a function of your
    own too. A fit that begins at `start_epoch` takes the steps of the epochs before it at once; `ReduceLROnPlateau`
    knows their figures only from a checkpoint, and else begins anew. After the fit, whatever ended it, the optimizer
    has again what it had before. A batch costs nothing by the epoch; by the batch 40 µs on a CPU.

    Args:
        sched_func: called with the optimizer, gives a scheduler: ``partial(StepLR, step_size=2)``, or for one that is
            made of others ``lambda opt: SequentialLR(opt, [LinearLR(opt), …], milestones=[…])``.
        step_per: "epoch", or "batch": after each training batch, also after one whose step was cancelled.
        monitor: the figure of the table that `ReduceLROnPlateau` watches.
    Raises:
        TypeError: `sched_func` is no function, or gives no scheduler.
        ValueError: `step_per` is neither; or when a fit begins: there is no figure `monitor`, a figure of the epoch
            is to be watched every batch, or the number of batches is needed and the loader has no length.

    >>> from functools import partial
    >>> from torch.optim.lr_scheduler import StepLR
    >>> halved = TorchScheduler(partial(StepLR, step_size=2, gamma=0.5))
    """

    order = ParamScheduler.order  # after the Recorder, whose row it reads
    run_valid = False
    run_search = False  # a search sets the rate itself

    sched: Any
    """The scheduler of the fit."""

    def __init__(self, sched_func: Callable[..., Any], step_per: str = "epoch", monitor: str = "valid_loss") -> None:
        if not callable(sched_func):
            raise TypeError(
                "sched_func must be a function of the optimizer, such as partial(StepLR, step_size=2),"
                f" got {describe(sched_func)}"
            )
        if step_per not in {"batch", "epoch"}:
            raise ValueError(f"step_per must be 'batch' or 'epoch', got {step_per!r}")
        self.sched_func, self.step_per, self.monitor = sched_func, step_per, monitor
        self._steps = 0
        self._figures: list[float] = []
        self._before: list[dict[str, Any]] | None = None
        self._opt: Optimizer | None = None

    def state_dict(self) -> dict[str, Any]:
        """The steps taken, the figures watched, and what the optimizer had before the fit, a dict a group."""
        return {"steps": self._steps, "figures": list(self._figures), "before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` was taken, with the rates of that fit, whatever this one's `lr` is."""
        self._steps, self._figures = state["steps"], list(state["figures"])
        self._before = state["before"] or self._before
        if self._opt is not None:
            self._begin(self._opt)

    def before_fit(self) -> None:
        if self._before is None:
            self._before = [_kept(group, HYPERS) | _of_torch(group) for group in self.opt.param_groups]
            self._figures = []
            self._steps = self.epoch * (self._batches("start_epoch") if self.step_per == "batch" and self.epoch else 1)
        self._begin(self.opt)
        if isinstance(self.sched, ReduceLROnPlateau):
            self._look_at_figures()

    def after_batch(self) -> None:
        if self.step_per == "batch":
            self._step()

    def after_epoch(self) -> None:
        if self.step_per == "batch":
            return
        if not isinstance(self.sched, ReduceLROnPlateau):
            self._step()
            return
        recorder = self.learn.recorder
        figure = recorder.values[-1][recorder.column_names.index(self.monitor)]
        if figure is not None:  # its part of the epoch was cancelled
            self._figures.append(figure)
            self._step(figure)

    def cleanup_fit(self) -> None:
        if self._opt is not None and self._before is not None:
            self._put_back(self._opt)
        self._opt = self._before = None

    def _begin(self, opt: Optimizer) -> None:
        """Makes the scheduler over the optimizer as it was before the fit, and takes the steps that were taken."""
        self._opt = opt
        self._put_back(opt)
        for group in opt.param_groups:
            group.pop("initial_lr", None)  # a scheduler of an earlier fit left it, and torch would start from it
        with _unwarned():
            self.sched = self.sched_func(opt, **self._total())
            if not hasattr(self.sched, "step"):
                raise TypeError(f"sched_func must give one of torch's schedulers, got {describe(self.sched)}")
            steps, self._steps = self._steps, 0
            if isinstance(self.sched, ReduceLROnPlateau):
                for figure in self._figures:
                    self._step(figure)
            else:
                for _ in range(steps):
                    self._step()

    def _step(self, *figure: float) -> None:
        self._steps += 1
        if self._steps > 1:
            self.sched.step(*figure)
            return
        with _unwarned():  # torch looks whether the optimizer was before it at the first step alone
            self.sched.step(*figure)

    def _total(self) -> dict[str, int]:
        """The number of the fit's steps, under the name by which the scheduler asks for it."""
        asked = inspect.signature(self.sched_func).parameters
        if "epochs" in asked and asked["epochs"].default is not None:  # OneCycleLR's other way
            return {}
        names = [name for name in ("total_steps", "T_max") if name in asked]
        names = [
            name for name in names if asked[name].default is None or asked[name].default is inspect.Parameter.empty
        ]
        return {name: self.n_epoch * (self._batches(name) if self.step_per == "batch" else 1) for name in names}

    def _batches(self, name: str) -> int:
        n = steps(self.dls.train)
        if n is None:
            raise ValueError(
                f"the training loader has no length (__len__), which {name} needs with step_per='batch':"
                " give total_steps, or step_per='epoch'"
            )
        return n

    def _look_at_figures(self) -> None:
        if self.step_per == "batch":
            raise ValueError(f"{self.monitor} is a figure of the epoch: ReduceLROnPlateau needs step_per='epoch'")
        names = self.learn.recorder.column_names
        if self.monitor not in names:
            raise ValueError(
                f"no figure '{self.monitor}' to monitor{did_you_mean(self.monitor, names)}"
                f" The table has {', '.join(names)}."
            )

    def _put_back(self, opt: Optimizer) -> None:
        assert self._before is not None
        for group, kept in zip(opt.param_groups, self._before, strict=False):
            for key in OF_TORCHS_SCHEDULERS:
                if key not in kept:
                    group.pop(key, None)
        put_back(opt, self._before)


def _kept(group: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A group's hyperparameters of these names, under its own keys; never a count of steps, which goes on."""
    keys = [spot[0] for name in names if (spot := place(group, name)) is not None]
    return {key: group[key].clone() if isinstance(group[key], Tensor) else group[key] for key in keys}


def _of_torch(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler of torch's, made by hand before the fit, has left in a group."""
    return {key: group[key] for key in OF_TORCHS_SCHEDULERS if key in group}


def put_back(opt: Optimizer, before: Sequence[Mapping[str, Any]]) -> None:
    """Gives each group the values that were kept of it; one that is a tensor stays that very tensor."""
    for group, kept in zip(opt.param_groups, before, strict=False):
        for key, value in kept.items():
            now = group.get(key)
            if isinstance(now, Tensor):
                now.fill_(value)
            else:
                group[key] = tuple(value) if isinstance(value, list) else value


@contextmanager
def _unwarned() -> Iterator[None]:
    """Without torch's word that the optimizer has not stepped yet: so it is when a fit is gone on with."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)` before")
        yield

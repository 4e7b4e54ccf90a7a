"""A run that is never lost: it is written down as it goes, and taken up where it stopped."""

import copy
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minilearn.callback import Callback, CancelFitException, CancelTrainException, CancelValidException
from minilearn.callbacks.schedule import ParamScheduler
from minilearn.checkpoints import CheckpointFolder
from minilearn.data.loader import length
from minilearn.data.position import generators_of
from minilearn.errors import describe, positive, whole
from minilearn.random_states import random_states, set_random_states

if TYPE_CHECKING:
    from minilearn.learner import Learner

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SHOWN = 8
"""How many differences between two runs a message lists."""


class Checkpoint(Callback):
    """Writes the run to a folder as it goes; the same fit, begun again, goes on where the last checkpoint was taken.

    What it holds: the model, the optimizer, the loss where it has a state, every callback's own state, the history, all
    random numbers, the place in the epoch with its order, gradients that are still adding up. On a CPU a fit that was
    interrupted and taken up ends with the very numbers of one that was not. A fit that is done is not done again.

    Checkpoints are written while training goes on, each to a file of its own (`CheckpointFolder`). On SIGTERM and
    Ctrl-C the batch is brought to its end, a checkpoint is written, and the process ends (`SystemExit(143)`,
    `KeyboardInterrupt`); in validation the checkpoint is of its beginning. A second signal ends it at once.

    Costs a look at the clock a batch (0.2 µs); a checkpoint is a copy of the state in memory, and its writing takes
    place in another thread. It looks on only, so steps may be compiled whole.

    Args:
        path: the folder, below the Learner's `path`; a run has one of its own.
        every_batches: after so many training batches; None: not by their number.
        every_s: after so many seconds, at the end of a training batch; None: not by the clock.
        every_epoch: at the end of each epoch.
        keep: how many of the newest stay.
    Raises:
        ValueError: an argument is out of its range; or in a fit, the folder holds another run, of which the message
            says where it differs.
        OSError: when the fit begins: the folder cannot be made or written to.
    """

    order = math.inf  # what it writes down is what all others have made
    acts_in_step = False
    run_search = False

    def __init__(
        self,
        path: str | Path,
        every_batches: int | None = None,
        every_s: float | None = 300.0,
        every_epoch: bool = True,
        keep: int = 2,
    ) -> None:
        if not isinstance(path, (str, Path)) or not str(path):
            raise TypeError(f"path must be the name of a folder, got {describe(path)}")
        self.path = Path(path)
        self.every_batches = None if every_batches is None else whole("every_batches", every_batches, 1)
        self.every_s = None if every_s is None else positive("every_s", every_s)
        self.every_epoch, self.keep = every_epoch, whole("keep", keep, 1)
        self._folder: CheckpointFolder | None = None
        self._loaded: dict[str, Any] | None = None
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self._finished = False

    # ---- the events ----

    def before_fit(self) -> None:
        self._folder = CheckpointFolder(self.learn.path / self.path, self.keep)
        self._folder.open()
        self._signal, self._in_training, self._since = None, False, 0
        self._job = job_of(self.learn)
        found = self._folder.newest()
        self._finished = False
        if found is not None:
            self._take_up(*found)
        self._watch_signals()
        self._written_at = time.monotonic()

    def before_train(self) -> None:
        self._in_training = True
        if self._loaded is None:
            self._epoch_begins = {"epoch_random": random_states(), "epoch_generators": self._generators()}
            return
        state, self._loaded = self._loaded, None
        self._epoch_begins = {name: state[name] for name in ("epoch_random", "epoch_generators")}
        self._load(state)
        if state["batch"] is None:
            self._set_random(state["random"], state["generators"])
            raise CancelTrainException  # that part is done
        self._set_random(state["epoch_random"], state["epoch_generators"])
        self.learn.go_on_at(state["batch"], lambda: self._set_random(state["random"], state["generators"]))

    def after_batch(self) -> None:
        if not self.training:
            if self._signal is not None and not self._in_training:
                raise CancelValidException
            return
        self._since += 1
        by_clock = self.every_s is not None and time.monotonic() - self._written_at >= self.every_s
        if by_clock or self._since == self.every_batches or self._signal is not None:
            self._write(self._place(self.epoch, self.iter + 1))
            self._stop_if_told()

    def after_train(self) -> None:
        self._in_training = False
        self._validation_begins = self._place(self.epoch, None)

    def after_validate(self) -> None:
        if self._signal is not None and not self._in_training:
            self._write(self._validation_begins)
            self._stop_if_told()

    def after_epoch(self) -> None:
        if self.epoch + 1 < self.n_epoch and (self.every_epoch or self._signal is not None):
            self._write(self._place(self.epoch + 1, 0))
            self._stop_if_told()

    def after_fit(self) -> None:
        if not self._finished:
            self._write({**self._place(self.n_epoch, 0), "finished": True})

    def cleanup_fit(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        self._loaded = None
        if self._folder is not None:
            self._folder.finish()

    # ---- writing ----

    def _place(self, epoch: int, batch: int | None) -> dict[str, Any]:
        """What changes in validation too; `batch` None: the epoch's training is done."""
        return {
            "epoch": epoch,
            "batch": batch,
            "finished": False,
            "random": random_states(),
            "generators": self._generators(),
            "callbacks": [cb.state_dict() for cb in _with_state(self.learn)],
            **(self._epoch_begins if batch != 0 else {}),
        }

    def _write(self, place: dict[str, Any]) -> None:
        assert self._folder is not None
        learn, loss_func = self.learn, self.learn.loss_func
        state = {
            **place,
            "job": self._job,
            "model": dict(learn.model.state_dict()),
            "buffers": _unsaved_buffers(learn.model),
            "grads": {name: p.grad for name, p in learn.model.named_parameters() if p.grad is not None},
            "loss": dict(loss_func.state_dict()) if isinstance(loss_func, nn.Module) else {},
            "opt": learn.opt.state_dict(),
        }
        self._folder.write(state, wait=self._signal is not None)
        self._written_at, self._since = time.monotonic(), 0

    def _generators(self) -> list[Tensor]:
        return [generator.get_state() for generator in generators_of(self.dls.train)]

    # ---- taking up ----

    def _take_up(self, file: Path, state: dict[str, Any]) -> None:
        """Goes to the epoch of a checkpoint; its state is loaded there where it was taken."""
        if differences := list(_differences(state["job"], self._job)):
            more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
            raise ValueError(
                f"{file} is of another run: {'; '.join(differences[:SHOWN])}{more}."
                " Give this run a folder of its own, or remove that one to begin anew."
            )
        self.learn.epoch = state["epoch"]
        if state["batch"] != 0:
            self._load_callbacks(state)  # some open a file when the epoch begins; and anew when its training begins
            self._loaded = state
            return
        self._load(state)
        self._set_random(state["random"], state["generators"])
        if state["finished"]:
            self._finished = True
            raise CancelFitException

    def _load(self, state: Mapping[str, Any]) -> None:
        learn = self.learn
        learn.model.load_state_dict(state["model"])
        with torch.no_grad():
            for name, buffer in _unsaved_buffers(learn.model).items():
                buffer.copy_(state["buffers"][name])
        for name, p in learn.model.named_parameters():
            grad = state["grads"].get(name)
            p.grad = None if grad is None else grad.to(p.device)
        if isinstance(learn.loss_func, nn.Module):
            learn.loss_func.load_state_dict(state["loss"])
        learn.opt.load_state_dict(state["opt"])
        self._load_callbacks(state)

    def _load_callbacks(self, state: Mapping[str, Any]) -> None:
        for cb, own in zip(_with_state(self.learn), state["callbacks"], strict=True):
            cb.load_state_dict(own)

    def _set_random(self, states: Mapping[str, Any], generators: list[Tensor]) -> None:
        set_random_states(states)
        for generator, state in zip(generators_of(self.dls.train), generators, strict=False):
            generator.set_state(state)

    # ---- signals ----

    def _watch_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._told_to_stop) for number in SIGNALS}

    def _told_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:  # for the second time: at once, as if nobody had listened
            signal.signal(number, self._handlers.get(number) or signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signal = number

    def _stop_if_told(self) -> None:
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is not None:
            raise SystemExit(128 + self._signal)


Kept = str | Path | Checkpoint | None
"""What a fit takes as ``checkpoint=``: a folder, a `Checkpoint`, or None for none."""


def checkpoints_of(kept: Kept) -> list[Checkpoint]:
    """``checkpoint=`` as the callbacks that it stands for, one or none."""
    return [] if kept is None else [kept if isinstance(kept, Checkpoint) else Checkpoint(kept)]


def part_of(kept: Kept, part: str) -> Checkpoint | None:
    """The same for a fit that is a part of another, in a folder of its own."""
    for made in checkpoints_of(kept):
        own = copy.copy(made)
        own.path = made.path / part
        return own
    return None


def job_of(learn: "Learner") -> dict[str, Any]:
    """What must be the same for a fit to be gone on with, as plain values by name."""
    model, opt, dls = learn.model, learn.opt, learn.dls
    job: dict[str, Any] = {"epochs": learn.n_epoch, "model": type(model).__name__}
    for name, value in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        job[f"model's {name}"] = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    job["loss"] = getattr(learn.loss_func, "__name__", type(learn.loss_func).__name__)
    job["optimizer"] = type(opt).__name__
    job["parameter groups"] = [len(group["params"]) for group in opt.param_groups]
    for i, group in enumerate(opt.param_groups):
        job |= {f"{key} of group {i}": value for key, value in group.items() if type(value) in (int, float, bool)}
    for name, dl in {"training": dls.train, **dls.valid_sets}.items():
        dataset = getattr(dl, "dataset", None)
        job[f"batches of the {name} set"] = length(dl)
        job[f"rows of the {name} set"] = len(dataset) if isinstance(dataset, Sized) else None
    for cb in learn.cbs:
        if isinstance(cb, ParamScheduler):
            job |= {f"schedule of {name}": [s(i / 4) for i in range(5)] for name, s in cb.scheds.items()}
    job["callbacks with a state"] = [type(cb).__name__ for cb in _with_state(learn)]
    return job


def _with_state(learn: "Learner") -> list[Callback]:
    return [cb for cb in learn.cbs if type(cb).state_dict is not Callback.state_dict]


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    for name in [*there, *(name for name in here if name not in there)]:
        was, now = there.get(name, "none"), here.get(name, "none")
        if was != now:
            yield f"{name}: {was} there, {now} here"


def _unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a model leaves out of its `state_dict`."""
    saved = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved}

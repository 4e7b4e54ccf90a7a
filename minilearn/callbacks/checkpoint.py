"""A run that is never lost: it is written down as it goes, and taken up where it stopped."""

import copy
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minilearn import distributed
from minilearn.callback import Callback, CancelFitException, CancelTrainException, CancelValidException
from minilearn.callbacks.distributed import different_numbers
from minilearn.callbacks.job import by_class, differences, job_of, keeps
from minilearn.data.position import draw_ahead, drawn, generators_of
from minilearn.data.shares import Share
from minilearn.errors import describe, positive, whole
from minilearn.files import FileError
from minilearn.job_errors import of_all
from minilearn.optim.pieces import is_sharded
from minilearn.random_states import random_states, set_random_states
from minilearn.shared_checkpoints import Like, SharedFolder, placing
from minilearn.signals import SignalWatch
from minilearn.states import flatten_state
from minilearn.votes import votes

PARTS = {
    *("job", "model", "buffers", "grads", "loss", "opt"),
    *("epoch", "batch", "drawn", "finished", "random", "generators", "callbacks"),
}
"""What a checkpoint always holds."""
SHOWN = 8
"""How many differences between two runs a message lists."""


class Checkpoint(Callback):
    """Writes the run to a folder as it goes; the same fit, begun again, goes on where the last checkpoint was taken.

    What it holds: the model, the optimizer, the loss where it has a state, every callback's own state, the history, all
    random numbers, the place in the epoch with its order, gradients that are still adding up. On a CPU a fit that was
    interrupted and taken up ends with the very numbers of one that was not. A fit that is done is not done again.

    Checkpoints are written while training goes on, each to a file of its own (`SharedFolder`). On SIGTERM and
    Ctrl-C the batch is brought to its end, a checkpoint is written, and the process ends (`SystemExit(143)`,
    `KeyboardInterrupt`); in validation the checkpoint is of its beginning. A second signal ends it at once. Signals are
    heard in the main thread only, and those that the process ignored before are ignored still.

    Of several processes (`Distributed`) rank 0 writes, for all; what one decides by its clock or by a signal, all do at
    the same batch, some tenths of a second later, and not before gradients that add up have been used. All read the
    folder, which lies where each machine sees it. As many processes as before go on to the very numbers; more or fewer
    of the same `bs`, also one alone, go on at the same row of the epoch's order, so that each row comes once.

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
        OSError: when the fit begins: the folder cannot be made or written to, or what it holds is no checkpoint.
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
        self._folder: SharedFolder | None = None
        self._loaded: dict[str, Any] | None = None
        self._signals = SignalWatch()
        self._told: int | None = None
        self._begun = self._finished = self._in_training = self._due = False

    # ---- the events ----

    def before_fit(self) -> None:
        self._signals.forget()
        self._told, self._since = None, 0
        self._finished = self._in_training = self._due = False
        self._untried = self._begun = True
        self._main = distributed.is_main()
        self._job = distributed.from_main(job_of(self.learn) if self._main else None)
        # Looked up now: while a loader makes its iterator, it has another one.
        self._own_generators = [generator for dl in self.dls.loaders for generator in generators_of(dl)]
        self._sharded = any(map(is_sharded, self.model.parameters()))
        self._folder = SharedFolder(self.learn.path / self.path, self.keep, self._sharded, self._places)
        found = self._folder.newest_of_main()
        if found is not None:
            self._take_up(*found)
        self._signals.watch()
        self._written_at = time.monotonic()

    def before_train(self) -> None:
        self._in_training = True
        state = self._loaded
        if state is None:
            self._epoch_begins = {"epoch_random": random_states(), "epoch_generators": self._generators()}
            return
        self._epoch_begins = {name: state[name] for name in ("epoch_random", "epoch_generators")}
        if state["batch"] is None:
            raise CancelTrainException  # that part is done: what it left is loaded at its end
        self._loaded = None
        self._load(state)
        self._set_random(state["epoch_random"], state["epoch_generators"])
        draw_ahead(self.dl, state["drawn"] - state["batch"])
        self.learn.go_on_at(self._step_of(state), lambda: self._set_own_random(state))

    def after_batch(self) -> None:
        if not self.training:
            if not self._in_training and votes.ask("signal", self._signals.number or 0):
                raise CancelValidException
            return
        self._since += 1
        self._told = votes.ask("signal", self._signals.number or 0) or self._told
        by_clock = self.every_s is not None and time.monotonic() - self._written_at >= self.every_s
        due = votes.ask("checkpoint", by_clock) or self._since == self.every_batches or self._told or self._due
        if due and not self._adding_up():
            self._write(self._place(self.epoch, self.iter + 1))
            self._stop_if_told()
        elif self._untried:
            place = self._place_here(self.epoch, self.iter + 1)
            if self._main:
                flatten_state(self._state(place))  # what cannot be saved is an error now
        self._due, self._untried = bool(due) and self._since > 0, False

    def after_train(self) -> None:
        self._in_training = False
        state, self._loaded = self._loaded, None
        if state is not None:
            self._load(state)
            self._set_own_random(state)
        self._validation_begins = self._place(self.epoch, None), self._buffers()

    def after_validate(self) -> None:
        if not self._in_training and self._look_for_signal():
            self._write(*self._validation_begins)
            self._stop_if_told()

    def after_epoch(self) -> None:
        if self.epoch + 1 < self.n_epoch and (self._look_for_signal() or self.every_epoch):
            self._write(self._place(self.epoch + 1, 0))
            self._stop_if_told()

    def after_fit(self) -> None:
        if self._begun and not self._finished:
            self._look_for_signal()
            self._write({**self._place(self.epoch, 0), "finished": True})
            self._stop_if_told()

    def cleanup_fit(self) -> None:
        self._loaded, self._begun = None, False
        try:
            if self._folder is not None and not self._signals.at_once:
                self._finish(self._folder)
        finally:  # signals are listened for until the last checkpoint is written
            self._signals.stop()
        self._signals.end(self._signals.number)  # one that came after the last look

    # ---- what all decide ----

    def _look_for_signal(self) -> int | None:
        """The signal that has come to any process; all look at once."""
        self._told = votes.at_once("signal", self._signals.number or 0) or None
        return self._told

    def _stop_if_told(self) -> None:
        number, self._told = self._told, None
        self._signals.end(number)

    def _adding_up(self) -> bool:
        """Whether gradients of several processes wait for a later step: each has its own, and a checkpoint one's."""
        return distributed.world_size() > 1 and any(p.grad is not None for p in self.model.parameters())

    # ---- writing ----

    def _place(self, epoch: int, batch: int | None) -> dict[str, Any]:
        """What changes in validation too, of all processes; `batch` None: the epoch's training is done."""
        place = self._place_here(epoch, batch)
        if distributed.world_size() > 1:
            of_all = {name: cb.state_of_all() for name, cb in self._with_state().items()}
            own = {name: {key: place["callbacks"][name][key] for key in held} for name, held in of_all.items() if held}
            place["callbacks"] = {name: {**state, **of_all[name]} for name, state in place["callbacks"].items()}
            place["ranks"] = distributed.gathered({"random": place["random"], "callbacks": own})
        return place

    def _place_here(self, epoch: int, batch: int | None) -> dict[str, Any]:
        """What changes in validation too, of this process. Batches are the loader's, which several processes share."""
        share: Any = self.learn.__dict__.get("dl")
        shared = batch and isinstance(share, Share)
        return {
            "epoch": epoch,
            "batch": share.reached if shared else batch,
            "drawn": share.drawn if shared else drawn(self.dls.train),
            "steps": [batch, self.n_iter] if shared else None,
            "finished": False,
            "random": random_states(),
            "generators": self._generators(),
            "callbacks": {name: cb.state_dict() for name, cb in self._with_state().items()},
            **(self._epoch_begins if batch != 0 else {}),
        }

    def _state(self, place: dict[str, Any]) -> dict[str, Any]:
        """All of a run: what `_place` gives, and what changes in training alone."""
        learn, loss_func = self.learn, self.learn.loss_func
        return {
            **place,
            "job": self._job,
            "model": dict(learn.model.state_dict()),
            "buffers": _unsaved_buffers(learn.model),
            "grads": {name: p.grad for name, p in learn.model.named_parameters() if p.grad is not None},
            "loss": dict(loss_func.state_dict()) if isinstance(loss_func, nn.Module) else {},
            "opt": learn.opt.state_dict(),
        }

    def _buffers(self) -> dict[str, dict[str, Tensor]]:
        """Copies of what a model and a loss may count in validation too; parameters stay as they are there."""
        model, loss_func = self.learn.model, self.learn.loss_func
        names = {name for name, _ in model.named_buffers(remove_duplicate=False)}
        parts = {
            "model": {name: t for name, t in model.state_dict().items() if name in names},
            "buffers": _unsaved_buffers(model),
            "loss": dict(loss_func.state_dict()) if isinstance(loss_func, nn.Module) else {},
        }
        return {part: {name: t.detach().clone() for name, t in held.items()} for part, held in parts.items()}

    def _write(self, place: dict[str, Any], then: Mapping[str, dict[str, Tensor]] | None = None) -> None:
        """Writes a checkpoint; `then`: tensors as they were at that place, where they may have changed since."""
        assert self._folder is not None
        if self._main or self._sharded:
            state = self._state(place)
            for part, held in (then or {}).items():
                state[part] |= held
            self._folder.write(state, wait=self._told is not None)
        if self._told is not None:
            distributed.barrier()  # who ends now takes the others along: launchers do
        self._written_at, self._since = time.monotonic(), 0

    def _finish(self, folder: SharedFolder) -> None:
        """Waits until the last checkpoint is written, whatever comes in between."""
        try:
            folder.finish()
        except RuntimeError:  # torch's, that a worker has died, comes at any moment
            folder.finish()
            raise

    def _generators(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._own_generators]

    def _with_state(self) -> dict[str, Callback]:
        return by_class(filter(keeps, self.learn.cbs))

    # ---- taking up ----

    def _places(self) -> Like:
        """How the tensors of a checkpoint that others may have written are to be laid out here."""
        params = [p for group in self.learn.opt.param_groups for p in group["params"]]
        current = flatten_state(self._state(self._place_here(0, 0)))[1]
        return placing(current, params, dict(self.learn.model.named_parameters()))

    def _take_up(self, file: Path, state: dict[str, Any]) -> None:
        """Goes to the epoch of a checkpoint; its state is loaded there where it was taken."""
        if missing := sorted(PARTS - state.keys()):
            raise FileError(
                f"{file} is no checkpoint of a fit: it lacks {', '.join(missing)}."
                " Remove it to go on from the one before."
            )
        if found := list(differences(state["job"], self._job)):
            more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise of_all(
                ValueError(
                    f"{file} is of another run: {'; '.join(found[:SHOWN])}{more}."
                    " Give this run a folder of its own, or remove that one to begin anew."
                )
            )
        self.learn.logger(_place_in_words(file, state))
        self.learn.epoch = state["epoch"]
        if state["batch"] != 0:
            self._load_callbacks(state)  # some open a file when the epoch begins; and anew when its training begins
            self._loaded = state
            return
        self._load(state)
        self._set_own_random(state)
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
            p.grad = None if grad is None else _laid_out(grad.to(p.device), p)
        if isinstance(learn.loss_func, nn.Module):
            learn.loss_func.load_state_dict(state["loss"])
        learn.opt.load_state_dict(state["opt"])
        for weights, values in learn.opt.state.items():
            values.update(
                {key: _laid_out(value, weights) for key, value in values.items() if isinstance(value, Tensor)}
            )
        self._load_callbacks(state)

    def _load_callbacks(self, state: Mapping[str, Any]) -> None:
        own = self._of_rank(state)["callbacks"]
        for name, cb in self._with_state().items():
            cb.load_state_dict({**state["callbacks"][name], **own.get(name, {})})

    def _of_rank(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds of this process alone, where as many wrote it; else what stands for all."""
        ranks: list[dict[str, Any]] = state.get("ranks") or [{"random": state["random"], "callbacks": {}}]
        if len(ranks) == distributed.world_size():
            return ranks[distributed.rank()]
        # Sums over the epoch so far are all in rank 0.
        nothing: dict[str, Any] = (
            {} if self._main else {name: {"metrics": []} for name in state["callbacks"] if name == "Recorder"}
        )
        return {"random": None, "callbacks": nothing}

    def _step_of(self, state: Mapping[str, Any]) -> int:
        """The number of the step to go on with."""
        if not isinstance(self.dl, Share):
            first: int = state["batch"]
            return first
        same = len(state.get("ranks") or [None]) == distributed.world_size() and state.get("steps")
        step, steps = self.dl.go_on_from(state["batch"], state["steps"][0] if same else None)
        if steps is not None:
            self.learn.n_iter = steps
        return step

    def _set_own_random(self, state: Mapping[str, Any]) -> None:
        own = self._of_rank(state)["random"]
        self._set_random(state["random"] if own is None else own, state["generators"])
        if own is None:
            different_numbers()

    def _set_random(self, states: Mapping[str, Any], generators: list[Tensor]) -> None:
        set_random_states(states)
        for generator, state in zip(self._own_generators, generators, strict=True):
            generator.set_state(state)


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


def _unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a model leaves out of its `state_dict`."""
    saved = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved}


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A tensor with the strides of another of its shape: in another order, the same numbers have another sum."""
    if value.shape != like.shape or value.stride() == like.stride() or not value.ndim:
        return value
    return torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)


def _place_in_words(file: Path, state: Mapping[str, Any]) -> str:
    if state["finished"]:
        return f"this fit is done: its end is in {file}. For another one, give it a folder of its own"
    epoch, batch = state["epoch"], state["batch"]
    part = "its validation" if batch is None else f"batch {batch}"
    return f"going on from {file}: epoch {epoch}, {part} (counted from 0)"

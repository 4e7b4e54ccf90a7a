"""The events of a fit, the exceptions that cut a part of it short, and the base class of every callback."""

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from torch import Tensor, nn
from torch.optim import Optimizer

from minilearn.errors import did_you_mean
from minilearn.heard import Heard

if TYPE_CHECKING:
    from minilearn.data.loaders import DataLoaders
    from minilearn.learner import Learner

EVENTS: dict[str, str] = {
    "after_create": "The Learner has been made.",
    "before_fit": "A fit begins: model, optimizer and loaders are there.",
    "before_epoch": "An epoch begins.",
    "before_train": "The training part of an epoch begins; gradients are on.",
    "before_batch": "A batch is there (`xb`, `yb`), the model has not seen it.",
    "after_pred": "The model has answered (`pred`).",
    "after_loss": "The loss is known (`loss`), unless the batch has no target.",
    "before_backward": "Training only: the gradients are about to be computed.",
    "after_cancel_backward": "The backward pass was cancelled.",
    "after_backward": "Training only: every parameter's `grad` is there.",
    "before_step": "Training only: the optimizer is about to move the parameters; its own evaluations have no events.",
    "after_cancel_step": "The step was cancelled.",
    "after_step": "Training only: the parameters have moved; their gradients are cleared next.",
    "after_cancel_batch": "The batch was cancelled.",
    "after_batch": "The batch is done.",
    "after_cancel_train": "The training part was cancelled.",
    "after_train": "The training part of an epoch is done.",
    "before_validate": "The validation part of an epoch begins; gradients are off.",
    "after_cancel_validate": "The validation part was cancelled.",
    "after_validate": "The validation part of an epoch is done.",
    "after_cancel_epoch": "The epoch was cancelled.",
    "after_epoch": "An epoch is done.",
    "after_cancel_fit": "The fit was cancelled.",
    "after_fit": "The fit has come to its end.",
    "cleanup_fit": "Always the last, whatever ended the fit, last callback first: put back what you replaced.",
}

IN_BATCH = ("before_batch", "after_pred", "after_loss", "after_cancel_batch", "after_batch")
"""The events that come in training and in validation alike; `run_train` and `run_valid` choose between the two."""


FOREIGN_EVENTS = re.compile(r"(on|begin)_\w*(fit|epoch|train|batch|step|backward|validat)\w*")
"""What other frameworks call their events; a method so named would never be called."""


class CancelException(Exception):  # noqa: N818 -- it is no error
    """Base of the exceptions that cut a part of a fit short: control flow, never an error."""

    raised_in: str = ""


class CancelBackwardException(CancelException):
    """Leaves the backward pass out; goes on at `after_cancel_backward`, `after_backward`, then the step."""


class CancelStepException(CancelException):
    """Leaves the optimizer's step out; goes on at `after_cancel_step`, `after_step`. The gradients are cleared."""


class CancelBatchException(CancelException):
    """Goes on at `after_cancel_batch`, `after_batch`. Raised before the step it leaves the gradients to add up."""


class CancelTrainException(CancelException):
    """Ends the training part of the epoch; goes on at `after_cancel_train`, `after_train`, then validation."""


class CancelValidException(CancelException):
    """Ends the validation part of the epoch; goes on at `after_cancel_validate`, `after_validate`."""


class CancelEpochException(CancelException):
    """Ends the epoch; goes on at `after_cancel_epoch`, `after_epoch`, then the next epoch."""


class CancelFitException(CancelException):
    """Ends the fit; goes on at `after_cancel_fit`, `after_fit`."""


def _seems_an_event(name: str) -> bool:
    """Whether a method was meant to be an event, and would never be called."""
    if name.startswith(("before_", "after_")) or FOREIGN_EVENTS.fullmatch(name):
        return True
    if name[0] not in "abc" or "_" not in name:  # no event is like it; comparing costs 0.2 ms
        return False
    return did_you_mean(name, EVENTS, cutoff=0.85) != "."


if TYPE_CHECKING:
    state = property
else:

    class state(property):  # noqa: N801 -- it reads as a decorator
        """A read-only property that says where to write instead."""

        def __set_name__(self, owner: type, name: str) -> None:
            self.state_name = name

        def __set__(self, callback: object, value: object) -> NoReturn:
            name = self.state_name
            written = {"x": "xb = (x,)", "y": "yb = (y,)"}.get(name, f"{name} = …")
            raise AttributeError(f"a callback reads self.{name} and writes self.learn.{written}")


class Callback(Heard):
    """One behaviour of a fit: a class with a method, without arguments, for each event at which it acts.

    Callbacks are called in ascending `order`, those of the same order as they were added. What a callback reads all
    the time is below as properties; it writes through `self.learn`. A callback that keeps something over batches or
    epochs gives it in `state_dict` and takes it back in `load_state_dict`, so that a checkpoint can hold it.

    Raises:
        TypeError: when the class is made: a method is called like an event but is none, or takes arguments.

    >>> class PrintLoss(Callback):
    ...     "Prints the figures of each epoch."
    ...
    ...     def after_epoch(self) -> None:
    ...         print(self.epoch, self.learn.recorder.values[-1])
    """

    order: ClassVar[float] = 0
    """Lower is earlier. State it by relation: ``order = Recorder.order + 1  # reads the row``."""
    run_train: bool = True
    """Whether the events within a batch reach this callback in training."""
    run_valid: bool = True
    """Whether the events within a batch reach this callback in validation."""
    run_search: bool | None = None
    """Whether it takes part in `lr_find`'s search; None: if it acts between a batch's arrival and its step."""

    acts_in_step: bool = True
    """Whether what it does from `after_pred` to `after_step` changes the step, cancels it or reads gradients. False for
    one that only looks on, at `pred` and `loss` say: a compiled step may be one graph then, and be over before.
    """

    learn: "Learner"
    """The Learner, from the moment the callback was added until it is removed."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            if name in EVENTS:
                if not inspect.isfunction(value) or len(inspect.signature(value).parameters) != 1:
                    raise TypeError(
                        f"{cls.__name__}.{name} must be a method without arguments: what it needs is on self"
                    )
            elif callable(value) and _seems_an_event(name):
                raise TypeError(
                    f"{cls.__name__}.{name} is not an event{did_you_mean(name, EVENTS)}"
                    " The events: " + ", ".join(event for event in EVENTS if "cancel" not in event)
                )

    def __repr__(self) -> str:
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """What this callback needs to go on after an interruption: plain values and tensors. Nothing by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name == "learn":
                raise AttributeError(f"{type(self).__name__} has not been added to a Learner yet")
            if isinstance(getattr(type(self), name, None), state):
                return getattr(self.learn, name)  # raises again, with the words that say when it appears
            missing = f"{type(self).__name__} has no attribute '{name}'"
            if name in dir(self.__dict__.get("learn")):
                raise AttributeError(f"{missing}; the Learner has: self.learn.{name}")
            raise AttributeError(missing + did_you_mean(name, [known for known in dir(self) if known[0] != "_"]))

    @state
    def model(self) -> nn.Module:
        """The model."""
        return self.learn.model

    @state
    def opt(self) -> Optimizer:
        """The optimizer, from `before_fit` on."""
        return self.learn.opt

    @state
    def dls(self) -> "DataLoaders":
        """All loaders."""
        return self.learn.dls

    @state
    def dl(self) -> Any:
        """The loader now in use."""
        return self.learn.dl

    @state
    def xb(self) -> Any:
        """The batch's inputs: a tuple, or a dict where the batch is one."""
        return self.learn.xb

    @state
    def yb(self) -> tuple[Any, ...]:
        """The batch's targets; empty where it has none."""
        return self.learn.yb

    @state
    def x(self) -> Any:
        """The batch's input, where there is one; else all of `xb`."""
        return self.learn.x

    @state
    def y(self) -> Any:
        """The batch's target, where there is one; else all of `yb`."""
        return self.learn.y

    @state
    def pred(self) -> Any:
        """The model's output, from `after_pred` on."""
        return self.learn.pred

    @state
    def loss(self) -> Tensor:
        """The batch's loss, a scalar on the device, from `after_loss` on. Reading its value waits for the device."""
        return self.learn.loss

    @state
    def epoch(self) -> int:
        """The epoch, from 0."""
        return self.learn.epoch

    @state
    def n_epoch(self) -> int:
        """The number at which the fit's epochs end."""
        return self.learn.n_epoch

    @state
    def iter(self) -> int:
        """The batch in this part of the epoch, from 0."""
        return self.learn.iter

    @state
    def n_iter(self) -> int | None:
        """The number of batches in this part of the epoch; None where the loader has no length."""
        return self.learn.n_iter

    @state
    def train_iter(self) -> int:
        """The training batches done in this fit."""
        return self.learn.train_iter

    @state
    def pct_train(self) -> float:
        """The share of the fit's training that is done, in [0, 1]."""
        return self.learn.pct_train

    @state
    def training(self) -> bool:
        """Whether this is the training part of an epoch."""
        return self.learn.training


Callbacks = Callback | type[Callback] | Iterable[Callback | type[Callback]] | None

"""Predictions without the events of a batch, from where on nobody but what gathers them hears of one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from minilearn.batches import prediction_of
from minilearn.callback import IN_BATCH
from minilearn.callbacks.gather_preds import GatherPreds
from minilearn.data.shares import share_of
from minilearn.loop import Loop

LOOKS = 3
"""After so many batches it is settled who listens: those that look at a beginning have rested by then."""

ON_THE_WAY = ("one_batch", "event", "_take", "_predict", "_loss")
"""What a batch goes through in the loop: where somebody's own Learner does one of it otherwise, all batches do."""


@contextmanager
def shortcut(learn: Any, gather: GatherPreds) -> Iterator[None]:
    """For the length of a ``with`` block, batches go straight to the model and its answers to `gather`.

    The first ones go the loop's own way, and all do where another callback hears of a batch. So does one that fails,
    once more, as the loop says what is wrong with it.

    Args:
        learn: the loop.
        gather: one of its callbacks.
    """
    loops_own: Callable[[int, Any], None] = type(learn).one_batch.__get__(learn)
    held = vars(learn)
    before = held.get("one_batch")

    def first(i: int, batch: Any) -> None:
        loops_own(i, batch)
        if _is_alone(learn, gather, batch):
            held["one_batch"] = _straight(learn, gather, batch, loops_own)
        elif i >= LOOKS:
            held["one_batch"] = loops_own

    held["one_batch"] = first
    try:
        yield
    finally:
        del held["one_batch"]
        if before is not None:
            held["one_batch"] = before


def _is_alone(learn: Any, gather: GatherPreds, batch: Any) -> bool:
    """Whether nobody but `gather` hears of a batch, of an input and a target, and nothing is done to it."""
    table = learn._handlers
    heard = [(event, handler.__self__) for event in IN_BATCH for handler in table.get(event, ())]
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2 and learn.dls.n_inp in (None, 1)
    own = all(getattr(type(learn), name) is getattr(Loop, name) for name in ON_THE_WAY)
    return (
        pair
        and own
        and all(event == "after_batch" and cb is gather for event, cb in heard)
        and learn.compiled is None
        and share_of(learn.dl) is None
        and isinstance(vars(learn).get("pred"), Tensor)
    )


def _straight(learn: Any, gather: GatherPreds, batch: Any, loops_own: Callable[[int, Any], None]) -> Any:
    model, kind, before = learn.model, type(batch), learn.pred
    may_hold = gather.may_hold(before, batch[1])

    def straight(i: int, batch: Any) -> None:
        nonlocal before, may_hold
        learn.iter = i
        if batch.__class__ is not kind or len(batch) != 2:
            gather.take_held()
            loops_own(i, batch)
            return
        try:
            pred = model(batch[0])
        except Exception:
            gather.take_held()
            loops_own(i, batch)
            return
        if pred.__class__ is not Tensor:
            gather.take_held()
            gather.take(prediction_of(pred), (batch[1],))
            return
        if before is not None:  # a model may write each answer into the same memory
            may_hold = may_hold and pred.untyped_storage().data_ptr() != before.untyped_storage().data_ptr()
            before = None
        if may_hold:
            gather.hold(pred, batch[1])
        else:
            gather.take(pred, (batch[1],))

    return straight

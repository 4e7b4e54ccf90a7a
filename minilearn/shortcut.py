"""Predictions without the events of a batch, where nobody but what gathers them hears of one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from minilearn.batches import prediction_of
from minilearn.callback import IN_BATCH
from minilearn.callbacks.gather_preds import GatherPreds
from minilearn.data.loader import DataLoader, changes_of, left_as_they_are
from minilearn.loop import Loop

LOOKS = 3
"""After so many batches it is settled who listens: those that look at a beginning have rested by then."""
SMALL_BYTES = 1 << 16
"""How large an answer is at most that is kept until those of some batches are put together."""

ON_THE_WAY = ("_batches", "one_batch", "event", "_take", "_predict", "_loss")
"""What a batch goes through in the loop: where somebody's own Learner does one of it otherwise, all batches do."""


@contextmanager
def shortcut(learn: Any, gather: GatherPreds) -> Iterator[None]:
    """For the length of a ``with`` block, rows of tensors go straight to the model, and its answers to `gather`.

    The first batches go the loop's own way, and all do where another callback hears of one, or where the loader does
    not lend its rows. So does one that fails, once more, as the loop says what is wrong with it.

    Args:
        learn: the loop.
        gather: one of its callbacks.
    """
    held = vars(learn)
    loops_own: Callable[[str], None] = type(learn)._batches.__get__(learn)
    before = held.get("_batches")

    def batches(part: str) -> None:
        loader = learn.dl
        if not (isinstance(loader, DataLoader) and loader.can_lend() and len(loader) > LOOKS):
            loops_own(part)
            return
        with left_as_they_are(loader.columns or ()):
            for i, batch in enumerate(loader.lent()):
                changes = changes_of(batch)
                learn.one_batch(i, batch)
                if i < LOOKS and changes_of(batch) == changes and _is_alone(learn, gather, batch):
                    _straight(learn, gather, loader, i + 1)
                    break

    held["_batches"] = batches
    try:
        yield
    finally:
        del held["_batches"]
        if before is not None:
            held["_batches"] = before


def _is_alone(learn: Any, gather: GatherPreds, batch: Any) -> bool:
    """Whether nobody but `gather` hears of a batch, of an input and a target, and nothing is done to it."""
    table = learn._handlers
    heard = [(event, handler.__self__) for event in IN_BATCH for handler in table.get(event, ())]
    pair = isinstance(batch, tuple) and len(batch) == 2 and learn.dls.n_inp in (None, 1)
    own = all(getattr(type(learn), name) is getattr(Loop, name) for name in ON_THE_WAY)
    return (
        pair
        and own
        and all(event == "after_batch" and cb is gather for event, cb in heard)
        and learn.compiled is None
        and isinstance(vars(learn).get("pred"), Tensor)
    )


def _straight(learn: Any, gather: GatherPreds, loader: DataLoader, first: int) -> None:
    """The batches from number `first` on, a block of rows at a time."""
    model, bs, before = learn.model, loader.batch_size or 1, learn.pred
    together = gather.keeps_rows_alone() and before.is_cpu and before.nbytes <= SMALL_BYTES
    for rows, targets in loader.blocks(first):
        xs: Any = torch.split(rows, bs)
        ys: Any = torch.split(targets, bs)
        learn.iter = first + len(xs) - 1
        answers: list[Any] = []
        try:
            for x in xs if together else ():
                answers.append(model(x))
                if before is not None:  # a model may write each answer into the same memory
                    together = _are_apart([before, answers[0]])
                    before = None
                    if not together:
                        break
        except Exception:  # noqa: S110 -- it comes once more below
            pass
        if together and _are_alike(answers):
            gather.take(torch.cat(answers), (targets[: sum(map(len, answers))],))
        else:
            for answer, y in zip(answers, ys, strict=False):
                gather.take(prediction_of(answer), (y,))
        for i in range(len(answers), len(xs)):
            _one(learn, gather, first + i, xs[i], ys[i])
        first += len(xs)


def _are_apart(answers: list[Any]) -> bool:
    """Whether no answer lies in another's memory, which may have been written over."""
    places = [answer.untyped_storage().data_ptr() for answer in answers if isinstance(answer, Tensor)]
    return len(set(places)) == len(answers)


def _are_alike(answers: list[Any]) -> bool:
    """Whether answers can be put together: tensors of rows, of one shape and dtype."""
    if not answers or any([answer.__class__ is not Tensor or not answer.ndim for answer in answers]):  # noqa: C419
        return False
    return len({(answer.dtype, answer.shape[1:]) for answer in answers}) == 1


def _one(learn: Any, gather: GatherPreds, number: int, x: Tensor, y: Tensor) -> None:
    try:
        pred = learn.model(x)
    except Exception:
        learn.one_batch(number, (x, y))
    else:
        gather.take(prediction_of(pred), (y,))

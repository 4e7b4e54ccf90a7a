"""Predictions without any event, where nobody would hear of one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from minilearn import distributed
from minilearn.batches import prediction_of
from minilearn.callback import IN_BATCH
from minilearn.callbacks import DevicePlacement, Divergence, Preflight, ProgressCallback, Recorder, TrainEval
from minilearn.data.loader import DataLoader, changes_of, left_as_they_are, used_rows
from minilearn.graphs import is_of_torch
from minilearn.losses import activation_of, unchanged
from minilearn.rows import InMemory

HEARD = (*IN_BATCH, "before_validate", "after_validate")
QUIET = (Divergence, Preflight, ProgressCallback, Recorder)
"""What has nothing to say to a prediction."""
ON_THE_WAY = ("_validate", "_begin_part", "_batches", "one_batch", "event", "_take", "_predict", "_clean_up")
"""What a batch goes through in the loop: where somebody's own Learner does one of it otherwise, all batches do."""
SMALL_BYTES = 1 << 16
"""How large an answer is at most that is kept until those of a block of batches are put together."""


def straight(learn: Any, loader: Any) -> tuple[Any, Tensor] | None:
    """The predictions for a loader's rows, and the targets, as `get_preds` gives them; quicker by some µs a batch.

    Args:
        learn: the loop.
        loader: what to go through.
    Returns:
        None where it has to be the loop's own way: somebody hears of a batch, the rows are not an input and a target
        each, as tensors in the computer's memory, in order; or something went wrong, of which the loop says more.
    """
    columns = loader.columns if isinstance(loader, DataLoader) and loader.can_lend() else None
    if columns is None or len(columns) != 2 or not (columns[0].is_cpu and columns[1].is_cpu):
        return None
    if not (_is_plain(learn) and _are_quiet(learn)):
        return None
    for handler in learn._handlers_of[False].get("before_validate", ()):
        cb = handler.__self__
        if type(cb) is TrainEval:
            cb.before_validate()
        elif type(cb) is DevicePlacement and cb.place_model().device.type != "cpu":
            return None
    with torch.no_grad():
        return _predictions(learn.model, activation_of(learn.loss_func), loader)


def _is_plain(learn: Any) -> bool:
    """Whether the loop does nothing of its own to a batch, and is not in a fit."""
    dls = learn.dls
    alone = not learn._running and distributed.world_size() == 1
    plain = learn.compiled is None and learn.loss_func is not None and not dls.batch_tfms and dls.n_inp in (None, 1)
    if alone and plain and type(learn).__module__.startswith("minilearn."):
        return True
    others = [kind for kind in type(learn).__mro__ if not kind.__module__.startswith("minilearn.")]
    return alone and plain and not any(name in vars(kind) for kind in others for name in ON_THE_WAY)


def _are_quiet(learn: Any) -> bool:
    """Whether the callbacks that hear of a validation have nothing to do in this one, or rest in `get_preds`."""
    table = learn._handlers_of[False]
    heard = {handler.__self__ for event in HEARD for handler in table.get(event, ())}
    return all(
        type(cb) in (TrainEval, DevicePlacement, *QUIET) or getattr(type(cb), "remove_on_fetch", False) for cb in heard
    )


def _predictions(model: nn.Module, activate: Callable[[Any], Any], loader: DataLoader) -> tuple[Any, Tensor] | None:
    rows, targets = loader.columns or ()
    n, bs = used_rows(loader, len(rows)), loader.batch_size or 1
    plain = is_of_torch(model)
    answer: Callable[[Tensor], Any] = model.forward if plain else model  # without hooks it is the same, a µs sooner
    if activate is not unchanged:
        answer = lambda x: activate(prediction_of(model(x)))  # noqa: E731
    found = InMemory(n, len(loader))
    with left_as_they_are((rows,)):
        try:
            first = rows[: min(bs, n)]
            first = first if plain else first.clone()  # a model may write to it
            changes = changes_of(first)
            before = prediction_of(answer(first))
            if changes_of(first) != changes or not isinstance(before, Tensor):
                return None
            found.append(before)
            small = before.nbytes <= SMALL_BYTES
            for block, _ in loader.blocks(1):
                parts: Any = torch.split(block, bs)
                if not small:
                    for x in parts:
                        found.append(prediction_of(answer(x)))
                    continue
                answers = []
                for x in parts:
                    answers.append(answer(x))  # a comprehension is slower
                if set(map(type, answers)) != {Tensor}:
                    answers = [prediction_of(part) for part in answers]
                if len(set(map(Tensor.data_ptr, answers))) < len(answers):
                    return None  # the model writes one after another into the same memory
                found.append_all(answers)
        except Exception:
            return None
    return found.result(), targets[:n].clone()

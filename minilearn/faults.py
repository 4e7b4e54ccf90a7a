"""What lies behind an error in a fit that names its cause badly, or says too little to act on: a note beside it."""

import errno
import traceback
from typing import Any

import torch
import torch.utils.data.dataloader

from minilearn.errors import came_through
from minilearn.tensors import batch_size


def name_cause(error: BaseException, xb: Any, *, training: bool) -> None:
    """Adds to an error what its cause is and what to do, where that shows; it stays the error that it is.

    After an error for want of memory, and of a worker process, what the calls below have left in it is let go of: an
    error that somebody holds, as a notebook does, would hold the batch and its graph, and the loader's iterator, which
    raises again when the next process ends.

    Args:
        error: what came up in the training or the validation of an epoch.
        xb: the batch's inputs; None where there was no batch.
        training: which of the two it was.
    """
    if out_of_memory(error):
        error.add_note(_memory_note(xb, training=training))
        _let_go(error)
    elif _worker_died(error):
        error.add_note(
            "a worker process of the loader has ended: killed (by the system, where memory ran out), or crashed in the"
            " data set's own code. num_workers=0 reads the rows in this process, where an error shows itself"
        )
        _let_go(error)
    elif isinstance(error, FileNotFoundError):
        error.add_note(
            "a file that was asked for is not there (any more): is the data set's folder complete, and mounted?"
        )
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        error.add_note("the disk is full")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: a device's, or the computer's."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("not enough memory", "can't allocate memory", "out of memory")
    )


def _worker_died(error: BaseException) -> bool:
    """Whether torch says so, or found the connection to a process cut off as it fetched a batch from it."""
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return True
    cut_off = isinstance(error, (ConnectionError, EOFError))
    return cut_off and came_through(error, torch.utils.data.dataloader.__file__, "_try_get_data")


def _let_go(error: BaseException | None) -> None:
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _memory_note(xb: Any, *, training: bool) -> str:
    part = "training" if training else "validation"
    rows = "" if xb is None else f" of {batch_size(xb)} rows"
    fixes = (
        "give smaller batches (bs=), cbs=GradientAccumulation() to step less often, or learn.to_bf16()"
        if training
        else "give the validation loader smaller batches; the training is not concerned. Metrics that keep all rows"
        " (AccumMetric) take memory too"
    )
    return f"memory ran out in a {part} batch{rows}: {fixes}. The Learner can be used again"

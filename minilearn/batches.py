"""What a batch and a model's answer are made of: inputs and targets, the prediction, a loss of the model's own."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

TARGETS = ("y", "target", "targets", "label", "labels")
"""The keys under which a dict batch holds its target; every other entry goes to the model by name."""


def split_batch(batch: Any, n_inp: int | None, to_model: tuple[str, ...] = ()) -> tuple[Any, tuple[Any, ...]]:
    """A batch's inputs, a tuple or a dict, and its targets.

    Args:
        batch: a tuple or a list, named or not: inputs, then targets; a dict, see `TARGETS`; else a single input.
        n_inp: how many parts of a tuple are inputs; None: all but the last, and one where there is one.
        to_model: the targets of a dict that the model is given too.
    """
    if isinstance(batch, (tuple, list)):
        if len(batch) == 2 and n_inp in (None, 1):  # as nearly always, in half of the time
            return (batch[0],), (batch[1],)
        n_inp = n_inp or max(len(batch) - 1, 1)
        return tuple(batch[:n_inp]), tuple(batch[n_inp:])
    if isinstance(batch, Mapping):
        targets = tuple(batch[key] for key in TARGETS if key in batch)
        return {key: part for key, part in batch.items() if key not in TARGETS or key in to_model}, targets
    return (batch,), ()


def targets_taken(model: nn.Module) -> tuple[str, ...]:
    """Those of `TARGETS` that a model takes by name, as one does that computes its loss itself."""
    return tuple(name for name in TARGETS if name in inspect.signature(model.forward).parameters)


def prediction_of(output: Any) -> Any:
    """What a model predicts: the `logits` of an object that has them (Hugging Face's outputs do), else all it gave."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    return output if logits is None else logits


def own_loss(output: Any) -> Any:
    """The loss that a model gave along: the attribute `loss` of its output, or that entry of a dict; else None."""
    return output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)

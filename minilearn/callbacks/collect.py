"""All that went through the model, kept to be looked at."""

from collections import deque
from typing import Any

from minilearn.callback import Callback
from minilearn.callbacks.recorder import Recorder
from minilearn.errors import whole
from minilearn.tensors import detached


class CollectData(Callback):
    """Keeps each batch of a fit, in training and validation, with the prediction and the loss, in `data`.

    A batch costs 30 µs and its memory: tensors stay where they are, on the device, cut off from their graphs.
    In several processes each keeps its own batches.

    Args:
        max_batches: how many batches are kept, the last ones; None for all.
    Raises:
        ValueError: `max_batches` is less than 1.
    Source: `CollectDataCallback` of fastai 2.8.

    >>> collect = CollectData(max_batches=10)
    """

    order = Recorder.order + 20  # the batch as it is at its end
    acts_in_step = False
    run_search = False

    data: deque[tuple[Any, Any, Any, Any]]
    """A tuple a batch: `xb`, `yb`, `pred`, `loss`; None for what a cancelled batch did not come to."""

    def __init__(self, max_batches: int | None = None) -> None:
        self.data = deque(maxlen=None if max_batches is None else whole("max_batches", max_batches, 1))

    def before_fit(self) -> None:
        self.data.clear()

    def after_batch(self) -> None:
        there = self.learn.__dict__
        self.data.append((_free(self.xb), _free(self.yb), _free(there.get("pred")), _free(there.get("loss"))))


CollectDataCallback = CollectData


def _free(value: Any) -> Any:
    """`value` without its graph, where it is made of tensors in tuples, lists and dicts; else as it is."""
    try:
        return detached(value)
    except TypeError:
        return value

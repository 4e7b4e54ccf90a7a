"""Epochs cut short, and epochs left out."""

import math

from minilearn.callback import Callback, CancelEpochException, CancelTrainException, CancelValidException
from minilearn.callbacks.recorder import Recorder
from minilearn.callbacks.train_eval import TrainEval
from minilearn.errors import share, whole


class ShortEpoch(Callback):
    """Ends the training part of each epoch after a share of its batches, and the validation part too: a quick look.

    The part ends as cancelled (`after_cancel_train`), and its figures are those of the batches done; a schedule goes on
    at the next epoch where it would be then. A batch costs 1 µs.

    Args:
        pct: the share of the batches, in (0, 1]; rounded up, so at least one.
        short_valid: whether validation is cut short too.
    Raises:
        ValueError: `pct` is outside (0, 1]; in a fit: the loader has no length.
    Source: `ShortEpochCallback` of fastai 2.8, which does a batch more where `pct` is a whole number of them.

    >>> look = ShortEpoch(0.05)
    """

    order = Recorder.order + 50  # the batch has ended for all others
    acts_in_step = False
    remove_on_fetch = True  # whoever asks for predictions asks for all of them

    def __init__(self, pct: float = 0.01, short_valid: bool = True) -> None:
        self.pct, self.short_valid = share("pct", pct), short_valid
        if not self.pct:
            raise ValueError(f"pct must be in (0, 1], got {pct!r}")

    def after_batch(self) -> None:
        if not self.training and not self.short_valid:
            return
        if self.n_iter is None:
            raise ValueError("ShortEpoch needs a loader that has a length (__len__), to know its share")
        if math.ceil(self.pct * self.n_iter - 1e-9) <= self.iter + 1 < self.n_iter:
            raise CancelTrainException if self.training else CancelValidException


ShortEpochCallback = ShortEpoch


class SkipToEpoch(Callback):
    """Leaves out the epochs before number `epoch`, each as a cancelled one: its row has no figures.

    Schedules and counts are at that epoch where they would be. ``fit(n_epoch, start_epoch=epoch)`` does the same
    without rows for what is left out; this is for code that has the callback. A batch costs nothing.

    Args:
        epoch: the number of the first epoch that is done, from 0.
    Raises:
        ValueError: it is less than 0.
        TypeError: it is no whole number.
    Source: `SkipToEpoch` of fastai 2.8.

    >>> later = SkipToEpoch(3)
    """

    order = TrainEval.order - 1  # before any callback begins the epoch
    run_search = False  # a search is of one epoch

    def __init__(self, epoch: int) -> None:
        self._first = whole("epoch", epoch)

    def before_epoch(self) -> None:
        if self.epoch < self._first:
            raise CancelEpochException

"""Stopping where the loss is no longer a number."""

from minilearn.callback import Callback, CancelFitException
from minilearn.callbacks.recorder import Recorder
from minilearn.votes import votes

LAST = 1 << 52
"""More batches than a fit has: the first batch that is named is the one of the largest answer."""


class TerminateOnNaN(Callback):
    """Ends the fit without an error when the training loss is nan or infinite; a line says where that began.

    It looks at the losses that the Recorder has read: on a CPU each batch's, on a GPU those of a few hundred batches
    ago, or fewer where a progress bar shows the loss, so that no batch waits for the device. Without it, the default
    callback `Divergence` ends such a fit with an error that names the cause. A batch costs about 1 µs.
    """

    order = Recorder.order + 1  # reads what the Recorder has seen
    run_valid = False
    run_search = False  # a search ends itself

    def after_loss(self) -> None:
        batch = self.learn.recorder.nan_at
        self._end(votes.ask("not finite", 0 if batch is None else LAST - batch))

    def after_train(self) -> None:
        batch = self.learn.recorder.nan_at
        self._end(votes.at_once("not finite", 0 if batch is None else LAST - batch))

    def _end(self, seen: int) -> None:
        if seen:
            self.learn.logger(f"the fit was ended: the loss of training batch {LAST - seen} is not a finite number")
            raise CancelFitException


TerminateOnNaNCallback = TerminateOnNaN

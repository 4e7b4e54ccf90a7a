"""Training mode and evaluation mode, and how far training has come."""

from collections.abc import Mapping
from typing import Any

from minilearn.callback import Callback
from minilearn.optim.foreign import set_mode


class TrainEval(Callback):
    """Puts the model into training or evaluation mode, and counts `train_iter` and `pct_train`.

    After a fit the model is in evaluation mode, whatever ended it. An optimizer that has `train` and `eval` of its own,
    as schedule-free ones do, goes with it: it is in evaluation mode in validation, from each epoch's end to the next
    epoch's training, and after the fit, so that what is measured and saved are the weights that it averages.
    """

    order = -10  # before any callback that reads the counters
    run_valid = False
    run_search = True  # a search trains

    _in_training_part = False

    def state_dict(self) -> dict[str, Any]:
        """How far training has come."""
        return {"train_iter": self.train_iter, "pct_train": self.pct_train}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` was taken."""
        self.learn.train_iter, self.learn.pct_train = state["train_iter"], state["pct_train"]

    def before_fit(self) -> None:
        self.learn.train_iter, self.learn.pct_train = 0, 0.0

    def before_train(self) -> None:
        self.model.train()
        self._set_opt_mode(training=True)
        self._in_training_part = True
        self.learn.pct_train = self.epoch / self.n_epoch

    def after_batch(self) -> None:
        learn = self.learn
        learn.train_iter += 1
        if learn.n_iter:
            learn.pct_train = (learn.epoch + (learn.iter + 1) / learn.n_iter) / learn.n_epoch

    def after_train(self) -> None:
        self._in_training_part = False

    def before_validate(self) -> None:
        self.model.eval()
        self._set_opt_mode(training=False)

    def after_validate(self) -> None:
        if self._in_training_part:  # a callback's look in between: training goes on
            self._set_opt_mode(training=True)

    def after_epoch(self) -> None:
        self._in_training_part = False  # after_train does not come where the epoch was cancelled
        self._set_opt_mode(training=False)

    def cleanup_fit(self) -> None:
        self._in_training_part = False
        self.model.eval()
        self._set_opt_mode(training=False)

    def _set_opt_mode(self, *, training: bool) -> None:
        set_mode(self.learn.__dict__.get("opt"), training)  # a validation may come before any optimizer is made


TrainEvalCallback = TrainEval
"""fastai's name."""

"""Training mode and evaluation mode, and how far training has come."""

from collections.abc import Mapping
from typing import Any

from minilearn.callback import Callback


class TrainEval(Callback):
    """Puts the model into training or evaluation mode, and counts `train_iter` and `pct_train`.

    After a fit the model is in evaluation mode, whatever ended it.
    """

    order = -10  # before any callback that reads the counters
    run_valid = False
    run_search = True  # a search trains

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
        self.learn.pct_train = self.epoch / self.n_epoch

    def after_batch(self) -> None:
        learn = self.learn
        learn.train_iter += 1
        if learn.n_iter:
            learn.pct_train = (learn.epoch + (learn.iter + 1) / learn.n_iter) / learn.n_epoch

    def before_validate(self) -> None:
        self.model.eval()

    def cleanup_fit(self) -> None:
        self.model.eval()

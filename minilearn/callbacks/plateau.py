"""A learning rate that falls when a figure stops improving."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from minilearn.callbacks.schedule import ParamScheduler, TorchScheduler
from minilearn.callbacks.tracker import Comparison, TrackerCallback
from minilearn.errors import in_range, whole
from minilearn.optim.hypers import read, write

LR = ("lr", None)


class ReduceLROnPlateau(TrackerCallback):
    """Divides every layer's learning rate when a figure has not improved for `patience` epochs; then it waits anew.

    It goes with `fit`, whose rate is its own to change, not with a fit that schedules the rate. After the fit, whatever
    ended it, the optimizer has again the rates it had before. (torch's callback of this name: `TorchScheduler`.)

    Args:
        monitor: as in `TrackerCallback`, as are `comp`, `min_delta` and `reset_on_fit`.
        comp: which of two figures is better.
        min_delta: by how much.
        patience: the number of epochs in a row without a better figure, at least 1.
        factor: what the rates are divided by, greater than 1.
        min_lr: no rate falls below it; one that is below it already stays.
        reset_on_fit: whether a fit begins without a best figure.
    Raises:
        TypeError: as in `TrackerCallback`; `patience` is no whole number.
        ValueError: as in `TrackerCallback`; an argument is out of its range; when a fit begins: another callback
            schedules the rate.
    Source: fastai 2.8, where a rate below `min_lr` is raised to it.
    """

    order = TrackerCallback.order + 2  # fastai's 62

    def __init__(
        self,
        monitor: str = "valid_loss",
        comp: Comparison = None,
        min_delta: float = 0.0,
        patience: int = 1,
        factor: float = 10.0,
        min_lr: float = 0.0,
        reset_on_fit: bool = True,
    ) -> None:
        super().__init__(monitor, comp, min_delta, reset_on_fit)
        self.patience, self.factor = whole("patience", patience, 1), in_range("factor", factor, 1, open_low=True)
        self.min_lr = in_range("min_lr", min_lr, 0)
        self.wait = 0
        self._before: list[float] | None = None
        self._opt: Optimizer | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best figure so far, the epochs since, and the rates before the fit, one a group."""
        return {**super().state_dict(), "wait": self.wait, "before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a fit was interrupted; the rates themselves are the optimizer's."""
        super().load_state_dict(state)
        self.wait = state["wait"]
        self._before = list(state["before"]) if state["before"] else self._before

    def before_fit(self) -> None:
        super().before_fit()
        for cb in self.learn.cbs:
            if isinstance(cb, TorchScheduler) or (isinstance(cb, ParamScheduler) and "lr" in cb.scheds):
                raise ValueError(
                    f"lr has a schedule in this fit, of {type(cb).__name__} (fit_one_cycle and its like have one),"
                    " which would undo what ReduceLROnPlateau does: use it with fit, or leave one out"
                )
        self.wait = 0
        self._opt = self.opt
        if self._before is None:
            self._before = [read(group, LR) for group in self.opt.param_groups]

    def after_epoch(self) -> None:
        super().after_epoch()
        if self.new_best is None:
            return
        self.wait = 0 if self.new_best else self.wait + 1
        if self.wait >= self.patience:
            self.wait = 0
            self._reduce()

    def cleanup_fit(self) -> None:
        if self._opt is not None and self._before is not None:
            _set(self._opt, self._before)
        self._opt = self._before = None

    def _reduce(self) -> None:
        old = [read(group, LR) for group in self.opt.param_groups]
        new = [min(lr, max(lr / self.factor, self.min_lr)) for lr in old]
        _set(self.opt, new)
        if new != old:
            self.learn.logger(f"epoch {self.epoch}: no better {self.monitor}, so the learning rate is now {new[-1]:g}")


def _set(opt: Optimizer, rates: list[float]) -> None:
    for group, lr in zip(opt.param_groups, rates, strict=False):
        write(group, LR, lr)

"""A fit's figures for Weights & Biases."""

import importlib.util
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from minilearn.callback import Callback
from minilearn.callbacks.figures import BatchFigures, FirstRows, is_first_set
from minilearn.callbacks.recorder import Recorder
from minilearn.data.loader import length
from minilearn.errors import describe
from minilearn.optim.hypers import named, read


class Wandb(Callback):
    """Logs a fit to a run of Weights & Biases, which whoever began it ends.

    - `before_fit`: what the fit is made of goes into the run's config.
    - `after_batch` in training: `train_loss` (the moving average), `raw_loss`, each layer's hyperparameters (`lr_0`,
      `mom_0`, …). In validation the first batch's first images are kept.
    - `after_epoch`: the number of epochs done, the validation loss and the metrics; those images with what the model
      said of them, where the inputs are images.

    Everything is logged beside `train_iter`, the number of training batches that this object has seen, which is the
    x-axis of its charts: what others log to the run in between is in nobody's way. A `stride`-th batch costs about
    400 µs on a CPU, nearly all of them in ``run.log``; any other 15 µs. Nothing waits for the device: from a GPU the
    losses come some hundred batches late. It only looks on, so a compiled step stays whole.

    Args:
        run: what ``wandb.init()`` gave; by default the current run, ``wandb.run``, when a fit begins.
        stride: every how many training batches to log losses and hyperparameters.
        log_config: whether to write the fit's arguments into the run's config.
        log_preds: whether to log images with predictions.
        n_preds: how many of them, at least 1.
    Raises:
        ImportError: no `run` was given and wandb is not installed.
        TypeError: `run` is no run; `stride` or `n_preds` is no whole number.
        ValueError: `stride` or `n_preds` is less than 1; in `before_fit`: there is no current run.
    Source: the figures' names are those of fastai 2.8.12.
    """

    order = Recorder.order + 1  # reads the row that the Recorder has made
    main_only = True
    acts_in_step = False
    run_search = False  # a search is no part of a run

    def __init__(
        self,
        run: Any = None,
        *,
        stride: int = 1,
        log_config: bool = True,
        log_preds: bool = True,
        n_preds: int = 9,
    ) -> None:
        if run is None and importlib.util.find_spec("wandb") is None:
            raise ImportError("Wandb needs the package wandb: pip install wandb")
        if run is not None and not callable(getattr(run, "log", None)):
            raise TypeError(f"run must be what wandb.init() gave, got {describe(run)}")
        self._given, self.log_config, self.log_preds = run, log_config, log_preds
        self._figures, self._first = BatchFigures(self._log, stride), FirstRows(n_preds)
        self._run: Any = None
        self._before = self._written = 0
        self._defined: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """How many batches the fits before this one had, and the moving average."""
        return {"before": self._before, "figures": self._figures.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on counting; going on in the run itself is for ``wandb.init(id=…, resume=…)`` to say."""
        self._before = state["before"]
        self._figures.load_state_dict(state["figures"])

    def before_fit(self) -> None:
        run = self._given
        if run is None:
            import wandb

            run = wandb.run
            if run is None:
                raise ValueError("there is no run to log to: call wandb.init() before the fit, or give Wandb(run)")
        self._run, self._defined = run, {"train_iter"}
        run.define_metric("train_iter")
        self._figures.begin(self.learn.recorder.smooth_loss.beta)
        if self.log_config:
            run.config.update(self._config(), allow_val_change=True)

    def before_epoch(self) -> None:
        self._written = len(self.learn.recorder.epochs)  # those before, of a run that goes on too, are logged already

    def after_batch(self) -> None:
        if self._run is None:
            return
        if self.training:
            self._figures.take(self.learn, self._before + self.train_iter)
        elif self.log_preds and self.iter == 0 and is_first_set(self.learn):
            self._first.keep(self.learn)

    def after_epoch(self) -> None:
        self._log_rows()
        figure = self._first.figure(self.learn.loss_func)
        if figure is not None:
            import wandb

            picture, make = io.BytesIO(), wandb.Image
            figure.savefig(picture, format="png")
            self._log(self._before + self.train_iter, {"predictions": make(Image.open(picture))})
        self._first.forget()

    def after_fit(self) -> None:
        self._log_rows()  # of an epoch that was cut short after its last figure

    def cleanup_fit(self) -> None:
        if self._run is None:
            return
        self._first.forget()
        try:
            self._figures.read()
        finally:
            self._run = None
            self._before += self.train_iter

    def _log_rows(self) -> None:
        """Logs the rows that the Recorder has made and that are not logged yet."""
        self._figures.read()
        recorder = self.learn.recorder
        for i in range(self._written, len(recorder.epochs)):
            row = dict(zip(recorder.column_names[1:], recorder.values[i][1:], strict=True))
            known = {name: value for name, value in row.items() if value is not None}
            self._log(self._before + recorder.iters[i], {"epoch": recorder.epochs[i] + 1, **known})
        self._written = len(recorder.epochs)

    def _log(self, train_iter: int, figures: Mapping[str, Any]) -> None:
        for name in figures:
            if name not in self._defined:
                self._defined.add(name)
                self._run.define_metric(name, step_metric="train_iter")
        self._run.log({**figures, "train_iter": train_iter})

    def _config(self) -> dict[str, Any]:
        """What the fit is made of, in plain values."""
        learn = self.learn
        opt, loss_func = learn.opt, learn.loss_func
        return {
            "model": type(learn.model).__name__,
            "parameters": sum(p.numel() for p in learn.model.parameters()),
            "opt": type(opt).__name__,
            "loss_func": getattr(loss_func, "__name__", None) or type(loss_func).__name__,
            "n_epoch": learn.n_epoch,
            "batch_size": getattr(learn.dls.train, "batch_size", None),
            "n_iter": length(learn.dls.train),
            **{name: read(opt.param_groups[-1], spot) for name, spot in named(opt.param_groups[-1]).items()},
        }


WandbCallback = Wandb
"""fastai's name."""

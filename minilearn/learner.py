"""The Learner: the loop of `minilearn.loop` plus the methods that a person types."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from minilearn.callback import Callbacks, CancelEpochException, CancelFitException
from minilearn.callbacks import DevicePlacement, LRFinder, LRSearch, ProgressCallback, Recorder, TrainEval, find_lr
from minilearn.callbacks.checkpoint import Kept, checkpoints_of
from minilearn.callbacks.profile import Profile, profile_fit
from minilearn.compiling import check_mode
from minilearn.data.loaders import DataLoaders
from minilearn.errors import describe, in_range, whole
from minilearn.fits import Moms, check_moms
from minilearn.layered import Splitter, trainable_params
from minilearn.loop import OF_A_BATCH, OF_A_PART
from minilearn.managed import callbacks_of
from minilearn.metrics import as_metrics
from minilearn.optim import Adam, groups
from minilearn.optim.groups import Spread
from minilearn.saved import SavedLoop
from minilearn.step import CompiledSteps

DEFAULT_CALLBACKS = (TrainEval, DevicePlacement, Recorder, ProgressCallback)


class Learner(SavedLoop):
    """A model, the data it learns from, a loss, an optimizer and metrics; `fit` trains it.

    Args:
        dls: the loaders: `DataLoaders`, or a sequence of a training and a validation loader.
        model: any `nn.Module`; it is called with the batch's inputs.
        loss_func: called with the model's output and the batch's targets, gives a scalar. Without one, the loss
            follows from the first batch, and a line says which was taken.
        opt_func: called with parameter groups and ``lr=``, gives a `torch.optim.Optimizer`.
        lr: the learning rate of a `fit` that names none; as there, one number or one for each layer.
        splitter: gives the parameters to train, or lists of them, one for each layer, from the model.
        cbs: callbacks beside the default ones; one of a default's class takes its place.
        metrics: functions of (pred, target), `Metric`s or torchmetrics objects, one or several.
        path: the folder for what is saved; by default the loaders'.
        model_dir: the folder below `path` for models.
        wd: weight decay for every group; None leaves the optimizer's own default.
        wd_bn_bias: whether weight decay is for normalisation layers and biases too.
        train_bn: whether the parameters of normalisation layers are trained in frozen layers too. The running averages
            of batch normalisation go on in either case.
        moms: the momenta at the start, the middle and the end of one cycle; by default (0.95, 0.85, 0.95) where the
            optimizer was made with momentum.
        default_cbs: whether the default callbacks are there: training mode and counters, device, recorder, progress.
        compile: whether steps are compiled (`CompiledSteps`), by torch.compile, which takes seconds to a minute at the
            beginning; or one of its modes, such as "max-autotune".
    Raises:
        TypeError: an argument is not what it should be.
        ValueError: `lr` or `wd` is out of its range.

    >>> import torch
    >>> dls = DataLoaders.from_tensors(torch.rand(100, 3), torch.rand(100, 1))
    >>> learn = Learner(dls, nn.Linear(3, 1), loss_func=nn.functional.mse_loss)
    >>> with learn.no_logging():
    ...     learn.fit(1)
    >>> learn.recorder.metric_names
    ['epoch', 'train_loss', 'time']
    """

    lr_search: LRSearch  # of the last `lr_find`

    def __init__(
        self,
        dls: DataLoaders | Sequence[Any],
        model: nn.Module,
        loss_func: Callable[..., Tensor] | None = None,
        opt_func: Callable[..., Optimizer] = Adam,
        lr: Spread = 1e-3,
        splitter: Splitter = trainable_params,
        cbs: Callbacks = None,
        metrics: Any = None,
        path: str | Path | None = None,
        model_dir: str | Path = "models",
        wd: float | None = None,
        wd_bn_bias: bool = False,
        train_bn: bool = True,
        moms: Moms | None = None,
        default_cbs: bool = True,
        compile: bool | str = False,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {describe(model)}")
        for name, value in (("opt_func", opt_func), ("splitter", splitter)):
            if not callable(value):
                raise TypeError(
                    f"{name} must be a class or a function, such as {name}=torch.optim.SGD, got {describe(value)}"
                )
        if isinstance(opt_func, partial) and "lr" in opt_func.keywords:
            raise ValueError("leave lr out of opt_func and give it to the Learner or to fit, which set it")
        if loss_func is not None and (not callable(loss_func) or isinstance(loss_func, type)):
            raise TypeError(f"loss_func must be a function or a module, got {describe(loss_func)}")
        self.dls = DataLoaders.of(dls)
        self.model, self.loss_func, self.opt_func, self.splitter = model, loss_func, opt_func, splitter
        self.lr = groups.numbers_of(lr, "lr")
        self.wd = None if wd is None else in_range("wd", wd, 0)
        self.wd_bn_bias, self.train_bn, self.moms = wd_bn_bias, train_bn, check_moms(moms)
        self.metrics = as_metrics(metrics)
        self.path, self.model_dir = Path(self.dls.path if path is None else path), Path(model_dir)
        self.logger, self.show_bar = print, True
        self.compiled = CompiledSteps(compile) if check_mode(compile) else None
        given = callbacks_of(cbs)
        if default_cbs:
            self.add_cbs([kind for kind in DEFAULT_CALLBACKS if not any(isinstance(cb, kind) for cb in given)])
        self.add_cbs(given)
        self.event("after_create")

    # ---- training ----

    def fit(
        self,
        n_epoch: int,
        lr: Spread | None = None,
        wd: float | None = None,
        cbs: Callbacks = None,
        reset_opt: bool = False,
        start_epoch: int = 0,
        checkpoint: Kept = None,
    ) -> None:
        """Trains for `n_epoch` epochs, and validates after each.

        A second fit goes on with the same optimizer, its averages included, unless the model has other parameters now.

        Args:
            n_epoch: the number at which epochs end.
            lr: learning rate; by default the Learner's. For each layer that `splitter` gives: a list, or
                ``slice(first, last)`` by equal factors, or ``slice(last)`` with a tenth of it before.
            wd: weight decay; by default the Learner's, and where that has none either, it stays as it is.
            cbs: callbacks for this fit only.
            reset_opt: begin with a new optimizer.
            start_epoch: the epoch to begin with, to go on with a run that was cut short.
            checkpoint: a folder in which the run is kept (`Checkpoint`): begun again, the fit goes on where it stopped.
        Raises:
            ValueError: an argument is out of its range, a loader is empty, a batch has no target, or there is no
                parameter to train. Whatever is raised, the Learner can be used again.
        """
        self._not_running()
        n_epoch, start_epoch = whole("n_epoch", n_epoch), whole("start_epoch", start_epoch)
        if start_epoch > n_epoch:
            ends = "the number at which epochs end (not how many are to come)"
            raise ValueError(f"start_epoch must be at most n_epoch, {ends}, got {start_epoch} and n_epoch={n_epoch}")
        lr = self.lr if lr is None else groups.numbers_of(lr, "lr")
        wd = self.wd if wd is None else in_range("wd", wd, 0)
        self.n_epoch = n_epoch
        self._take_stock()
        groups.set_hypers(self._ready_opt(reset_opt), lr=lr, wd=wd)
        with self.added_cbs([*callbacks_of(cbs), *checkpoints_of(checkpoint)]):
            self._fit(start_epoch)

    def validate(self, ds_idx: int = 1, dl: Any = None, cbs: Callbacks = None) -> list[float | None]:
        """The loss and the metrics over a loader, without training; the history of the last fit stays.

        Args:
            ds_idx: the number of the loader in `dls`.
            dl: a loader to take instead.
            cbs: callbacks for this validation only.
        Returns:
            The loss, then the metrics in their order.
        Raises:
            IndexError: there is no loader `ds_idx`.
            ValueError: the loader is empty.
        """
        if not isinstance(ds_idx, int):
            raise TypeError(
                f"ds_idx must be a loader's number, got {describe(ds_idx)}: validate(dl=...) takes a loader"
            )
        self._take_stock()
        dl = self.dls[ds_idx] if dl is None else dl
        recorder = self.recorder
        with self.added_cbs(cbs):
            if self._running:
                return self._validate_aside(dl)
            with self._cleaned_up(fitting=False), suppress(CancelEpochException, CancelFitException):
                self._validate(dl)
        return list(recorder.valid_values)

    def lr_find(
        self,
        start_lr: float | Sequence[float] = 1e-7,
        end_lr: float | Sequence[float] = 10.0,
        num_it: int = 100,
        stop_div: bool = True,
        show_plot: bool = True,
        suggest_funcs: Any = "valley",
    ) -> Any:
        """Trains at rising rates (`LRFinder`), puts everything back (`find_lr`), and gives the suggestions by name."""
        return find_lr(self, LRFinder(start_lr, end_lr, num_it, stop_div), suggest_funcs, show_plot)

    def profile(self, n_batches: int = 100) -> Profile:
        """Trains on `n_batches` batches, puts everything back, prints and gives where the time went (`profile_fit`)."""
        return profile_fit(self, n_batches)

    def _validate_aside(self, dl: Any) -> list[float | None]:
        """Validates at the word of a callback, in a fit that goes on afterwards as if nothing had been."""
        names = (*OF_A_BATCH, *OF_A_PART, "training")
        kept = {name: self.__dict__[name] for name in names if name in self.__dict__}
        modes = [(module, module.training) for module in self.model.modules()]
        try:
            with self.recorder.set_aside():
                self._validate(dl)
                return list(self.recorder.valid_values)
        finally:
            self._forget(*names)
            self.__dict__.update(kept)
            for module, mode in modes:
                module.training = mode
            self.build_handlers()

    def _take_stock(self) -> None:
        """Takes `dls` and `metrics` as they were set since, in the forms that the constructor takes too."""
        self.dls, self.metrics = DataLoaders.of(self.dls), as_metrics(self.metrics)

    @property
    def recorder(self) -> Recorder:
        """The Recorder: the history of the last fit.

        Raises:
            ValueError: there is none, as the Learner was made with `default_cbs=False` or it was removed.
        """
        for cb in self.cbs:
            if isinstance(cb, Recorder):
                return cb
        raise ValueError("this Learner has no Recorder: add one, learn.add_cb(Recorder())")

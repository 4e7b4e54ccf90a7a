"""The Learner: the loop of `minilearn.loop` plus the methods that a person types."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from minilearn.callback import Callbacks
from minilearn.callbacks import (
    DevicePlacement,
    Distributed,
    Divergence,
    LRFinder,
    LRSearch,
    Preflight,
    ProgressCallback,
    Recorder,
    TrainEval,
    find_lr,
)
from minilearn.callbacks.checkpoint import Kept, checkpoints_of
from minilearn.callbacks.profile import Profile, profile_fit
from minilearn.compiling import check_mode
from minilearn.data.loaders import DataLoaders
from minilearn.distributed import launched
from minilearn.errors import describe, in_range, whole
from minilearn.fits import Moms, check_moms
from minilearn.layered import Splitter, trainable_params
from minilearn.managed import callbacks_of
from minilearn.metrics import as_metrics
from minilearn.optim import Adam, groups
from minilearn.optim.groups import Spread
from minilearn.step import CompiledSteps
from minilearn.trials import TrialLoop

DEFAULT_CALLBACKS = (TrainEval, DevicePlacement, Preflight, Recorder, Divergence, ProgressCallback)


class Learner(TrialLoop):
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
        default_cbs: whether the default callbacks are there: training mode and counters, device, a look at the
            first batch, recorder, a look for divergence, progress.
        compile: whether steps are compiled (`CompiledSteps`), by torch.compile, which takes seconds to a minute at the
            beginning; or one of its modes, such as "max-autotune".
        deterministic: whether fits take only kernels that give the same numbers twice (`trials.deterministic_kernels`).
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
        deterministic: bool = False,
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
        self.path = Path(path) if path is not None else self.dls.path
        self.model_dir, self.logger, self.show_bar = Path(model_dir), print, True
        self.deterministic = deterministic
        self.compiled = CompiledSteps(compile) if check_mode(compile) else None
        given = callbacks_of(cbs)
        if default_cbs:
            kinds = (*DEFAULT_CALLBACKS, Distributed) if launched() else DEFAULT_CALLBACKS
            self.add_cbs([kind for kind in kinds if not any(isinstance(cb, kind) for cb in given)])
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

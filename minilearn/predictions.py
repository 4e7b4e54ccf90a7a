"""What a Learner makes of data without training on it: measures, predictions, a look at them."""

import copy
from abc import ABC
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from minilearn import distributed
from minilearn.callback import Callback, Callbacks, CancelEpochException, CancelFitException
from minilearn.callbacks import GatherPreds, ProgressCallback, Recorder
from minilearn.data.loader import ANEW
from minilearn.data.loaders import DataLoaders
from minilearn.data.order import check_loader, in_order, some_rows
from minilearn.errors import describe, share, whole
from minilearn.fits import ScheduledFits
from minilearn.loop import OF_A_BATCH, OF_A_PART
from minilearn.losses import not_reduced
from minilearn.managed import callbacks_of
from minilearn.metrics import as_metrics
from minilearn.plots import plot_results
from minilearn.rows import in_rows
from minilearn.shortcut import straight
from minilearn.tensors import map_tensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class PredictingLoop(ScheduledFits, ABC):
    """The part of a Learner that validates and predicts, alone or at the word of a callback within a fit.

    Nothing of a fit is touched by it: not the history, the metrics' sums, what callbacks keep; in a fit, also not the
    batch and the modes of the model's modules.
    """

    metrics: list[Any]
    _at_rest: tuple[Callback, ...] = ()

    # ---- measures ----

    def validate(self, ds_idx: int = 1, dl: Any = None, cbs: Callbacks = None) -> list[float | None]:
        """The loss and the metrics over a loader, without training; the history of the last fit stays.

        In several processes all must call it, and all have the figures of all rows; where one is missing, the others
        wait for it until their time is up. So it is with `get_preds` and `tta`; not with `predict`.

        Args:
            ds_idx: the number of the loader in `dls`.
            dl: a loader to take instead.
            cbs: callbacks for this validation only.
        Returns:
            The loss, then the metrics in their order.
        Raises:
            IndexError: there is no loader `ds_idx`.
            TypeError: `dl` is no loader.
            ValueError: the loader is empty.
        """
        self._take_stock()
        dl = self._loader("validate", ds_idx, dl)
        recorder = self.recorder
        with self.added_cbs(cbs):
            if self._running:
                with recorder.set_aside():
                    self._validate_aside(dl)
                    return list(recorder.valid_values)
            with self._cleaned_up(fitting=False), suppress(CancelEpochException, CancelFitException):
                self._validate(dl)
        return list(recorder.valid_values)

    # ---- predictions ----

    def get_preds(
        self,
        ds_idx: int = 1,
        dl: Any = None,
        with_input: bool = False,
        with_decoded: bool = False,
        with_loss: bool = False,
        act: Callable[[Any], Any] | None = None,
        inner: bool = False,
        reorder: bool = True,
        cbs: Callbacks = None,
        concat_dim: int = 0,
        save_preds: str | Path | None = None,
        save_targs: str | Path | None = None,
        *,
        with_preds: bool = True,
        with_targs: bool = True,
    ) -> tuple[Any, ...]:
        """The model's predictions over a loader, and the targets, on the CPU; nothing else changes.

        Callbacks hear the events of a validation, but for the Recorder, the progress and those with an attribute
        ``remove_on_fetch = True``; the batch's loss is not computed. See `GatherPreds` for what is gathered, and how.

        Args:
            ds_idx: the number of the loader in `dls`.
            dl: a loader to take instead: any iterable of batches.
            with_input: the inputs too, as the model gets them.
            with_decoded: the answers too, in the form of the targets: what the loss's `decodes` makes of predictions.
            with_loss: each row's loss too.
            act: what to make of the predictions, on their device, batch by batch; by default the loss's `activation`,
                such as the softmax of cross-entropy (`losses.activation_of`). ``act=lambda pred: pred`` for none.
            inner: fastai's word for a call from within a fit; a Learner knows that by itself.
            reorder: every row of the data set, in its order, though the loader shuffles or drops a ragged batch; False
                for the rows as the loader gives them.
            cbs: callbacks for this pass only.
            concat_dim: the axis of the rows.
            save_preds: a .npy file, or a folder, to write predictions to: they are mapped from it, and need no memory.
            save_targs: the same for the targets.
            with_preds: whether predictions are kept; None stands in their place where they are not.
            with_targs: whether targets are kept.
        Returns:
            (predictions, targets), with the inputs before them, and the answers, then the losses after them, where they
            are asked for. Targets are None where the loader has none; several are a tuple.
        Raises:
            IndexError: there is no loader `ds_idx`.
            TypeError: `dl` is no loader, or `act` no function.
            ValueError: the loader gave no batch, its rows cannot be gathered, or come in batches out of order that
                cannot be written to a file as they come.
        """
        self._take_stock()
        loader, order = self._loader("get_preds", ds_idx, dl), None
        if reorder:
            loader, order = in_order(loader)
        if order is not None and (save_preds is not None or save_targs is not None):
            raise ValueError(
                "save_preds and save_targs write rows as they come, and this loader's batch_sampler gives them in an"
                " order of its own: reorder=False takes them so"
            )
        unusual = (with_input, with_loss, with_decoded, act, cbs, concat_dim, save_preds, save_targs)
        if with_preds and with_targs and order is None and not any(unusual) and (found := straight(self, loader)):
            return found
        gather = GatherPreds(
            with_input, with_loss, save_preds, save_targs, with_preds, with_targs, concat_dim,
            act=act, with_decoded=with_decoded, own_act=True,
        )  # fmt: skip
        quiet = [
            cb
            for cb in self.cbs
            if isinstance(cb, (Recorder, ProgressCallback)) or getattr(type(cb), "remove_on_fetch", False)
        ]
        with self.resting(quiet), self.validation_context([*callbacks_of(cbs), gather]):
            if self._running:
                self._validate_aside(loader, with_loss=False)
            else:
                with self._cleaned_up(fitting=False):
                    self._validate(loader, with_loss=False)
        return tuple(in_rows(part, order, concat_dim) for part in gather.all_tensors())

    def predict(self, item: Any, with_input: bool = False) -> tuple[Any, ...]:
        """The model's answer to one row.

        Args:
            item: a row as the data set gives it, with its target or without: what the loader makes a batch of. The
                loaders' `batch_tfms` are carried out.
            with_input: with the input, as it was given.
        Returns:
            (answer, answer as a tensor, prediction): the answer is in the form of the targets, as a plain value where
            it is one number, and by its name where ``dls.vocab`` has one for each class; the prediction is what
            `get_preds` gives for the row, probabilities for most losses over classes.
        """
        self._take_stock()
        collate = default_collate
        if isinstance(self.dls.train, torch.utils.data.DataLoader) and self.dls.train.batch_size is not None:
            collate = self.dls.train.collate_fn
        batch = collate([item])
        with distributed.alone():  # each process by itself: not all need to ask
            preds, _, decoded = self.get_preds(dl=[batch], with_decoded=True, with_targs=False)
        pred, answer = (map_tensors(_first_row, part) for part in (preds, decoded))
        plain = answer.item() if isinstance(answer, Tensor) and answer.numel() == 1 else answer
        vocab = getattr(self.dls, "vocab", None)
        if vocab is not None and isinstance(plain, int):
            plain = vocab[plain]
        return (*([item] if with_input else []), plain, answer, pred)

    def tta(
        self,
        ds_idx: int = 1,
        dl: Any = None,
        n: int = 4,
        beta: float | None = 0.25,
        use_max: bool = False,
    ) -> tuple[Any, ...]:
        """Predictions averaged over `n` passes with the transforms that are random in training, and one without.

        Args:
            ds_idx: the number of the loader in `dls`.
            dl: a loader to take instead, which can be gone through several times.
            n: how many passes with them, at least 1.
            beta: the share of the plain pass, in [0, 1]; None for both apart, ``(augmented, plain)``.
            use_max: the largest of all predictions in place of the average.
        Returns:
            (predictions, targets).
        Raises:
            ValueError: no transform is random in training, or an argument is out of its range.
        Source: fastai 2.8.
        """
        n, beta = whole("n", n, 1), None if beta is None else share("beta", beta)
        self._take_stock()
        loader, dls = self._loader("tta", ds_idx, dl), self.dls
        if not any(getattr(tfm, "train_only", False) for tfm in dls.batch_tfms):
            raise ValueError(
                "tta needs transforms that are random in training, and these DataLoaders have none:"
                " DataLoaders(..., batch_tfms=[RandomFlip()])"
            )
        if hasattr(loader, "__next__"):
            raise ValueError(f"tta goes through the loader {n + 1} times, and this one can be only once. {ANEW}")
        plain, targets = self.get_preds(dl=loader)
        if not isinstance(plain, Tensor):
            raise ValueError(f"tta averages a tensor of predictions, and the model gives {describe(plain)}")
        self.dls = copy.copy(dls)
        vars(self.dls)["transform"] = lambda x, training: dls.transform(x, training=True)
        try:
            mixed, _ = self.get_preds(dl=loader, with_targs=False)
            for _ in range(n - 1):
                more, _ = self.get_preds(dl=loader, with_targs=False)
                mixed = torch.maximum(mixed, more) if use_max else mixed.add_(more)
        finally:
            self.dls = dls
        if use_max:
            return torch.maximum(plain, mixed), targets
        mixed /= n
        return ((mixed, plain) if beta is None else torch.lerp(mixed, plain, beta)), targets

    def show_results(
        self, ds_idx: int = 1, dl: Any = None, max_n: int = 9, shuffle: bool = True, **kwargs: Any
    ) -> "Axes":
        """Rows with their targets and the model's answers: as pictures where the input is images, else as a table.

        Args:
            ds_idx: the number of the loader in `dls`.
            dl: a loader to take instead.
            max_n: how many rows, at least 1.
            shuffle: rows drawn at random, where the loader's data set gives them by number; else the first ones.
            kwargs: for `plot_results`: `columns`, `ax`.
        """
        max_n = whole("max_n", max_n, 1)
        self._take_stock()
        loader = self._loader("show_results", ds_idx, dl)
        batch = next(iter(some_rows(loader, max_n) if shuffle else loader))
        with distributed.alone():
            preds = self.get_preds(dl=[batch], with_decoded=True)
        vocab = getattr(self.dls, "vocab", None)
        return plot_results(self._inputs_of(batch), preds[1], preds[2], max_n=max_n, vocab=vocab, **kwargs)

    # ---- for a while ----

    @contextmanager
    def validation_context(self, cbs: Callbacks = None, inner: bool = False) -> Iterator[None]:
        """Without any output, and with these callbacks, for the length of a ``with`` block.

        Args:
            cbs: callbacks, one or several.
            inner: fastai's word for a call from within a fit; a Learner knows that by itself.
        """
        with self.no_logging(), self.no_bar(), self.added_cbs(cbs):
            yield

    @contextmanager
    def loss_not_reduced(self) -> Iterator[None]:
        """With a `loss_func` that gives a value for each element, not their mean: see `losses.not_reduced`.

        Raises:
            ValueError: the Learner has no `loss_func` yet.
        """
        if self.loss_func is None:
            raise ValueError("there is no loss_func yet: give Learner(..., loss_func=...), or fit first")
        before = self.loss_func
        with not_reduced(before) as losses_of:
            self.loss_func = losses_of
            try:
                yield
            finally:
                self.loss_func = before

    @contextmanager
    def resting(self, cbs: Iterable[Callback | type[Callback]]) -> Iterator[None]:
        """With callbacks that hear of no event for the length of a ``with`` block; they stay the Learner's.

        Args:
            cbs: callbacks, or classes of them.
        """
        before, listed = self._at_rest, list(cbs)
        found = [cb for cb in self.cbs if any(cb is c or (isinstance(c, type) and type(cb) is c) for c in listed)]
        self._at_rest = (*before, *found)
        self.build_handlers()
        try:
            yield
        finally:
            self._at_rest = before
            self.build_handlers()

    def _listeners(self) -> list[Callback]:
        """The callbacks that are not at rest."""
        return [cb for cb in super()._listeners() if not any(cb is resting for resting in self._at_rest)]

    # ---- beneath ----

    def _validate_aside(self, dl: Any, *, with_loss: bool = True) -> None:
        """Validates at the word of a callback, in a fit that goes on afterwards as if nothing had been."""
        names = (*OF_A_BATCH, *OF_A_PART, "training")
        kept = {name: self.__dict__[name] for name in names if name in self.__dict__}
        modes = [(module, module.training) for module in self.model.modules()]
        try:
            self._validate(dl, with_loss=with_loss)
        finally:
            self._forget(*names)
            self.__dict__.update(kept)
            for module, mode in modes:
                module.training = mode
            self.build_handlers()

    def _loader(self, who: str, ds_idx: Any, dl: Any) -> Any:
        """The loader that is meant: `dl`, or the one of that number.

        Raises:
            TypeError: `ds_idx` is no number, or `dl` no loader.
            IndexError: there is no loader of that number.
        """
        if isinstance(ds_idx, bool) or not isinstance(ds_idx, int):
            raise TypeError(f"ds_idx must be a loader's number, got {describe(ds_idx)}: {who}(dl=...) takes a loader")
        return self.dls[ds_idx] if dl is None else check_loader(dl)

    def _inputs_of(self, batch: Any) -> Any:
        """A batch's inputs as the loader gives them."""
        try:
            self._take(batch)
            return self.x
        finally:
            self._forget(*OF_A_BATCH)

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

    @property
    def final_record(self) -> list[float | None]:
        """The figures of the last epoch, a row of `recorder.values`: training loss, validation loss, metrics.

        Raises:
            ValueError: no epoch has been recorded.
        """
        if not self.recorder.values:
            raise ValueError("there is no final_record yet: no epoch has been recorded")
        return self.recorder.values[-1]

    @property
    def smooth_loss(self) -> float | None:
        """The moving average of the training loss; None before the first batch. Waits for the device."""
        return self.recorder.smooth_loss.value


def _first_row(value: Tensor) -> Tensor:
    return value[0] if value.ndim else value

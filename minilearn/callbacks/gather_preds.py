"""Predictions kept: those of a validation as it goes by, and those of any loader after each validation."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from minilearn.callback import Callback, Callbacks
from minilearn.callbacks.progress import ProgressCallback
from minilearn.callbacks.recorder import Recorder
from minilearn.data.loader import length
from minilearn.data.order import row_count
from minilearn.data.shares import share_of
from minilearn.errors import describe, whole
from minilearn.joined_rows import FiledNested, JoinedNested
from minilearn.losses import activation_of, decodes_of, infer_loss, row_losses, unchanged
from minilearn.rows import Column, InFile, InMemory, Nested, npy_path
from minilearn.tensors import batch_size, cloned


class GatherPreds(Callback):
    """Keeps the predictions of a validation, with its targets, and inputs and losses where asked for.

    `before_validate` begins anew, `after_batch` takes a batch on, and from `after_validate` on `preds`, `targets`,
    `inputs` and `losses` are there, on the CPU, in the order in which the loader gave the rows; what was not asked for,
    or is not in the batches, is None. Several targets, or a model's several outputs, are nested as they were.

    Predictions are written into one tensor, as long as the loader's rows where it tells their number, so that there is
    never a second copy; from a CUDA GPU they are copied without waiting. A batch costs about 18 µs for each tensor that
    is gathered, beside the copy. Where rows differ in shape, they come as a list.

    In several processes each gathers its own rows, and at the end every one has those of all, in the loader's order;
    files are written by rank 0, step by step, and mapped by all.

    Args:
        with_input: keep the inputs too, as the model gets them.
        with_loss: keep each row's loss too: see `losses.not_reduced`.
        save_preds: a .npy file, or a folder for ``preds.npy``, to write the predictions to as they come; `preds` is
            then mapped from it, and no memory is needed. Of several tensors each has a file, ``preds_0.npy``. The file
            is there when the validation is over.
        save_targs: the same for the targets, ``targs.npy``.
        with_preds: keep the predictions.
        with_targs: keep the targets.
        concat_dim: the axis of the rows, along which batches are joined; any but 0 needs memory for a second copy.
        act: what to make of the predictions, on their device, batch by batch; nothing by default.
        with_decoded: keep the answers too, `decoded`: what the loss's `decodes` makes of the predictions.
        own_act: the loss's activation is taken where there is no `act`.
    Raises:
        TypeError: `act` is no function.
        ValueError: `save_preds` and `save_targs` are the same file, or are to be joined along another axis than 0.
    """

    order = Recorder.order + 2  # after whatever changes the prediction or the loss
    run_train = False
    run_search = False  # a search has no validation
    acts_in_step = False
    remove_on_fetch = True  # another loader's predictions are none of its own

    preds: Any = None
    targets: Any = None
    inputs: Any = None
    losses: Any = None
    decoded: Any = None

    def __init__(
        self,
        with_input: bool = False,
        with_loss: bool = False,
        save_preds: str | Path | None = None,
        save_targs: str | Path | None = None,
        with_preds: bool = True,
        with_targs: bool = True,
        concat_dim: int = 0,
        *,
        act: Callable[[Any], Any] | None = None,
        with_decoded: bool = False,
        own_act: bool = False,
    ) -> None:
        self.with_input, self.with_loss, self.with_decoded = with_input, with_loss, with_decoded
        self.with_preds, self.with_targs = with_preds or save_preds is not None, with_targs or save_targs is not None
        self.concat_dim = whole("concat_dim", concat_dim)
        if act is not None and not callable(act):
            raise TypeError(f"act must be a function of predictions, such as torch.sigmoid, got {describe(act)}")
        self.act, self.own_act = act, own_act
        self.save_preds = None if save_preds is None else Path(save_preds)
        self.save_targs = None if save_targs is None else Path(save_targs)
        if concat_dim and (save_preds is not None or save_targs is not None):
            raise ValueError(f"concat_dim must be 0 with save_preds and save_targs, which write rows, got {concat_dim}")
        if self.save_preds is not None and self.save_preds == self.save_targs and not self.save_preds.is_dir():
            raise ValueError(
                f"save_preds and save_targs must be two files, or a folder, got {self.save_preds} for both"
            )
        self._parts: dict[str, Nested] = {}
        self._inputs: Any = None
        self._loss_func: Any = None
        self._made: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None = None

    def all_tensors(self) -> list[Any]:
        """What was gathered, in fastai's order: inputs, predictions, targets, decoded, losses; those asked for."""
        return [
            *([self.inputs] if self.with_input else []),
            self.preds,
            self.targets,
            *([self.decoded] if self.with_decoded else []),
            *([self.losses] if self.with_loss else []),
        ]

    def before_validate(self) -> None:
        self._discard()
        self.preds = self.targets = self.inputs = self.losses = self.decoded = None
        self._loss_func = self._made = None
        rows, batches = row_count(self.dl), length(self.dl)

        several = share_of(self.dl) is not None

        def part(path: Path | None = None, stem: str = "") -> Nested:
            def column(name: str) -> Column:
                if path is not None:
                    return InFile(npy_path(path, stem, name))
                return InMemory(rows, batches, self.concat_dim)

            if not several:
                return Nested(column)
            if path is None:
                return JoinedNested(column, self.concat_dim)
            return FiledNested(column, partial(npy_path, path, stem))

        self._parts = {
            "inputs": part(),
            "preds": part(self.save_preds, "preds"),
            "targets": part(self.save_targs, "targs"),
            "decoded": part(),
            "losses": (JoinedNested if several else Nested)(lambda name: InMemory(rows, batches)),
        }

        if not self.with_input:
            self.learn.rest_cb(self, "before_batch")

    def before_batch(self) -> None:
        if self.with_input:
            self._inputs = cloned(self.xb)  # the model may change its input in place

    def after_batch(self) -> None:
        learn, parts = self.learn, self._parts
        share = share_of(learn.dl)
        if "pred" not in learn.__dict__ or (share is not None and not share.own):
            for part in parts.values():  # the batch was cancelled before the model saw it, or its rows are another's
                part.skip()
            return
        if self.with_input:
            parts["inputs"].append(_bare(self._inputs))
            self._inputs = None
        if share is not None and not (self.with_targs and learn.yb):
            parts["targets"].skip()
        if self._made is None:
            self._made = self._begin()
        (activate, decode), pred, yb = self._made, learn.pred, learn.yb
        if self.with_targs and yb:
            parts["targets"].append(_bare(yb))
        if self.with_loss and yb:
            rows = len(pred) if isinstance(pred, Tensor) else batch_size(yb)
            parts["losses"].append(row_losses(self._loss_func, pred, yb, rows))
        if self.act is not None or isinstance(pred, Tensor):
            pred = activate(pred)
        if self.with_preds:
            parts["preds"].append(pred)
        if self.with_decoded:
            parts["decoded"].append(decode(pred) if isinstance(pred, Tensor) else pred)

    def after_validate(self) -> None:
        for name, part in self._parts.items():
            setattr(self, name, part.result())
        self._parts = {}

    def cleanup_fit(self) -> None:
        self._discard()

    def _discard(self) -> None:
        """Lets go of a validation that did not come to its end."""
        for part in self._parts.values():
            part.discard()
        self._parts, self._inputs = {}, None

    def _begin(self) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
        """Activation and decoding by the Learner's loss; before it has one, by that which follows from the batch."""
        self._loss_func = self.learn.loss_func
        if self._loss_func is None and self.yb:
            try:
                self._loss_func = infer_loss(self.pred, self.yb)[0]
            except ValueError:  # none follows: the predictions stay as they are
                if self.with_loss:
                    raise
        act = self.act or (activation_of(self._loss_func) if self.own_act else unchanged)
        return act, decodes_of(self._loss_func)


class FetchPreds(Callback):
    """After each validation, the predictions of a loader by the model as it is then: `preds`, as of `get_preds`.

    It costs a pass over the loader an epoch, and nothing else is touched by it: see `Learner.get_preds`.

    Args:
        ds_idx: the number of the loader in `dls`.
        dl: a loader to take instead.
        with_input: with the inputs.
        with_decoded: with the answers in the form of the targets.
        cbs: callbacks that are to hear nothing of it, one or several, or classes of them; `Recorder`, the progress
            and those with ``remove_on_fetch = True`` never do.
        reorder: in the data set's order.
    """

    # After the callbacks that put back in `after_validate` what they replaced for validation, averaged weights say: the
    # events of a validation come again, within this one's last.
    order = ProgressCallback.order + 20
    run_train = False
    run_search = False  # a search has no validation
    acts_in_step = False
    remove_on_fetch = True  # or it would fetch without end

    preds: tuple[Any, ...]

    def __init__(
        self,
        ds_idx: int = 1,
        dl: Any = None,
        with_input: bool = False,
        with_decoded: bool = False,
        cbs: Callbacks = None,
        reorder: bool = True,
    ) -> None:
        self.ds_idx, self.dl_of_its_own = ds_idx, dl
        self.with_input, self.with_decoded, self.reorder = with_input, with_decoded, reorder
        self.cbs: list[Callback | type[Callback]] = (
            [cbs] if isinstance(cbs, (Callback, type)) else list(cbs) if cbs is not None else []
        )

    def after_validate(self) -> None:
        learn = self.learn
        with learn.resting(self.cbs):
            self.preds = learn.get_preds(
                self.ds_idx, self.dl_of_its_own, self.with_input, self.with_decoded, inner=True, reorder=self.reorder
            )


def _bare(parts: Any) -> Any:
    """A tuple's only part, or all of it."""
    return parts[0] if isinstance(parts, tuple) and len(parts) == 1 else parts


GatherPredsCallback = GatherPreds
FetchPredsCallback = FetchPreds

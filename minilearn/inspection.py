"""A close look at a Learner before it trains: some batches through everything, a page, and all put back."""

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from minilearn import loop as training_loop
from minilearn.batches import own_loss, split_batch
from minilearn.callbacks import Preflight
from minilearn.callbacks.preflight import OF_LABELS
from minilearn.data.loader import ANEW
from minilearn.data.loaders import DataLoaders
from minilearn.data.rounds import Rounds
from minilearn.errors import came_through, whole
from minilearn.hooks import shapes_of
from minilearn.optim import groups
from minilearn.preflight import batch as looks
from minilearn.preflight import data, model
from minilearn.preflight.finding import Finding
from minilearn.preflight.kinds import DISTANCE, Comparison, comparisons, kind_of, name_of
from minilearn.preflight.page import Check
from minilearn.restore import restored
from minilearn.tensors import batch_size, leaves, shape_text

MOST_LAYERS = 60
WORKERS_S = 60.0
"""How long worker processes are waited for, in seconds."""
KIND_OF_ERROR = {
    "would broadcast": "shapes",
    "must have the same shape": "shapes",
    "class indices have no last axis": "shapes",
    "class indices must be in": "classes",
    "one-hot": "one-hot",
    "must be floats": "dtypes",
    "are whole numbers": "dtypes",
    "takes class indices as int64": "dtypes",
    "targets must be": "dtypes",
    "Found dtype": "dtypes",
    "has no parameters to train": "frozen",
    "does not depend on the model": "loss",
    "the loss must be": "loss",
    "no loss": "loss",
    "on another device": "device",
    "cannot train on one row": "batch norm",
    "between 0 and 1": "activation",
}
"""Which of `ITEMS` an error is about, by words in it."""


def inspect_learner(learn: Any, lr: groups.Spread | None = None, steps: int = 3) -> Check:
    """What `Learner.check` does: trains a few steps, looks closely, puts everything back, prints a page and gives it.

    The training loader's first batches go through the model, the loss, the optimizer and those callbacks that do not
    log, save, schedule or stop; then the first validation batch. An error on the way is a finding. The loaders are
    gone through beside that, for labels and for rows in both sets, some seconds at most. Everything is put back then
    (`restored`), bit for bit, so a fit afterwards is the one that it would have been.

    Raises:
        ValueError: an argument is out of its range, or the training loader can be run through only once.
        RuntimeError: in the middle of a fit.
    """
    learn._not_running()
    steps = whole("steps", steps, 1)
    learn.dls = DataLoaders.of(learn.dls)
    if any(hasattr(dl, "__next__") for dl in learn.dls.loaders):
        raise ValueError(f"check would use up a loader, which can be run through only once. {ANEW}")
    look = _CloseLook(learn.dls, learn.lr if lr is None else lr)
    with restored(learn, learn.splitter(learn.model)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn.compiled = None  # so that each layer can be seen
        learn.cbs = [cb for cb in learn.cbs if cb.run_search is not False]
        waiting = [dl for dl in learn.dls.loaders if getattr(dl, "num_workers", 0) and not dl.timeout]
        train, *others = learn.dls.loaders
        learn.dls = copy.copy(learn.dls)
        learn.dls.loaders = [Rounds(train, steps + 1), *others]
        for dl in waiting:
            dl.timeout = WORKERS_S
        try:
            with learn.no_logging(), suppress(_Looked):
                learn.fit(1, lr, cbs=look)
        except Exception as error:
            look.failed(error)
        finally:
            for dl in waiting:
                dl.timeout = 0
        look.look_at_data()
        look.look_at_steps()
    page = look.page()
    learn.logger(str(page))
    return page


class _Looked(Exception):  # noqa: N818 -- it is no error
    """Breaks the fit off when all has been seen: no epoch is to end, as then something may be saved."""


class _CloseLook(Preflight):
    """Looks at what `Preflight` looks at and at more, and keeps what it finds."""

    order = Preflight.order
    run_search = True
    far = "probably"

    def __init__(self, dls: DataLoaders, lr: groups.Spread) -> None:
        super().__init__()
        self.dls_given, self.lr = dls, lr
        self.found: list[Finding] = []
        self.seen: dict[str, str] = {}
        self.shapes: list[str] = []
        self.compared: list[str] = []
        self.losses: list[float] = []
        self.scale: float | None = None
        self.loader_failed = self.of_classes = False

    def report(self, findings: Iterable[Finding]) -> None:
        """Keeps them."""
        self.found += [one for one in findings if one not in self.found]

    def comparisons(self) -> list[Comparison]:
        if self.learn.loss_func is None or "output" in self.learn.__dict__:
            return []
        with torch.enable_grad():
            return comparisons(self.learn.loss_func, self.pred, self.yb)

    def train_loader(self) -> Any:
        return self.dls_given.train

    def may_hook(self) -> bool:
        return not any(hasattr(module, "_orig_mod") for module in self.model.modules())

    def cut_off(self, names: list[str]) -> list[str]:
        return names

    def finish(self) -> None:
        """Goes on looking at the losses."""

    # ---- the events ----

    def before_batch(self) -> None:
        super().before_batch()
        if self.training and self._batches == 0 and self.may_hook():
            for name, layer in self.model.named_modules():
                if not any(True for _ in layer.children()):
                    self._hooks.append(layer.register_forward_hook(self._shape_of(name)))

    def after_pred(self) -> None:
        super().after_pred()
        if self.training and self._batches == 0:
            self._look_at_targets()

    def after_loss(self) -> None:
        super().after_loss()
        if self.training and "loss" in self.learn.__dict__:
            self.losses.append(float(self.loss.detach()))

    def after_backward(self) -> None:
        super().after_backward()
        if self._batches == 0:
            self.report(self.of_gradients())
        few = self.learn.n_iter is not None and self._batches + 1 == self.learn.n_iter < self.gradient_batches
        if self._without and few:
            self.report(model.no_gradient(self._without, self.model, self._batches + 1))

    def after_batch(self) -> None:
        super().after_batch()
        if not self.training:
            raise _Looked
        if self._batches == self.learn.n_iter and not self.dls.valid_sets:
            raise _Looked

    # ---- the looks ----

    def at_start(self) -> Iterator[Finding]:
        yield from super().at_start()
        inputs = leaves(self.xb)
        yield from looks.constant_inputs(self.xb)
        yield from looks.large_inputs(self.xb)
        of_model, of_data = model.devices(self.model, inputs)
        names = list(model.trained(self.model))
        self.shapes.insert(0, f"{type(self.model).__name__}, called with {shape_text(self.learn.x)}")
        self.seen |= {
            "loader": f"{shape_text((*inputs, *leaves(self.yb)))}, {_workers(self.train_loader())}",
            "device": f"the model on {', '.join(of_model)}, the data on {', '.join(of_data)}",
            "inputs": "; ".join(_numbers(x) for x in inputs if looks.has_numbers(x)),
            "mode": f"the model is in {'training' if self.model.training else 'evaluation'} mode",
            "frozen": f"{len(names)} of {len(list(self.model.parameters()))} parameters are trained",
            "batch norm": _rows_text(self.train_loader(), batch_size(self.xb)),
        }

    def _look_at_targets(self) -> None:
        """Before the loss is computed, as it may be an error."""
        single = isinstance(self.pred, Tensor) and len(self.yb) == 1 and isinstance(self.yb[0], Tensor)
        loss_func = self.learn.loss_func
        given = (
            "the loss that the model gives along" if own_loss(self.learn.__dict__.get("output")) is not None else None
        )
        name = given or ("the loss that follows" if loss_func is None else name_of(loss_func))
        self.compared.append(f"{name}: predictions {shape_text(self.pred)} against targets {shape_text(self.y)}")
        self.seen["dtypes"] = f"targets {shape_text(self.y)}"
        if single and loss_func is not None:
            self.of_classes = kind_of(loss_func) in OF_LABELS
            self.report(looks.target_kinds(loss_func, self.pred, self.yb[0]))
            self.report(looks.one_class_only(loss_func, self.pred))
            if kind_of(loss_func):  # a loss that fails does not come to `of_answer`
                self.report(looks.twice_activated(loss_func, self.pred))

    def of_answer(self) -> Iterator[Finding]:
        yield from super().of_answer()
        if "loss" not in self.learn.__dict__:
            return
        compared = self.comparisons()
        loss = float(self.loss.detach())
        self.of_classes = not compared and "output" in self.learn.__dict__
        self.seen |= dict.fromkeys(("shapes", "classes", "one-hot"), "") | {"loss": f"{loss:.4g}, of the parameters"}
        for loss_func, pred, target in compared:
            self.of_classes |= kind_of(loss_func) in OF_LABELS
            yield from looks.target_kinds(loss_func, pred, target)
            if len(compared) > 1 or loss_func is not self.learn.loss_func:
                self.compared.append(f"in it {name_of(loss_func)}: {shape_text(pred)} against {shape_text(target)}")
        if compared:
            self.seen["activation"] = f"{name_of(compared[0][0])} takes {kind_of(compared[0][0])}"
        of_chance = None
        if len(compared) == 1:
            loss_func, pred, target = compared[0]
            of_chance = self.scale = looks.chance(loss_func, pred)
            if kind_of(loss_func) == DISTANCE and target.numel():
                self.scale = float(loss_func(torch.zeros_like(target), target)) if target.is_floating_point() else None
        told = "" if of_chance is None else f"; by chance it would be {of_chance:.4g}"
        self.compared.append(f"the first loss is {loss:.4g}{told}")
        self.seen["first loss"] = f"{loss:.4g}{told}"

    def of_labels(self) -> Iterator[Finding]:
        return iter(())  # the batches are looked at instead

    def of_gradients(self) -> Iterator[Finding]:
        """When the first training batch's gradients are there."""
        if hasattr(self.opt, "param_groups"):
            yield from model.not_in_optimizer(self.model, self.opt)
        yield from model.zero_gradient(self.model)
        self.seen |= {
            "gradients": f"{sum(p.grad is not None for p in self.model.parameters())} parameters have one",
            "optimizer": f"{type(self.opt).__name__}, with every trained parameter",
        }

    def look_at_data(self) -> None:
        """What the loaders give beside the batches that were trained on."""
        if self.loader_failed or any(one.kind == "device" for one in self.found):
            return
        train = self.dls_given.train
        try:
            if self.of_classes:
                labels = list(self._labels(train))
                self.report(data.order_of(labels))
                if labels:
                    every = torch.cat(labels)
                    self.seen["labels"] = f"{len(set(every.tolist()))} classes among the first {len(every):,} rows"
            for valid in self.dls_given.valid_sets.values():
                if not isinstance(getattr(valid, "dataset", None), IterableDataset):
                    self.report(data.shared_rows(train, valid))
                    self.seen["shared rows"] = "none among those that were looked at"
        except Exception as error:
            self.failed(error)

    def _labels(self, loader: Any) -> Iterator[Tensor]:
        left = data.MOST_LABELS
        for batch in data.first_batches(loader):
            _, yb = split_batch(batch, self.dls_given.n_inp)
            labels = looks.labels_in(yb[0]) if len(yb) == 1 else None
            if labels is None or left <= 0:
                return
            left -= len(labels)
            yield labels

    def look_at_steps(self) -> None:
        """Whether the loss grew far in the steps that were taken."""
        rate = self.lr
        last = rate.stop if isinstance(rate, slice) else rate[-1] if isinstance(rate, Sequence) else rate
        if len(self.losses) > 1 and not any(one.sure and one.kind == "inputs" for one in self.found):
            self.report(model.exploded(self.losses, float(last), self.scale))
            told = ", ".join(f"{loss:.4g}" for loss in self.losses)
            self.seen["learning rate"] = f"lr={float(last):g}: the loss goes {told}"

    def failed(self, error: Exception) -> None:
        """Makes a finding of an error that ended the look."""
        fetching = not came_through(error, training_loop.__file__, "one_batch") and came_through(
            error, training_loop.__file__, "_batches"
        )
        plain = isinstance(error, ValueError)  # of ours, which says all
        told = [note for note in getattr(error, "__notes__", []) if note and "counted from 0" not in note]
        notes = [note for note in told if not (plain and " was given " in note)]
        said = str(error).strip().splitlines()
        text = "; ".join([said[-1] if fetching and said else " ".join(said), *notes])
        kind = next((kind for words, kind in KIND_OF_ERROR.items() if words in text), "")
        workers = getattr(self.dls_given.train, "num_workers", 0)
        self.loader_failed = fetching
        if fetching:
            kind, of = "loader", f" by {workers} worker processes" if workers else ""
            seen = f"a batch could not be fetched{of}: {type(error).__name__}: {text}."
            fix = (
                "Try with num_workers=0, where the error is told in full" if workers else "Look at one row: dataset[0]"
            )
            if workers:
                fix += "; workers need a dataset that can be pickled where processes are spawned, and in a script"
                fix += ' its `if __name__ == "__main__":`'
            self.report([Finding(kind, seen, f"{fix}.", True)])
        else:
            self.report([Finding(kind or "error", text if plain else f"{type(error).__name__}: {text}", "", True)])

    def page(self) -> Check:
        """What has been found."""
        shapes = self.shapes[:MOST_LAYERS]
        if len(self.shapes) > MOST_LAYERS:
            shapes.append(f"… and {len(self.shapes) - MOST_LAYERS} more")
        return Check(self.found, shapes, self.compared, self.seen)

    def _shape_of(self, name: str) -> Any:
        def noted(layer: nn.Module, inputs: Any, output: Any) -> None:
            given = shapes_of(inputs[0]) if len(inputs) == 1 else shapes_of(inputs)
            self.shapes.append(f"{name}: {type(layer).__name__}  {_text(given)} → {_text(shapes_of(output))}")

        return noted


def _text(shape: Any) -> str:
    if isinstance(shape, torch.Size):
        return str(tuple(shape))
    if isinstance(shape, tuple):
        return "(" + ", ".join(map(_text, shape)) + ")"
    return "–" if shape is None else str(shape)


def _numbers(x: Tensor) -> str:
    if not x.is_floating_point():
        return f"{shape_text(x)}, from {x.min().item()} to {x.max().item()}"
    (low, high), plain = looks.ends(x), x.detach().float()
    told = f"{shape_text(x)}, from {low:.3g} to {high:.3g}, mean {float(plain.mean()):.3g}"
    return told + (f", deviation {float(plain.std()):.3g}" if x.numel() > 1 else "")


def _workers(loader: Any) -> str:
    workers = getattr(loader, "num_workers", 0)
    return f"{workers} worker processes started" if workers else "no worker processes"


def _rows_text(loader: Any, rows: int) -> str:
    return f"{rows} rows in the first batch{', but one in the last' if data.last_batch_of_one(loader) else ''}"

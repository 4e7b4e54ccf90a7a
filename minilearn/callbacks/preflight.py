"""A look at a fit's first batches, before a mistake costs an hour; afterwards it costs nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from minilearn.callback import Callback
from minilearn.callbacks.device import DevicePlacement
from minilearn.errors import warn
from minilearn.preflight.batch import (
    bytes_finding,
    far_from_chance,
    floats_of,
    not_finite,
    one_class_only,
    seem_bytes,
    twice_activated,
)
from minilearn.preflight.data import last_batch_of_one, sorted_column
from minilearn.preflight.finding import Finding
from minilearn.preflight.kinds import LOG_SHARES, LOGITS_OF_CLASSES, YES_OR_NO, Comparison, kind_of
from minilearn.preflight.model import (
    batch_of_one,
    in_eval,
    no_gradient,
    single_row,
    without_gradient,
)
from minilearn.tensors import batch_size, leaves

TAKES_NUMBERS = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers that suffer from inputs that are not normalised."""
OF_LABELS = (LOGITS_OF_CLASSES, LOG_SHARES, YES_OR_NO)
"""What losses take that have classes as targets."""


class Preflight(Callback):
    """Looks at the first batch of a fit, in training and in validation, for what is wrong with the set-up.

    What is surely wrong is a ValueError, what may be meant a RuntimeWarning, each with the value seen and the fix:
    inputs with nan, bytes as inputs, a sigmoid or softmax before a loss that applies it again, a first loss far above
    that of chance, sorted labels that are not shuffled, a model in evaluation mode, layers that are at work and
    get no gradient in three batches, a last batch of one row with batch norm. It is silent where a set-up may well be
    sound: `Learner.check` looks closer. What the loop looks at by itself comes in any case (`checks.first_loss`).

    The look takes a millisecond or two on a CPU; on a GPU it waits for the device a few times. Afterwards a batch costs
    nothing: it takes its methods out of the loop's table. With ``compile=True`` nothing is hooked into the model, and
    gradients are looked at where the step is not one graph.
    """

    order = DevicePlacement.order + 1  # sees what the model is given; in `after_loss` all else has been computed
    run_search = False  # a search goes on until the loss explodes
    acts_in_step = False

    gradient_batches = 3
    """For how many batches a parameter may be without a gradient: in turns, as those of two models are trained."""
    far = "surely"
    """How far from chance the first loss must be to be named, of `ABOVE_CHANCE`."""

    def __init__(self) -> None:
        self._due: set[bool] = set()
        self._batches, self.fresh, self._alone, self._eager = 0, False, False, False
        self._without: list[str] = []
        self._at_work: set[str] = set()
        self._looks_like_bytes: list[Tensor] = []
        self._hooks: list[Any] = []

    # ---- what is done with a finding ----

    def report(self, findings: Iterable[Finding]) -> None:
        """Raises or warns.

        Raises:
            ValueError: something is surely wrong.
        """
        for found in findings:
            if found.sure:
                raise ValueError(f"{found} (The Preflight callback found this: learn.check() looks closer.)")
            warn(f"{found} (learn.check() looks closer; learn.remove_cb(Preflight) looks no more.)")

    def comparisons(self) -> list[Comparison]:
        """What the loss compares with what, where that is known."""
        loss_func, pred, yb = self.learn.loss_func, self.pred, self.yb
        single = isinstance(pred, Tensor) and len(yb) == 1 and isinstance(yb[0], Tensor)
        if loss_func is None or not single or "output" in self.learn.__dict__ or not kind_of(loss_func):
            return []
        return [(loss_func, pred, yb[0])]

    # ---- the events ----

    def before_fit(self) -> None:
        self._due, self._batches, self._without, self._at_work = {True, False}, 0, [], set()
        self.fresh = not getattr(self.opt, "state", None)

    def before_train(self) -> None:
        self._batches = 0
        if True not in self._due:
            self.learn.rest_cb(self)

    def before_validate(self) -> None:
        self._batches = 0
        if False not in self._due:
            self.learn.rest_cb(self)

    def before_batch(self) -> None:
        if self._batches == 0 and self.training:
            self.report(self.at_start())
        elif self._without and self.training and self.may_hook():
            for name, layer in self.model.named_modules():
                self._hooks.append(layer.register_forward_pre_hook(partial(self._called, name)))

    def after_pred(self) -> None:
        self._unhook()

    def after_loss(self) -> None:
        if self.training not in self._due:
            return
        loss = self.learn.__dict__.get("loss")
        self._eager = isinstance(loss, Tensor) and loss.requires_grad  # else a compiled step, over, without gradients
        if self._batches == 0:
            self.report(self.of_answer() if self.training else self.of_validation())

    def after_backward(self) -> None:
        if True not in self._due or not self._eager:
            self._without = []
            return
        names = without_gradient(self.model)
        self._without = [name for name in names if self._batches == 0 or name in self._without]
        if self._without and self._batches + 1 == self.gradient_batches:
            self.report(no_gradient(self.cut_off(self._without), self.model, self.gradient_batches))

    def after_batch(self) -> None:
        if self.training in self._due:
            self._batches += 1
            if not self.training or not self._without or self._batches >= self.gradient_batches:
                self.finish()

    def cleanup_fit(self) -> None:
        self._unhook()
        self._due = set()

    # ---- the looks ----

    def at_start(self) -> Iterator[Finding]:
        """Before the model has seen the first training batch."""
        yield from in_eval(self.model)
        self._looks_like_bytes = [x for x in leaves(self.xb) if seem_bytes(x)]
        self._alone = last_batch_of_one(self.train_loader())
        if (self._looks_like_bytes or self._alone) and self.may_hook():
            layers = [m for m in self.model.named_modules() if isinstance(m[1], (*TAKES_NUMBERS, _BatchNorm))]
            self._hooks = [layer.register_forward_pre_hook(partial(self._at_layer, name)) for name, layer in layers]

    def of_answer(self) -> Iterator[Finding]:
        """When model and loss have answered the first training batch."""
        finite = all(bool(part.isfinite().all()) for part in floats_of(self.pred))
        if not finite:  # a model may well be made for inputs with gaps
            yield from not_finite(self.xb, "inputs")
        compared = self.comparisons()
        if not compared or "loss" not in self.learn.__dict__:
            return
        for loss_func, pred, target in compared:
            yield from not_finite(target, "targets")
            if finite and pred.numel():
                yield from one_class_only(loss_func, pred)
                yield from twice_activated(loss_func, pred)
        loss_func, pred, _ = compared[0]
        if self.fresh and len(compared) == 1:
            yield from far_from_chance(loss_func, pred, float(self.loss.detach()), self.far)
        if kind_of(loss_func) in OF_LABELS:
            yield from self.of_labels()

    def of_labels(self) -> Iterator[Finding]:
        """The order of the labels, where the loss is one of classes."""
        return sorted_column(self.train_loader())

    def cut_off(self, names: list[str]) -> list[str]:
        """Those of the parameters without a gradient whose layer has been at work; spare layers are left to a check."""
        leaf = {name for name, layer in self.model.named_modules() if next(layer.children(), None) is None}
        return [name for name in names if name.rpartition(".")[0] in self._at_work & leaf]

    def of_validation(self) -> Iterator[Finding]:
        """When model and loss have answered the first validation batch; a run is not ended for it."""
        if not all(bool(part.isfinite().all()) for part in floats_of(self.pred)):
            for found in not_finite(self.xb, "inputs", "validation"):
                yield replace(found, sure=False)

    def may_hook(self) -> bool:
        """Whether hooks would not have a compiled model compiled anew."""
        return self.learn.compiled is None and not any(hasattr(m, "_orig_mod") for m in self.model.modules())

    def train_loader(self) -> Any:
        """The loader whose batches are trained on."""
        return self.dls.train

    def finish(self) -> None:
        """Nothing more is to be seen in this part of the fit."""
        self._due.discard(self.training)
        self.learn.rest_cb(self)

    # ---- within the model, where a batch asks for it ----

    def _at_layer(self, name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not inputs or not isinstance(inputs[0], Tensor):
            return
        if isinstance(layer, TAKES_NUMBERS):
            for x in self._looks_like_bytes:
                same = inputs[0].data_ptr() == x.data_ptr() and inputs[0].numel() == x.numel()
                if same and seem_bytes(x):  # it may have been divided in place
                    self._looks_like_bytes = []
                    self.report(
                        [bytes_finding(x, f"{name} ({type(layer).__name__})" if name else type(layer).__name__)]
                    )
        elif self._alone and single_row(layer, inputs[0], batch_size(self.xb)):
            loader, self._alone = self.train_loader(), False
            self.report([batch_of_one(name or type(layer).__name__, loader.batch_size, len(loader.sampler))])

    def _called(self, name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._at_work.add(name)

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

"""The training loop, written out once: read it from `fit` downwards to follow one batch all the way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minilearn.backward import backward
from minilearn.batches import own_loss, prediction_of, split_batch, targets_taken
from minilearn.callback import (
    Callback,
    CancelBackwardException,
    CancelBatchException,
    CancelEpochException,
    CancelException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidException,
)
from minilearn.checks import APPEARS, explain_loss, explain_model, first_loss
from minilearn.data.loader import DataLoader, no_batch
from minilearn.data.loaders import DataLoaders
from minilearn.data.position import batches_from
from minilearn.data.shares import Share, steps
from minilearn.errors import came_through, did_you_mean
from minilearn.graphs import call
from minilearn.handlers import Tables, nobody_writes
from minilearn.losses import infer_loss
from minilearn.optim.foreign import closure, needs_closure
from minilearn.step import CompiledSteps
from minilearn.tensors import shape_text

OF_A_BATCH = ("xb", "yb", "output", "pred", "loss", "_loss_grad")
OF_A_PART = ("dl", "iter", "n_iter", "_with_loss")


class Loop:
    """A model, its data, loss and optimizer, and the loop over them with its events.

    `minilearn.learner.Learner` is this loop plus the methods that a person types.
    """

    dls: DataLoaders
    model: nn.Module
    loss_func: Callable[..., Tensor] | None
    opt: Optimizer
    logger: Callable[[str], object]

    dl: Any
    xb: Any
    yb: tuple[Any, ...]
    output: Any  # what the model gave, where that is more than `pred`
    pred: Any
    loss: Tensor
    iter: int
    n_iter: int | None
    _with_loss = True  # False where predictions alone are asked for
    around: nn.Module | None = None  # what a callback has put around the model for training

    def __init__(self) -> None:
        self.cbs: list[Callback] = []
        self.epoch, self.n_epoch = 0, 1
        self.train_iter, self.pct_train = 0, 0.0
        self.training = self._needs_closure = False
        self._to_model: tuple[str, ...] = ()
        self._begin: tuple[int, Callable[[], object]] | None = None
        self._running = False
        self._unchecked: set[bool] = set()
        self.compiled: CompiledSteps | None = None
        self.build_handlers()

    # ---- the loop ----

    def _fit(self, start_epoch: int) -> None:
        with self._cleaned_up():
            self.epoch = start_epoch
            self.build_handlers()
            self.dls.check(self.n_epoch - start_epoch)
            try:
                self.event("before_fit")
                for epoch in range(self.epoch, self.n_epoch):  # a callback may have taken up an interrupted fit
                    self._one_epoch(epoch)
            except CancelFitException:
                self.event("after_cancel_fit")
            self.event("after_fit")

    def _one_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._forget(*OF_A_BATCH, *OF_A_PART)
        try:
            self.event("before_epoch")
            self._train()
            for dl in self.dls.valid_sets.values():
                self._validate(dl)
        except CancelEpochException:
            self.opt.zero_grad()  # those of a batch that was cut short
            self.event("after_cancel_epoch")
        self.event("after_epoch")

    def _train(self) -> None:
        self._begin_part(self.dls.train, training=True)
        try:
            self.event("before_train")
            self._needs_closure = needs_closure(self.opt)
            self._batches("training loader")
        except CancelTrainException:
            self.event("after_cancel_train")
            self.opt.zero_grad()  # those of a batch that was cut short
        self.event("after_train")

    def _validate(self, dl: Any, *, with_loss: bool = True) -> None:
        self._begin_part(dl, training=False, with_loss=with_loss)
        with torch.no_grad():
            try:
                self.event("before_validate")
                self._batches("validation loader")
            except CancelValidException:
                self.event("after_cancel_validate")
            self.event("after_validate")

    def _batches(self, part: str) -> None:
        first, then = self._begin or (0, None)
        if then is not None:
            self._begin, self.iter, batches = None, first - 1, batches_from(self.dl, first, then)
        elif not self.training and isinstance(self.dl, (DataLoader, Share)):
            batches = self.dl.lent(safe=nobody_writes(self.model, self._handlers))  # to be looked at: no copies
        else:
            batches = self.dl
        i = first
        for batch in batches:  # without `enumerate`, which would hold on to the batch
            self.one_batch(i, batch)
            del batch
            i += 1
            if self.training and self.n_iter is not None and i < self.n_iter:
                self._forget(*OF_A_BATCH)  # so that the next batch may take this one's memory
        if "iter" not in self.__dict__:
            raise ValueError(no_batch(part, self.n_iter))

    def go_on_at(self, batch: int, then: Callable[[], object]) -> None:
        """From a callback's `before_train`: this part of the epoch begins with batch number `batch`; `batches_from`."""
        self._begin = batch, then

    def one_batch(self, i: int, batch: Any) -> None:
        """Carries batch number `i` through the model and, in training, through the optimizer."""
        self.iter = i
        self._take(batch)
        try:
            self.event("before_batch")
            done = None if self.compiled is None else self.compiled.run(self)  # all at once; then come the events
            self.pred = done[0] if done else self._predict(batch)
            self.event("after_pred")
            if self._with_loss and (self.yb or "output" in self.__dict__):
                self.loss = done[1] if done else self._loss(self.pred)
            self.event("after_loss")
            if self.training:
                self._backward(done is not None)
                self._step(done is not None)
        except CancelBatchException:
            self.event("after_cancel_batch")
        self.event("after_batch")

    def _backward(self, done: bool) -> None:
        try:
            self.event("before_backward")
            if not done:
                backward(self._root())
        except CancelBackwardException:
            self.event("after_cancel_backward")
        self.event("after_backward")

    def _step(self, done: bool) -> None:
        try:
            self.event("before_step")
            if done:
                pass
            elif self._needs_closure:
                self.opt.step(closure(self.opt, self._root(), self._evaluate))
            else:
                self.opt.step()
        except CancelStepException:
            self.event("after_cancel_step")
        try:
            self.event("after_step")
        finally:
            self.opt.zero_grad()  # whatever after_step did: these gradients are used up

    def _evaluate(self) -> Tensor:
        """The batch's loss and gradients anew, without events, for an optimizer that looks again within its step."""
        self.opt.zero_grad()
        loss = self._loss(self._predict(None))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def _predict(self, batch: Any) -> Any:
        try:
            output = call(self._called, self.xb) if self.compiled is None else self.compiled.predict(self)
        except Exception as error:
            explain_model(error, self.model, self.xb, batch)
            raise
        if output.__class__ is Tensor:
            return output
        if self.loss_func is None and own_loss(output) is not None:
            self.output = output
        return prediction_of(output)

    def _loss(self, pred: Any) -> Tensor:
        """The loss of the batch. A fit's first batches are looked at more closely: reading them waits, once."""
        loss_func = self.loss_func
        try:
            if "output" in self.__dict__:
                loss_func = partial(_given, own_loss(self.output))
            elif loss_func is None:
                loss_func, why = infer_loss(pred, self.yb)
                self.loss_func = loss_func
                self.logger(why)
            if self.training in self._unchecked:
                self._unchecked.remove(self.training)
                return first_loss(loss_func, pred, self.yb, training=self.training)
            return loss_func(pred, *self.yb)
        except Exception as error:
            explain_loss(error, loss_func, pred, self.yb)
            raise

    # ---- what a batch is made of ----

    @property
    def _called(self) -> nn.Module:
        """What the batch is given to."""
        return self.model if self.around is None or not self.training else self.around

    def _take(self, batch: Any) -> None:
        """Splits a batch into `xb` and `yb`, and forgets the last batch's answer and loss."""
        for name in OF_A_BATCH:
            self.__dict__.pop(name, None)
        self.xb, self.yb = split_batch(batch, self.dls.n_inp, self._to_model)

    def _root(self) -> Tensor:
        """What `backward` starts from."""
        if "loss" not in self.__dict__:
            raise ValueError(
                f"the training batch has no target, so there is no loss: its input is {shape_text(self.xb)}."
                " Give (input, target) batches, or set self.learn.loss in a callback's after_pred."
            )
        root: Tensor = self.__dict__.get("_loss_grad", self.loss)
        return root

    @property
    def loss_grad(self) -> Tensor:
        """What `backward` starts from: where a callback asks for it, a copy of `loss`, to be changed by itself."""
        if "_loss_grad" not in self.__dict__:
            self._loss_grad: Tensor = self.loss.clone()
        return self._loss_grad

    @loss_grad.setter
    def loss_grad(self, value: Tensor) -> None:
        self._loss_grad = value

    @property
    def x(self) -> Any:
        """The batch's input, where there is one; else all of `xb`."""
        return self.xb[0] if isinstance(self.xb, tuple) and len(self.xb) == 1 else self.xb

    @property
    def y(self) -> Any:
        """The batch's target, where there is one; else all of `yb`."""
        return self.yb[0] if len(self.yb) == 1 else self.yb

    # ---- events ----

    def event(self, name: str) -> None:
        """Calls what the callbacks do at event `name`, in order. An error gets a note that says whose it is."""
        table = self._handlers
        for handler in table.get(name, ()):
            if self._handlers is not table and not ("learn" in _owner(handler).__dict__ and _owner(handler).run):
                continue  # a handler before it in this very event has removed it, or put it to rest
            try:
                handler()
            except CancelException as cancel:
                cancel.raised_in = _whose(handler)
                raise
            except BaseException as error:
                error.add_note(f"raised in {_whose(handler)}")
                raise

    def build_handlers(self) -> None:
        """Has looked up anew, before the next event, which callbacks define it."""
        self.cbs.sort(key=lambda cb: cb.order)
        self._forget("_handlers")
        self._handlers_of = Tables(self._listeners)

    @cached_property
    def _handlers(self) -> dict[str, list[Any]]:
        return self._handlers_of[self.training]

    def _listeners(self) -> list[Callback]:
        return self.cbs

    # ---- the frame around it ----

    def _begin_part(self, dl: Any, *, training: bool, with_loss: bool = True) -> None:
        self.dl, self.training, self._with_loss = dl, training, with_loss
        self.n_iter, self._begin = steps(dl), None
        self._to_model = targets_taken(self.model) if self.loss_func is None else ()
        self._forget(*OF_A_BATCH, "iter")
        self._handlers = self._handlers_of[training]

    @contextmanager
    def _cleaned_up(self, fitting: bool = True) -> Iterator[None]:
        """Says where an error came up, and whatever happens, has the callbacks clean up and lets go of the batch."""
        self._not_running()
        self._running = True
        self._unchecked = {True, False}
        if self.compiled is not None:
            self.compiled.begin_fit()
        try:
            yield
        except BaseException as error:
            error.add_note(self._where(error, fitting))
            if isinstance(error, CancelException):
                error.add_note(f"raised in {error.raised_in}, where there is nothing that it could cancel")
            self._clean_up(error, fitting)
            raise
        self._clean_up(None, fitting)

    def _not_running(self) -> None:
        if self._running:
            raise RuntimeError("this Learner is in a fit already: another one cannot start before it has ended")

    def _clean_up(self, error: BaseException | None, fitting: bool) -> None:
        """Every callback cleans up, though one fails at it; an error that is on its way keeps the word."""
        failed: BaseException | None = None
        try:
            for handler in reversed(self._handlers.get("cleanup_fit", [])):  # what was replaced last goes back first
                try:
                    handler()
                except BaseException as another:
                    another.add_note(f"raised in {_whose(handler)}")
                    failed = failed or another
                    if error is not None:
                        error.add_note(f"then {_whose(handler)} failed too: {another!r}")
            if fitting:
                self.model.zero_grad()  # a batch cut short leaves gradients, which the next fit would add to its own
        finally:
            self._forget(*OF_A_BATCH, *OF_A_PART)
            self.training = self._running = False
        if failed is not None and error is None:
            raise failed

    def _forget(self, *names: str) -> None:
        for name in names:
            self.__dict__.pop(name, None)

    def _where(self, error: BaseException, fitting: bool) -> str:
        """The place in the fit at which an error came up, for a note on it."""
        where = f"in epoch {self.epoch} of {self.n_epoch}" if fitting else "in a validation"
        part = "training" if self.training else "validation"
        of = f" of {self.n_iter}" if self.__dict__.get("n_iter") else ""
        if came_through(error, __file__, "one_batch"):
            where += f", {part} batch {self.iter}{of}"
        elif came_through(error, __file__, "_batches"):
            where += f", while fetching {part} batch {self.__dict__.get('iter', -1) + 1}{of}"
        return f"{where} (counted from 0)"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name in APPEARS:
                raise AttributeError(f"learn.{name} does not exist yet: {APPEARS[name]}")
            public = [known for known in (*dir(self), *APPEARS) if not known.startswith("_")]
            raise AttributeError(f"{type(self).__name__} has no attribute '{name}'{did_you_mean(name, public)}")


def _given(loss: Tensor, *_: Any) -> Tensor:
    """A loss that the model computed itself."""
    return loss


def _owner(handler: Callable[[], None]) -> Callback:
    """The callback of a bound method."""
    owner: Callback = handler.__self__  # type: ignore[attr-defined]
    return owner


def _whose(handler: Callable[[], None]) -> str:
    """`ClassName.event` of a callback's bound method."""
    return f"{type(_owner(handler)).__name__}.{handler.__name__}"

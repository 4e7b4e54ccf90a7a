"""One step for several batches."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

from minilearn import distributed
from minilearn.callback import Callback, CancelBatchException, CancelTrainException
from minilearn.callbacks.precision import MixedPrecision
from minilearn.data.shares import share_of
from minilearn.errors import whole
from minilearn.optim import lists
from minilearn.optim.foreign import needs_closure
from minilearn.tensors import batch_size


class GradientAccumulation(Callback):
    """Steps once `n_acc` samples have been seen, by the mean gradient over just those samples.

    So it is the step of one large batch, whatever the sizes of the small ones: what a batch counts goes by its rows.
    `before_backward` weighs the loss that `backward` starts from (the recorded loss stays as it is), `before_step`
    cancels the batch (`CancelBatchException`) until there are enough. What is left at the end of the training part,
    also of one that was cut short by `CancelTrainException`, is stepped then, with the events of a step; what is left
    of an epoch or a fit that was cancelled is dropped. Schedules move with each batch. The loss has to be a mean over
    the batch, and layers that look at the whole batch, such as batch normalisation, still see the small ones.

    In several processes the rows of all count: `n_acc` makes the steps that it makes in one. DDP adds gradients up over
    the processes in the batch that makes a step, not in those before it; what is left at the end is added up by itself.

    With ``compile=True`` the model is compiled, the step is carried out as it is. A batch costs about 11 µs on a CPU;
    a step over another number of samples than `n_acc`, one pass over the gradients beside it.

    Args:
        n_acc: how many samples make a step, at least 1.
    Raises:
        ValueError: when a fit begins: the optimizer evaluates the loss itself, of the last batch alone.
    Source: `GradientAccumulation` of fastai 2.8, which divides by `n_acc` even where more samples came, and leaves out
        the step at the end.
    """

    order = MixedPrecision.order - 4  # cancels a batch before its gradients are unscaled; fastai's place
    run_valid = False

    count: int
    """How many samples' gradients have been added up since the last step."""

    def __init__(self, n_acc: int = 32) -> None:
        self.n_acc = whole("n_acc", n_acc, 1)
        self.count = self._size = 0
        self._at_end = False

    def state_dict(self) -> dict[str, Any]:
        """How many samples have been added up; their gradients are the parameters'."""
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on in the midst of a step, where the parameters have the gradients that belong to it."""
        self.count = state["count"]

    def before_fit(self) -> None:
        if needs_closure(self.opt):
            raise ValueError(
                f"GradientAccumulation: {type(self.opt).__name__} evaluates the loss itself within its step, and would"
                " look at the last batch alone: use larger batches"
            )

    def before_batch(self) -> None:
        share, around = share_of(self.dl), cast(Any, self.learn.around)
        if share is not None and hasattr(around, "require_backward_grad_sync"):
            around.require_backward_grad_sync = self.count + share.total >= self.n_acc  # DDP looks before its forward

    def before_backward(self) -> None:
        learn, share = self.learn, share_of(self.dl)
        self._size = batch_size(learn.yb or learn.xb) if share is None else share.total
        if self._size != self.n_acc:
            learn.loss_grad = learn._root() * (self._size / self.n_acc)

    def after_cancel_backward(self) -> None:
        self._size = 0

    def after_backward(self) -> None:
        self.count += self._size
        self._size = 0

    def before_step(self) -> None:
        if self.count < self.n_acc and not self._at_end:
            raise CancelBatchException  # before the step, it leaves the gradients to add up
        if self.count not in {0, self.n_acc}:
            lists.mul_([p.grad for p in self._params() if p.grad is not None], self.n_acc / self.count)

    def after_step(self) -> None:
        self.count = 0  # taken or cancelled, the gradients are cleared next

    def after_cancel_train(self) -> None:
        self._step_what_is_left()  # before the loop clears it

    def after_train(self) -> None:
        self._step_what_is_left()

    def after_cancel_epoch(self) -> None:
        self.count = self._size = 0

    def cleanup_fit(self) -> None:
        self.count = self._size = 0

    def _step_what_is_left(self) -> None:
        if not self.count:
            return
        if hasattr(self.learn.around, "require_backward_grad_sync"):
            distributed.mean_gradients(p for p in self._params() if p.requires_grad)
        self._at_end = True
        try:
            with suppress(CancelBatchException, CancelTrainException):
                self.learn._step(done=False)
        finally:
            self._at_end = False
            self.count = 0
        self.opt.zero_grad()  # a callback may have cancelled it

    def _params(self) -> list[Any]:
        return [p for group in self.opt.param_groups for p in group["params"]]

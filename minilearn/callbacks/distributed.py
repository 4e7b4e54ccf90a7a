"""One fit in several processes: each reads its share of every batch, and all take the same step."""

import sys
from typing import Any

import torch
from torch import nn

from minilearn import distributed
from minilearn.callback import Callback, CancelBatchException
from minilearn.callbacks.train_eval import TrainEval
from minilearn.data.shares import Share, numbers_of_main
from minilearn.errors import did_you_mean, positive
from minilearn.job_errors import name_rank
from minilearn.random_states import seed_anew
from minilearn.votes import votes

STRATEGIES = ("ddp", "fsdp")


class Distributed(Callback):
    """Trains one model in several processes, as torchrun starts them; to the numbers of one process.

    A Learner that is made in a process of torchrun has it. `bs` is each process's: step k of N processes has the rows
    of step k of one process whose `bs` is N times as large, in its order, and so the loss of each epoch, the metrics,
    and the weights in the end are those of that one. Every row counts once, in training and in validation, also where
    the data set does not divide (`data.shares.Share`). A loss must be a mean over rows, or have ``reduction="sum"``.

    - `after_create`: joins the other processes; all begin with rank 0's weights.
    - `before_fit`: the model goes into torch's DistributedDataParallel, which adds gradients up while the backward pass
      is at work. `learn.model` stays the plain model.
    - `before_train`, `before_validate`: the loader is divided; buffers such as running averages are rank 0's.
    - `after_loss`: where shares differ in size, the loss is weighed, so that the mean over processes is right.

    - `before_batch`: now and then the processes meet, for what they decide together (`votes`).
    - `after_epoch`: the epoch's row of figures is rank 0's.

    Each process but rank 0 has random numbers of its own for dropout and the like, and is silent: it prints nothing,
    warns of nothing, and callbacks that are `main_only` do not hear. Its errors are told, with its rank.

    Args:
        strategy: "ddp".
        sync_bn: whether batch normalisation goes over all processes' rows, which torch can on GPUs only.
        find_unused: whether some parameters may take no part in a batch: torch looks for them then, which costs a pass.
        timeout_s: seconds that one process waits for the others before it gives up.
    Raises:
        ValueError: an argument is not what it may be.
        RuntimeError: when the Learner is made: the process was started alone.
    """

    order = TrainEval.order - 10  # the loader is divided before anybody looks at it
    run_search = True

    def __init__(
        self,
        strategy: str = "ddp",
        sync_bn: bool = False,
        find_unused: bool = False,
        timeout_s: float = distributed.TIMEOUT_S,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy must be 'ddp' or 'fsdp', got {strategy!r}{did_you_mean(strategy, STRATEGIES)}")
        self.strategy, self.sync_bn, self.find_unused = strategy, sync_bn, find_unused
        self.timeout_s = positive("timeout_s", timeout_s)
        self._around: nn.Module | None = None
        self._shares: dict[int, Share] = {}

    # ---- the events ----

    def after_create(self) -> None:
        distributed.start(self.timeout_s)
        distributed.same_as_main([*self.model.parameters(), *self.model.buffers()])
        if not distributed.is_main():
            self.learn.logger, self.learn.show_bar = _silent, False

    def before_fit(self) -> None:
        different_numbers()
        votes.begin(self._where)

    def before_train(self) -> None:
        self._divide()
        if self._around is None:
            self._around = self.learn.around = self._wrapped()

    def before_validate(self) -> None:
        self._divide()
        distributed.same_as_main(self.model.buffers())

    def before_batch(self) -> None:
        votes.next_batch()

    def after_pred(self) -> None:
        if not self.training and not self.dl.own:
            raise CancelBatchException  # its rows are another process's: here they count for nothing

    def after_loss(self) -> None:
        weight = self._weight()
        if weight != 1.0 and "loss" in self.learn.__dict__:
            self.learn.loss = self.learn.loss * weight

    def after_epoch(self) -> None:
        if values := getattr(getattr(self.learn, "recorder", None), "values", None):
            # Somebody's own metric may say something else in each process: what stops and saves goes by one row.
            values[-1][:] = distributed.from_main(values[-1])

    def after_fit(self) -> None:
        if votes.open:
            votes.meet(1)
        distributed.same_as_main(self.model.buffers())

    def cleanup_fit(self) -> None:
        votes.end()
        self.learn.around = self._around = None
        self._shares = {}
        error = sys.exc_info()[1]
        if error is not None and distributed.world_size() > 1:
            name_rank(error, distributed.rank(), distributed.world_size(), distributed.timeout_s())

    # ---- beneath ----

    def _divide(self) -> None:
        learn = self.learn
        if not isinstance(learn.dl, Share):
            held = self._shares.get(id(learn.dl))
            if held is None or held.loader is not learn.dl:
                held = self._shares[id(learn.dl)] = Share(learn.dl)
            learn.dl = held

    def _weight(self) -> float:
        """What the batch's loss is multiplied by, so that means over processes, and over rows, are right."""
        share: Share = self.dl
        if getattr(self.learn.loss_func, "reduction", None) == "sum":
            return share.world * (share.own > 0) if self.training else share.total / share.own
        return share.weight if self.training else 1.0

    def _wrapped(self) -> nn.Module:
        from torch.nn.parallel import DistributedDataParallel  # here: it takes a while to import

        device = next(self.model.parameters()).device
        around: Any = DistributedDataParallel(
            self.model,
            device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=self.find_unused,
            gradient_as_bucket_view=True,
        )
        if device.type == "cpu" and distributed.world_size() > 2:
            around.reducer = _SameBuckets(around.reducer)
        wrapped: nn.Module = around
        return wrapped

    def _where(self) -> str:
        """How far this process is."""
        learn = self.learn
        part = "training" if learn.training else "validation"
        return f"is in epoch {learn.epoch}, {part} batch {learn.__dict__.get('iter', 0)}"


class _SameBuckets:
    """torch's reducer, whose gradients stay in the order in which they lie from the first step on.

    After the first step of a fit torch orders them anew, as they came. Of more than two processes gloo adds up each
    part of what lies in a row beginning with another process, so that a step's sums would differ in the last digit by
    whether it is a fit's first: a fit that is gone on with would not end as one that was not interrupted.
    """

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def _rebuild_buckets(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)


def different_numbers() -> None:
    """Random numbers of its own for each process but rank 0, whose are those of a process alone."""
    with numbers_of_main():
        seed = int(torch.empty((), dtype=torch.int64).random_(generator=_copy_of_default()))
    if not distributed.is_main():
        seed_anew((seed + distributed.rank()) % 2**63)


def _copy_of_default() -> torch.Generator:
    """A generator that stands where torch's own does, which it leaves there."""
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    return generator


def _silent(text: str) -> None:
    """Says nothing: rank 0 does."""

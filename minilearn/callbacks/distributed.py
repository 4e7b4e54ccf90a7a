"""One fit in several processes: each reads its share of every batch, and all take the same step."""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from minilearn import distributed
from minilearn.callback import Callback, CancelBatchException
from minilearn.callbacks.train_eval import TrainEval
from minilearn.data.shares import Share, share_of
from minilearn.errors import did_you_mean, positive
from minilearn.job_errors import name_rank
from minilearn.losses import weights_met
from minilearn.materialize import materialize
from minilearn.metrics.joining import is_average
from minilearn.random_states import seed_anew
from minilearn.sharding import Classes, checkpoint_activations, classes_of, is_sharded_model, shard_model
from minilearn.tensors import default_device, existing_device
from minilearn.votes import votes

STRATEGIES = ("ddp", "fsdp")


class Distributed(Callback):
    """Trains one model in several processes, as torchrun starts them; to the numbers of one process.

    A Learner that is made in a process of torchrun has it. In a process alone it changes nothing (with "fsdp" the
    process holds the one piece there is), so a script need not ask how it was started.

    `bs` is each process's: step k of N processes has the rows of step k of one process whose `bs` is N times as large,
    in its order, and so the loss of each epoch, the metrics, and the weights in the end are those of that one. Every
    row counts once, in training and in validation, also where the data set does not divide (`data.shares.Share`). A
    loss must be a mean over rows, or have ``reduction="sum"``.

    - `after_create`: joins the other processes; all begin with rank 0's weights.
    - `before_fit`: the model goes into torch's DistributedDataParallel, which adds gradients up while the backward pass
      is at work. `learn.model` stays the plain model.
    - `before_train`, `before_validate`: the loader is divided; buffers such as running averages are rank 0's.
    - `after_pred`: a batch without a row of its own is cancelled in validation; its rows are another process's.
    - `after_loss`: where shares differ in size, the loss is weighed, so that the mean over processes is right.
    - `after_backward`: a parameter that took no part in the first batch is an error, unless `find_unused`.

    - `before_batch`: now and then the processes meet, for what they decide together (`votes`).
    - `after_epoch`: the epoch's row of figures is rank 0's, where it is not the same in all anyway.

    Each process but rank 0 has random numbers of its own for dropout, mixing and the like, and is silent: it prints
    nothing, warns of nothing, and callbacks that are `main_only` do not hear. Its errors are told, with its rank. With
    ``compile=True`` training batches are carried out as they are, which a warning says: DDP is no part of a graph.

    With ``strategy="fsdp"`` each process holds a piece of every parameter, its gradient and its averages
    (`sharding.shard_model`), which are gathered block by block; the callback is given to the Learner then, not to a
    fit, as the optimizer is made of the pieces. A model that was made on the meta device gets its weights here
    (`materialize`), so that one larger than a machine's memory can be made.

    Args:
        strategy: "ddp": each process has the whole model; "fsdp": a piece of it, as where it is sharded already.
        sync_bn: whether batch normalisation goes over all processes' rows, which torch can on GPUs only. For a fit its
            modules stand in for the model's own, with the same tensors.
        find_unused: whether some parameters may take no part in a batch: torch looks for them then, which costs a pass.
        timeout_s: seconds that one process waits for the others before it gives up.
        mixed_precision: with "fsdp", the precision of weights and activations in the model, such as torch.bfloat16.
        cpu_offload: with "fsdp", keep the pieces in the computer's memory while a GPU computes.
        blocks: with "fsdp", classes of modules that are gathered as one; by default what the model repeats.
        checkpoint_activations: classes of modules whose activations are computed twice in place of being kept.
    Raises:
        ValueError: an argument is not what it may be.
        RuntimeError: a parameter takes no part in a batch, or `sync_bn` is asked for without a GPU.
    """

    order = TrainEval.order - 10  # the loader is divided before anybody looks at it
    run_search = True

    def __init__(
        self,
        strategy: str = "ddp",
        sync_bn: bool = False,
        find_unused: bool = False,
        timeout_s: float = distributed.TIMEOUT_S,
        *,
        mixed_precision: torch.dtype | None = None,
        cpu_offload: bool = False,
        blocks: Classes | None = None,
        checkpoint_activations: Classes = (),
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy must be 'ddp' or 'fsdp', got {strategy!r}{did_you_mean(strategy, STRATEGIES)}")
        self.strategy, self.sync_bn, self.find_unused = strategy, sync_bn, find_unused
        self.timeout_s = positive("timeout_s", timeout_s)
        self._twice = classes_of("checkpoint_activations", checkpoint_activations)
        self._sharding: dict[str, Any] = {
            "mixed_precision": mixed_precision,
            "cpu_offload": cpu_offload,
            "blocks": blocks,
        }
        if strategy == "ddp" and (given := [name for name, value in self._sharding.items() if value]):
            raise ValueError(f"{given[0]} is for strategy='fsdp', got strategy='ddp'")
        self._around: nn.Module | None = None
        self._shares: dict[int, Share] = {}
        self._weighs: dict[bool, bool] = {}
        self._weights: tuple[Tensor, Tensor] | None = None
        self._swapped: list[tuple[nn.Module, str, nn.Module]] = []

    # ---- the events ----

    def after_create(self) -> None:
        distributed.start(self.timeout_s, group_of_one=self.strategy == "fsdp")
        if self._twice:
            checkpoint_activations(self.model, self._twice)
        if is_sharded_model(self.model):
            self.strategy = "fsdp"
        elif self.strategy == "fsdp":
            self._shard()
        else:
            distributed.same_as_main([*self.model.parameters(), *self.model.buffers()])
        if not distributed.is_main():
            self.learn.logger, self.learn.show_bar = _silent, False

    def before_fit(self) -> None:
        distributed.start(self.timeout_s)  # where the callback is one of the fit's own
        if self.strategy == "fsdp" and not is_sharded_model(self.model):
            raise ValueError(
                "Distributed(strategy='fsdp') must be given to the Learner, Learner(..., cbs=Distributed(...)): its"
                " optimizer is made of the model's pieces"
            )
        different_numbers()
        votes.begin(self._where)
        if self.sync_bn:  # first of all: hooks go to the modules that are there then
            self._swapped = with_sync_bn(self.model)

    def before_train(self) -> None:
        self._divide()
        if self._around is None and self.strategy == "ddp" and distributed.world_size() > 1:
            self._around = self.learn.around = self._wrapped()

    def before_validate(self) -> None:
        self._divide()
        distributed.same_as_main(self.model.buffers())

    def before_batch(self) -> None:
        votes.next_batch()

    def after_pred(self) -> None:
        learn = self.learn
        share = share_of(learn.dl)
        if share is None:
            self._weights = None
            return
        self._weights = self._weights_of(share) if self._weighs.get(learn.training) is not False else None
        if learn.training and self._weighs.get(True) is False:
            learn.rest_cb(self, "after_pred")
        if not (learn.training or share.own):
            raise CancelBatchException  # its rows are another process's: here they count for nothing

    def after_loss(self) -> None:
        learn = self.learn
        share = share_of(learn.dl)
        if share is None or "loss" not in learn.__dict__:
            return
        if self._weights is not None:
            own, total = self._weights
            parts = share.world if learn.training else share.total / share.own
            learn.loss = torch.where(own > 0, learn.loss, 0) * (own / total * parts)
        elif (weight := self._weight(share)) != 1.0:
            learn.loss = learn.loss * weight

    def after_backward(self) -> None:
        if self.learn.around is not None and not self.find_unused:
            unused = [name for name, p in self.model.named_parameters() if p.requires_grad and p.grad is None]
            if unused:
                raise RuntimeError(
                    f"{len(unused)} parameters take no part in the batch, the first of them '{unused[0]}', and DDP"
                    " waits for all: cbs=Distributed(find_unused=True) has torch look for them in each batch. Those"
                    " that never take part can be frozen instead: requires_grad_(False)"
                )
        self.learn.rest_cb(self, "after_backward")

    def after_epoch(self) -> None:
        values = getattr(getattr(self.learn, "recorder", None), "values", None)
        if values and not all(map(is_average, self.learn.metrics)):
            # Somebody's own metric may say something else in each process: what stops and saves goes by one row.
            values[-1][:] = distributed.figures_of_main(values[-1])

    def after_fit(self) -> None:
        votes.last_meeting()
        distributed.same_as_main(self.model.buffers())

    def cleanup_fit(self) -> None:
        votes.end()
        self.learn.around = self._around = self._weights = None
        self._shares, self._weighs = {}, {}
        for parent, name, module in self._swapped:
            module.training = getattr(parent, name).training
            setattr(parent, name, module)
        self._swapped = []
        error = sys.exc_info()[1]
        if error is not None and distributed.world_size() > 1:
            name_rank(error, distributed.rank(), distributed.world_size(), distributed.timeout_s())

    # ---- beneath ----

    def _divide(self) -> None:
        learn = self.learn
        if distributed.world_size() > 1 and share_of(learn.dl) is None:
            held = self._shares.get(id(learn.dl))
            if held is None or held.loader is not learn.dl:
                held = self._shares[id(learn.dl)] = Share(learn.dl)
            learn.dl = held

    def _weights_of(self, share: Share) -> tuple[Tensor, Tensor] | None:
        """What the batch's loss is a mean over, here and in all processes, where that is not its rows."""
        learn = self.learn
        if not learn._with_loss or len(learn.yb) != 1:
            return None
        found = weights_met(learn.loss_func, learn.yb[0])
        if found is None:
            return None
        own, told = found
        if learn.training not in self._weighs:  # the first batch is looked at
            some_out = not told and bool(own < learn.yb[0].numel())
            self._weighs[learn.training] = told or bool(distributed.largest([some_out])[0])
        if not self._weighs[learn.training]:
            return None
        own = own if share.own else own * 0
        return own, distributed.sum_all(own)

    def _weight(self, share: Share) -> float:
        """What the batch's loss is multiplied by, so that means over processes, and over rows, are right."""
        learn = self.learn
        if getattr(learn.loss_func, "reduction", None) == "sum":
            return share.world * (share.own > 0) if learn.training else share.total / share.own
        return share.weight if learn.training else 1.0

    def _shard(self) -> None:
        device = existing_device(self.dls.device or default_device())
        if device.type != "cpu" and not any(p.is_meta for p in self.model.parameters()):
            self.model.to(device)
        materialize(shard_model(self.model, **self._sharding))

    def _wrapped(self) -> nn.Module:
        from torch.nn.parallel import DistributedDataParallel  # here: it takes a while to import

        device = next(self.model.parameters()).device
        if self._swapped and device.type != "cuda":
            raise RuntimeError(
                f"sync_bn=True needs GPUs: torch's SyncBatchNorm has no other, and the model is on {device}"
            )
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
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    seed = torch.empty((), dtype=torch.int64).random_(generator=generator)
    distributed.same_as_main([seed])
    if not distributed.is_main():
        seed_anew((int(seed) + distributed.rank()) % 2**63)


def with_sync_bn(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Puts torch's `SyncBatchNorm` in the place of each batch normalisation; both have the same tensors.

    Returns:
        What was replaced: its parent, its name there, and itself, to be put back.
    Raises:
        ValueError: the model is nothing but a batch normalisation.
    """
    if isinstance(model, _BatchNorm):
        raise ValueError("sync_bn=True replaces modules within a model, and this one is itself a batch normalisation")
    found: list[tuple[nn.Module, str, nn.Module]] = [
        (parent, name, module)
        for parent in model.modules()
        for name, module in parent.named_children()
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
    ]
    for parent, name, module in found:
        setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(module))  # type: ignore[no-untyped-call]
    return found


def _silent(text: str) -> None:
    """Says nothing: rank 0 does."""

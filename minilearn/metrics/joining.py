"""Metrics in several processes: each takes its own rows on, and they are joined when the figures are read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import Tensor

from minilearn import distributed
from minilearn.data.shares import Share, share_of
from minilearn.metrics.streaming import AvgMetric, Metric, join_averages
from minilearn.tensors import leaves, map_tensors


def take_on(metrics: Iterable[Metric], learn: Any) -> None:
    """Has metrics take a batch on; where it is one process's share, just its own rows, or those of all processes.

    Args:
        metrics: they are given the batch as it is; in several processes, `Metric.of_all_rows` says which are given all.
        learn: the batch.
    """
    share = share_of(getattr(learn, "dl", None))
    together = None
    for metric in metrics:
        try:
            if share is None:
                metric.accumulate(learn)
            elif metric.of_all_rows:
                together = AllRows(learn, share, share.own) if together is None else together
                if together.rows:
                    metric.accumulate(together)
            elif share.own or metric.by_steps:
                metric.accumulate(learn)
        except Exception as error:
            error.add_note(f"raised by the metric '{metric.name}'")
            raise


def go_along(metrics: Iterable[Metric], learn: Any) -> None:
    """Takes part, without a row, in what `take_on` does in other processes: this one's batch was cancelled.

    Args:
        metrics: as in `take_on`.
        learn: the batch.
    """
    share = share_of(getattr(learn, "dl", None))
    several = [metric for metric in metrics if metric.of_all_rows] if share is not None else []
    if share is not None and several:
        together = AllRows(learn, share, 0)
        for metric in several if together.rows else ():
            metric.accumulate(together)


def join_all(metrics: Sequence[Metric]) -> None:
    """Puts what all processes of the job have accumulated into each of the metrics."""
    if distributed.world_size() == 1:
        return
    averages = [metric for metric in metrics if is_average(metric)]
    join_averages(averages)
    for metric in metrics:
        if not (metric.of_all_rows or metric in averages):
            try:
                metric.join()
            except Exception as error:
                error.add_note(f"raised by the metric '{metric.name}'")
                raise


def is_average(metric: Metric) -> TypeGuard[AvgMetric]:
    """Whether a metric is joined by adding up, which gives all processes the same figure to the last bit."""
    return isinstance(metric, AvgMetric) and type(metric).join is AvgMetric.join and not metric.of_all_rows


class AllRows:
    """A step's rows of all processes, in their order, on this process's device; what else is asked for is the loop's.

    Every process makes one, and asks it for the same things: the inputs are sent only when they are asked for.

    Args:
        learn: the loop, with this process's rows.
        share: what they are a share of.
        own: how many of them count.
    """

    def __init__(self, learn: Any, share: Share, own: int) -> None:
        self._learn, self._own = learn, own
        held = vars(learn)
        loss = held.get("loss")
        # In training losses are weighed so that their mean over processes is right, else by their rows.
        self.rows, weight = round(distributed.sum_numbers([own])[0]), 1.0 if learn.training else float(own)
        number = 0.0 if loss is None or not weight else float(loss) * weight
        self.pred, self.yb = gathered_rows((held.get("pred"), learn.yb), own)
        total = distributed.sum_numbers([number])[0] / (share.world if learn.training else max(self.rows, 1))
        self.loss = torch.tensor(total) if loss is None else torch.full_like(loss, total)

    @cached_property
    def xb(self) -> Any:
        """The inputs of all processes."""
        return gathered_rows(self._learn.xb, self._own)

    def __getattr__(self, name: str) -> Any:
        if name == "_learn":
            raise AttributeError(name)
        return getattr(self._learn, name)


def gathered_rows(value: Any, own: int) -> Any:
    """The rows of all processes, one after another by rank, in a value of nested tuples, lists and dicts of tensors.

    What is no tensor with rows stays the lowest rank's. Waits for the device.

    Args:
        value: of this process; the same structure in each, or None.
        own: how many of its rows count.
    Raises:
        ValueError: rows of one process have another shape than those of another.
    """
    devices = [leaf.device for leaf in leaves(value) if isinstance(leaf, Tensor)]

    def mine(tensor: Tensor) -> Tensor:
        return (tensor if own or not tensor.ndim else tensor[:0]).detach().cpu().clone()

    from_all = distributed.gathered((map_tensors(mine, value), own))
    with_rows = [part for part, rows in from_all if rows] or [from_all[0][0]]
    together = _one_after_another(with_rows)
    return map_tensors(lambda tensor: tensor.to(devices[0]), together) if devices else together


def _one_after_another(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        if not first.ndim:
            return first
        if len({part.shape[1:] for part in parts}) > 1:
            shapes = [tuple(part.shape) for part in parts]
            raise ValueError(f"rows of one process have another shape than those of another: {shapes}")
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        return {key: _one_after_another([part[key] for part in parts]) for key in first}
    if isinstance(first, (tuple, list)):
        found = [_one_after_another(several) for several in zip(*parts, strict=True)]
        return type(first)(*found) if hasattr(first, "_fields") else type(first)(found)
    return first


def plain_state(metric: Any) -> bool:
    """Whether a torchmetrics object keeps all that it has seen in states of its own, so that `join_state` can do it."""
    if not all(hasattr(metric, name) for name in ("metric_state", "_reductions", "distributed_available_fn")):
        return False
    own_way = type(metric)._sync_dist is not _torchmetrics_own(metric)
    held = any(hasattr(child, "metric_state") for child in list(metric.modules())[1:])
    return bool(metric._reductions) and not own_way and not held


def never_by_itself(metric: Any) -> None:
    """Keeps a torchmetrics object, and those within it, from joining processes whenever it is computed."""
    for part in metric.modules() if hasattr(metric, "modules") else ():
        if hasattr(part, "distributed_available_fn"):
            part.distributed_available_fn = _never


def join_state(metric: Any, seen: bool) -> bool:
    """Puts what a torchmetrics object has seen in all processes into each one's; says whether any has seen a row.

    Those that saw none are left out: what they hold need not be neutral. torchmetrics' own way waits for a process that
    holds another number of tensors, and is wrong where one holds none.

    Args:
        metric: the object, one of `plain_state`.
        seen: whether it was updated in this process.
    """
    from_all: list[dict[str, Any] | None] = distributed.gathered(_on_cpu(metric.metric_state) if seen else None)
    there = [state for state in from_all if state is not None]
    merged: Any
    for name, reduction in metric._reductions.items() if there else ():
        values = [state[name] for state in there]
        if isinstance(values[0], list):
            several = [tensor for value in values for tensor in value]
            merged = [reduction(several)] if reduction is not None and several else several  # `reset` clears a list
        else:
            stacked = torch.stack(values)
            merged = stacked if reduction is None else reduction(stacked)
        setattr(metric, name, map_tensors(lambda t: t.to(metric.device), merged))
    if there:
        metric._update_count = max(metric.update_count, 1)  # without it `compute` warns that there was no batch
        metric._computed = None
    return bool(there)


def _on_cpu(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: map_tensors(lambda t: t.detach().cpu().clone(), value) for name, value in state.items()}


def _torchmetrics_own(metric: Any) -> Callable[..., Any] | None:
    """torchmetrics' own `_sync_dist`, which an object's class may have replaced."""
    for kind in type(metric).__mro__:
        if kind.__module__ == "torchmetrics.metric" and kind.__name__ == "Metric":
            found: Callable[..., Any] = vars(kind)["_sync_dist"]
            return found
    return None


def _never() -> bool:
    return False

"""The processes of one job: which of them this is, how many there are, and what all of them know together.

A process is alone until `start`: rank 0 of 1, whose sums are its own and whose word is everybody's.
"""

import atexit
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minilearn import errors
from minilearn.errors import positive
from minilearn.job_errors import tell_errors
from minilearn.meeting_place import store_of_this_start

TIMEOUT_S = 300.0
"""How long a process waits for the others by default before it gives up with an error."""


@dataclass
class _Job:
    """This process's place; `cpu` is the group for what lies in the computer's memory, which NCCL's is not for."""

    rank: int = 0
    world: int = 1
    cpu: Any = None
    timeout_s: float = TIMEOUT_S


_job = _Job()


def launched() -> bool:
    """Whether a launcher such as torchrun has started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def start(timeout_s: float = TIMEOUT_S, *, group_of_one: bool = False) -> None:
    """Joins the other processes of the job, by a launcher's environment or by a group that is there already.

    Where there is a CUDA GPU, the process takes the one of its local rank, and sums over GPUs go by NCCL. A process
    that nobody has launched stays alone.

    Args:
        timeout_s: seconds that one process waits for another; a collective that takes longer is an error.
        group_of_one: make a group for a process that is alone, too.
    Raises:
        RuntimeError: this torch has no torch.distributed.
    """
    if _job.cpu is not None:
        return
    timeout = timedelta(seconds=positive("timeout_s", timeout_s))
    if not dist.is_available():
        raise RuntimeError("this build of torch has no torch.distributed")
    if not dist.is_initialized():
        is_launched = "RANK" in os.environ
        if not (is_launched or group_of_one):
            return
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank() % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        place: dict[str, Any] = {"store": store_of_this_start(timeout_s)}
        if not is_launched:
            place = {"store": torch._C._distributed_c10d.HashStore(), "rank": 0, "world_size": 1}
        elif place["store"] is not None:
            place |= {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
        dist.init_process_group(backend, timeout=timeout, **place)
        atexit.register(stop)
    # Of its own also where the job's is gloo: what processes that have parted say would else be taken for gradients.
    _job.cpu = dist.new_group(backend="gloo", timeout=timeout)
    _job.rank, _job.world, _job.timeout_s = dist.get_rank(), dist.get_world_size(), timeout_s
    if _job.world > 1:
        tell_errors(_job.rank, _job.world, timeout_s)
        errors.warns = _job.rank == 0


def stop() -> None:
    """Leaves the job: this process is alone again."""
    _job.rank, _job.world, _job.cpu = 0, 1, None
    errors.warns = True
    with suppress(Exception):
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """For what one process may do while the others do something else: within the ``with`` block nothing is joined.

    The process keeps its rank, and its world is itself.
    """
    world, _job.world = _job.world, 1
    try:
        yield
    finally:
        _job.world = world


def rank() -> int:
    """This process's number, from 0."""
    return _job.rank


def world_size() -> int:
    """How many processes work together; 1 where this one is alone."""
    return _job.world


def timeout_s() -> float:
    """How long this process waits for another."""
    return _job.timeout_s


def is_main() -> bool:
    """Whether this is the process that writes files and speaks: rank 0."""
    return _job.rank == 0


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many processes of the job a launcher has started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def sum_all(tensor: Tensor) -> Tensor:
    """The sum over all processes, of tensors of one shape; alone it is the tensor itself."""
    if _job.world == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total, group=_job.cpu if total.is_cpu else None)
    return total


def sum_numbers(numbers: Iterable[float]) -> list[float]:
    """The sums over all processes of so many numbers, in double precision."""
    listed = list(numbers)
    if _job.world == 1 or not listed:
        return listed
    sums: list[float] = sum_all(torch.tensor(listed, dtype=torch.float64)).tolist()
    return sums


def mean_numbers(numbers: Iterable[float]) -> list[float]:
    """The means over all processes of so many numbers."""
    return [total / _job.world for total in sum_numbers(numbers)]


def largest(numbers: Iterable[float]) -> list[float]:
    """The largest that any process has, of each of so many numbers."""
    return largest_later(numbers)()


def largest_later(numbers: Iterable[float]) -> Callable[[], list[float]]:
    """`largest`, on its way while this process goes on: what is returned gives it, and waits where it has to."""
    listed = list(numbers)
    if _job.world == 1 or not listed:
        return lambda: listed
    found = torch.tensor(listed, dtype=torch.float64)
    work: Any = dist.all_reduce(found, dist.ReduceOp.MAX, group=_job.cpu, async_op=True)

    def largest() -> list[float]:
        work.wait()
        values: list[float] = found.tolist()
        return values

    return largest


def figures_of_main(figures: Sequence[float | None]) -> list[float | None]:
    """Rank 0's figures, as many in each process; quicker than `from_main`."""
    there = [[0.0, 0.0] if figure is None else [1.0, float(figure)] for figure in figures]
    if _job.world == 1 or not there:
        return list(figures)
    told = torch.tensor(there, dtype=torch.float64)
    same_as_main([told])
    return [figure if known else None for known, figure in told.tolist()]


def from_main(value: Any) -> Any:
    """What rank 0 has, in every process; others' own value is left."""
    if _job.world == 1:
        return value
    return of_rank(value, 0)


def of_rank(value: Any, rank: int) -> Any:
    """What one process has, in every process; others' own value is left."""
    if _job.world == 1:
        return value
    held = [value if _job.rank == rank else None]
    dist.broadcast_object_list(held, src=rank, group=_job.cpu)
    return held[0]


def same_as_main(tensors: Iterable[Tensor]) -> None:
    """Puts rank 0's numbers into every process's tensors, in place."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(tensor.detach())
    if _job.world > 1:
        for device, listed in by_device.items():
            group: Any = _job.cpu if device.type == "cpu" else dist.group.WORLD
            torch._C._distributed_c10d._broadcast_coalesced(group, listed, 1 << 28, 0)


def gathered(value: Any) -> list[Any]:
    """What each process has, by rank, in every process."""
    if _job.world == 1:
        return [value]
    held: list[Any] = [None] * _job.world
    dist.all_gather_object(held, value, group=_job.cpu)
    return held


def gathered_tensors(tensor: Tensor | None) -> list[Tensor | None]:
    """The tensor that each process has, by rank, on the CPU; of any shapes and types, and None where there is none."""
    if tensor is not None:
        tensor = tensor.detach().cpu().contiguous()
    if _job.world == 1:
        return [tensor]
    kinds = gathered(None if tensor is None else (tuple(tensor.shape), tensor.dtype))
    sizes = [0 if kind is None else math.prod(kind[0]) * kind[1].itemsize for kind in kinds]
    room = [torch.empty(max(sizes), dtype=torch.uint8) for _ in sizes]
    own = torch.zeros(max(sizes), dtype=torch.uint8)
    if tensor is not None:
        own[: sizes[_job.rank]] = tensor.reshape(-1).view(torch.uint8)
    if max(sizes):
        dist.all_gather(room, own, group=_job.cpu)
    return [
        None if kind is None else flat[:size].view(kind[1]).reshape(kind[0])
        for kind, flat, size in zip(kinds, room, sizes, strict=True)
    ]


def mean_gradients(params: Iterable[Tensor]) -> None:
    """Puts the mean over the processes into each gradient, in place; one that some processes lack counts as 0 there."""
    held = list(params)
    if _job.world == 1 or not held:
        return
    there = largest([float(p.grad is not None) for p in held])
    by_kind: dict[Any, list[Tensor]] = {}
    for p, somewhere in zip(held, there, strict=True):
        if somewhere:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            by_kind.setdefault((p.grad.device, p.grad.dtype), []).append(p.grad)
    for grads in by_kind.values():
        flat = sum_all(torch.cat([grad.reshape(-1) for grad in grads])).div_(_job.world)
        for grad, part in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def barrier() -> None:
    """Waits until every process has come here."""
    if _job.world > 1:
        dist.barrier(group=_job.cpu)

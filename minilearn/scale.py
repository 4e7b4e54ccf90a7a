"""What training on many devices costs, computed from a model: the bytes that each holds and the bytes that each sends.

Nothing is started and no number is computed with: the model may be on the meta device, too large for this machine.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from minilearn.errors import did_you_mean, in_range, positive, whole
from minilearn.optim import Adam
from minilearn.optim.foreign import make_optimizer
from minilearn.sharding import Classes, classes_of, sharding_units

Strategy = Literal["ddp", "fsdp"]
STRATEGIES = ("ddp", "fsdp")

FIRST_BUCKET_BYTES, BUCKET_BYTES = 1 << 20, 25 << 20
"""How large DDP lets the first of its buckets grow, and the others: defaults of torch 2.13."""


@dataclass(frozen=True)
class ScalingRow:
    """What one device of so many holds, and sends in a training step. The fullest device, where shards are uneven."""

    devices: int
    parameter_bytes: int
    """Its parameters, or its shard of each; with the model's buffers, of which every device has all."""
    gradient_bytes: int
    optimizer_bytes: int
    working_bytes: int
    """What the strategy itself needs: DDP's buckets; FSDP's units that are whole for a while, with their gradients."""
    sent_bytes: int
    """In a step. In a ring a device receives as much as it sends."""
    gradient_sent_bytes: int
    """What of it are gradients; the rest are parameters."""
    collectives: int
    """How many calls for all devices a step makes: all-reduces, or all-gathers and reduce-scatters."""
    communication_s: float
    """The step's communication one after another, at the bandwidth and latency that were given."""
    communication_frac: float | None
    """Its share of a step in which nothing overlaps; None where the step's own seconds were not given."""

    @property
    def memory_bytes(self) -> int:
        """All that the device holds but for activations."""
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes + self.working_bytes


@dataclass(frozen=True)
class Scaling:
    """What `scaling` computed; its text is a table with a line for each number of devices."""

    model: str
    """The name of the model's class."""
    parameters: int
    strategy: Strategy
    optimizer: str
    rows: tuple[ScalingRow, ...]

    def __str__(self) -> str:
        head = ("devices", "parameters", "gradients", "optimizer", "working", "memory", "sent a step", "calls", "time")
        cells: list[tuple[str, ...]] = [(*head, "share")]
        for row in self.rows:
            held = (row.parameter_bytes, row.gradient_bytes, row.optimizer_bytes, row.working_bytes, row.memory_bytes)
            share = "" if row.communication_frac is None else f"{row.communication_frac:.1%}"
            sizes = (*map(_size, held), _size(row.sent_bytes))
            cells.append((f"{row.devices:,}", *sizes, f"{row.collectives:,}", _seconds(row.communication_s), share))
        wide = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, wide, strict=True)) for line in cells]
        title = (
            f"{self.model}, {self.parameters:,} parameters, {self.optimizer}, {self.strategy}; bytes a device, computed"
        )
        return "\n".join([title, *map(str.rstrip, lines)])

    def __repr__(self) -> str:
        return str(self)  # in a notebook it is the cell's answer


def scaling(
    model: nn.Module,
    opt_func: Callable[..., Optimizer] = Adam,
    devices: Sequence[int] = (1, 8, 64, 1024),
    strategy: Strategy = "ddp",
    *,
    blocks: Classes | None = None,
    reshard_after_forward: bool = True,
    param_dtype: torch.dtype | None = None,
    reduce_dtype: torch.dtype | None = None,
    gradient_as_bucket_view: bool = True,
    bytes_per_s: float = 50e9,
    latency_s: float = 1e-5,
    step_s: float | None = None,
) -> Scaling:
    """What each device holds and sends in a training step on so many devices: computed, nothing is measured.

    With S the bytes of the gradients, or of the parameters as they are sent, and N devices in a ring, each device sends

    - for an all-reduce (DDP: the gradients, in buckets) 2·(N - 1)/N·S bytes in 2·(N - 1) messages,
    - for an all-gather (FSDP: a unit's parameters) and for a reduce-scatter (its gradients) (N - 1)/N·S bytes each, in
      N - 1 messages.

    A message takes ``latency_s`` and its bytes divided by ``bytes_per_s``. Under FSDP a unit's parameters are gathered
    before its forward pass and, where it let go of them after that, again before its backward pass; the outermost
    module's own parameters stay. So DDP sends 2·S a step, FSDP 3·S, or 2·S where nothing is resharded after the forward
    pass, each times (N - 1)/N and in its own precision.

    DDP holds everything on every device; gradients live in its buckets, or lie in them once more. FSDP holds on each
    device its share of the rows (of axis 0) of each parameter, of its gradient and of its state, rounded up: one of
    fewer rows than there are devices takes a row on each, and is sent so. Beside that come, as "working", at most: the
    parameters that are whole for a while, which are the outermost module's own and two units (the one at work and the
    next, which is being gathered); the whole gradients of the outermost module and of the unit at work; and the copy of
    a unit's gradients that is sent.

    Not counted: activations, buffers that DDP sends, what libraries keep for themselves, and that large installations
    may send along trees, with fewer messages. What overlaps with computing costs less time than is said here.

    Args:
        model: on any device; on the meta device it takes no memory. Its precision is the one it is trained in.
        opt_func: makes the optimizer, as for a Learner. Its state's size is found by a step on tensors without numbers.
        devices: for how many devices; 1 is training without a strategy.
        strategy: "ddp" or "fsdp".
        blocks: the classes of the modules that FSDP gathers one by one; None for those of
            `minilearn.sharding.sharding_units`, as training has them.
        reshard_after_forward: whether FSDP's units let go of their parameters between forward and backward pass.
        param_dtype: the precision in which FSDP's units are gathered and work, None for the parameters' own.
        reduce_dtype: the precision in which FSDP's gradients are sent, None for the one in which units work.
        gradient_as_bucket_view: whether DDP's gradients live in its buckets, as `Distributed` has it; torch's own
            default is False, a copy of all gradients.
        bytes_per_s: what one device can send, in bytes a second; 50e9 is a network card of 400 Gbit/s for each.
        latency_s: what a message takes beside its bytes, in seconds.
        step_s: what a step takes on one device without communication, in seconds, for the share of communication.
    Raises:
        ValueError: an argument is out of its range, the model has parameters whose size is not known yet, or `blocks`
            names no module of it.
        TypeError: a number of devices is no whole number, or `blocks` holds something else than classes of modules.
    Source: Patarasuk and Yuan 2009 (doi:10.1016/j.jpdc.2008.09.002) for the ring; Rajbhandari et al. 2020
        (arXiv:1910.02054) for what is held; Zhao et al. 2023 (arXiv:2304.11277) for FSDP; torch 2.13 for buckets, rows
        rounded up, and which parameters stay.

    >>> table = scaling(nn.Linear(1000, 1000, device="meta"), devices=(1, 4))
    >>> table.rows[1].sent_bytes, 2 * 3 * 4 * 1_001_000 // 4
    (6006000, 6006000)
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"no strategy {strategy!r}{did_you_mean(str(strategy), STRATEGIES)}")
    if strategy == "ddp" and (param_dtype or reduce_dtype or blocks is not None):
        raise ValueError(
            'blocks, param_dtype and reduce_dtype belong to strategy="fsdp": DDP sends gradients as they are'
        )
    counts = [whole("devices", count, 1) for count in devices]
    positive("bytes_per_s", bytes_per_s)
    in_range("latency_s", latency_s, 0)
    params = list(model.parameters())
    if not params or any(is_lazy(p) for p in params):
        raise ValueError(
            f"{type(model).__name__} has no parameters, or some whose size is not known before its first batch"
        )
    if strategy == "ddp":
        cost = partial(_ddp, params, opt_func, model, gradient_as_bucket_view)
    else:
        groups = list(_unit_params(model, blocks))
        cost = partial(_fsdp, groups, opt_func, model, (param_dtype, reduce_dtype), reshard_after_forward)
    buffers = sum(map(_bytes, model.buffers()))
    rows = tuple(_row(cost(count), count, buffers, bytes_per_s, latency_s, step_s) for count in counts)
    name = getattr(getattr(opt_func, "func", opt_func), "__name__", type(opt_func).__name__)
    return Scaling(type(model).__name__, sum(p.numel() for p in params), strategy, name, rows)


@dataclass(frozen=True)
class _Cost:
    """A device's bytes; and what it sends: the bytes and messages of each call, for parameters and for gradients."""

    parameters: int
    gradients: int
    optimizer: int
    working: int
    gathers: list[tuple[int, int]]
    reductions: list[tuple[int, int]]


def _row(
    cost: _Cost, devices: int, buffers: int, bytes_per_s: float, latency_s: float, step_s: float | None
) -> ScalingRow:
    calls = cost.gathers + cost.reductions
    sent, messages = (sum(part) for part in zip(*calls, strict=True)) if calls else (0, 0)
    seconds = sent / bytes_per_s + messages * latency_s
    return ScalingRow(
        devices,
        cost.parameters + buffers,
        cost.gradients,
        cost.optimizer,
        cost.working,
        sent,
        sum(size for size, _ in cost.reductions),
        len(calls),
        seconds,
        None if step_s is None else seconds / (seconds + positive("step_s", step_s)),
    )


def _ddp(params: list[nn.Parameter], opt_func: Any, model: nn.Module, view: bool, devices: int) -> _Cost:
    gradients = sum(_bytes(p) for p in params if p.requires_grad)
    buckets = buckets_of(params) if devices > 1 else []
    calls = [(2 * (devices - 1) * size // devices, 2 * (devices - 1)) for size in buckets]
    working = 0 if view else sum(buckets)
    return _Cost(sum(map(_bytes, params)), gradients, _state_bytes(params, opt_func, model), working, [], calls)


def buckets_of(params: Sequence[nn.Parameter]) -> list[int]:
    """The bytes of each of DDP's buckets in its first step, which is filled from the last parameter on.

    A bucket is closed when it has reached its size: 1 MiB the first one of a dtype, 25 MiB the others. From the second
    step on DDP fills them in the order in which gradients came, which may divide them otherwise.

    Source: torch 2.13, `DistributedDataParallel`.
    """
    buckets: list[int] = []
    filling: dict[tuple[torch.dtype, torch.device], int] = {}
    closed: Counter[tuple[torch.dtype, torch.device]] = Counter()
    for p in reversed(params):
        if p.requires_grad:
            kind = p.dtype, p.device
            filling[kind] = filling.get(kind, 0) + _bytes(p)
            if filling[kind] >= (BUCKET_BYTES if closed[kind] else FIRST_BUCKET_BYTES):
                buckets.append(filling.pop(kind))
                closed[kind] += 1
    return buckets + list(filling.values())


def _fsdp(
    groups: list[list[nn.Parameter]],
    opt_func: Any,
    model: nn.Module,
    dtypes: tuple[torch.dtype | None, torch.dtype | None],
    reshards: bool,
    devices: int,
) -> _Cost:
    """As `_ddp`; the first of the groups is the outermost module's own."""
    params = [p for group in groups for p in group]
    if devices == 1:
        return _ddp(params, opt_func, model, True, 1)
    shards = [nn.Parameter(_shard(p, devices), p.requires_grad) for p in params]
    param_dtype, reduce_dtype = dtypes
    gathers, reductions = [], []
    sizes: list[tuple[int, int, int]] = []  # of each group, whole: its parameters, its gradients, and these as sent
    for i, group in enumerate(groups):
        trained = [_shard(p, devices) for p in group if p.requires_grad]
        gathered = sum(_bytes(_shard(p, devices), param_dtype) for p in group)
        scattered = sum(_bytes(shard, reduce_dtype or param_dtype) for shard in trained)
        sizes.append((devices * gathered, devices * sum(_bytes(p, param_dtype) for p in trained), devices * scattered))
        gathers += [((devices - 1) * gathered, devices - 1)] * ((2 if i and reshards else 1) if group else 0)
        reductions += [((devices - 1) * scattered, devices - 1)] * bool(trained)
    return _Cost(
        sum(map(_bytes, shards)),
        sum(_bytes(shard) for shard in shards if shard.requires_grad),
        _state_bytes(shards, opt_func, model),
        _whole_for_a_while(sizes, reshards),
        gathers,
        reductions,
    )


def _whole_for_a_while(sizes: list[tuple[int, int, int]], reshards: bool) -> int:
    """The most that FSDP holds beside the shards: in the forward pass, in a unit's backward pass, or at its end.

    A gathered unit lies twice in memory, as it came and as parameters, until the next one has been copied out.
    """
    (own, own_grads, own_sent), *units = sizes
    unit, unit_grads, unit_sent = (max(column) for column in zip(*units, strict=True)) if units else (0, 0, 0)
    parameters = own + 2 * unit if reshards else sum(whole_size for whole_size, _, _ in sizes)
    forward = parameters + own
    unit_backward = parameters + own_grads + unit_grads + unit_sent
    end = own + own_grads + own_sent
    return max(forward, unit_backward, end)


def _unit_params(model: nn.Module, blocks: Classes | None) -> Iterator[list[nn.Parameter]]:
    """The outermost module's own parameters, then those of each unit; a shared one is in the first that has it."""
    if blocks is None:
        found = sharding_units(model)
    else:
        kinds = classes_of("blocks", blocks)
        found = [module for module in model.modules() if module is not model and isinstance(module, kinds)]
        if not found:
            raise ValueError(
                f"blocks: {type(model).__name__} has no module of {', '.join(kind.__name__ for kind in kinds)}"
            )
    taken: set[nn.Parameter] = set()
    of_units: list[list[nn.Parameter]] = []
    for module in reversed(found):  # what is inside another one is sharded first, as `fully_shard` asks for
        of_units.append([p for p in module.parameters() if p not in taken])
        taken.update(of_units[-1])
    yield [p for p in model.parameters() if p not in taken]
    yield from reversed(of_units)


def _shard(p: Tensor, devices: int) -> Tensor:
    """A device's rows of a parameter, as a tensor without numbers."""
    rows = p.shape[0] if p.ndim else 1
    return torch.empty((-(-rows // devices), *p.shape[1:]), dtype=p.dtype, device="meta")


def _state_bytes(params: Sequence[nn.Parameter], opt_func: Any, model: nn.Module) -> int:
    """What the optimizer keeps for its parameters, by a step on tensors without numbers."""
    twins = [nn.Parameter(torch.empty_like(p, device="meta")) for p in params if p.requires_grad]
    for twin in twins:
        twin.grad = torch.empty_like(twin)
    if not twins:
        return 0
    opt = make_optimizer(opt_func, [{"params": twins}], 1e-3, model)
    opt.step()
    return sum(_bytes(part) for state in opt.state.values() for part in state.values() if isinstance(part, Tensor))


def _bytes(tensor: Tensor, dtype: torch.dtype | None = None) -> int:
    return tensor.numel() * (tensor.element_size() if dtype is None else dtype.itemsize)


def _size(size: float) -> str:
    for unit, of in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= of:
            return f"{size / of:.2f} {unit}"
    return f"{size:.0f} B"


def _seconds(seconds: float) -> str:
    for unit, of in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= of:
            return f"{seconds / of:.2f} {unit}"
    return f"{seconds * 1e6:.0f} µs"

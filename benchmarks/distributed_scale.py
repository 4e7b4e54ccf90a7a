"""Bytes held and sent as `minilearn.scale` computes them, beside what torch.distributed does here with gloo.

    python benchmarks/distributed_scale.py

Starts 2 and then 4 processes on this machine, trains a network of linear layers under DDP and under FSDP2, and prints
each figure computed and measured, with their ratio. What a process sends is what Linux counts as written by it in a
step (`wchar` in /proc/self/io: sockets are in it, and nothing else is written meanwhile); what it holds are the
storages of its parameters, gradients and optimizer state, and its resident memory at its highest.

gloo's reduce-scatter sends twice what one in a ring does (torch 2.13: 2.00, measured with 64 MiB among 2 and 4
processes). The line "sent, as gloo does" counts that in; the line "sent" is the ring's.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from harness import in_processes, leave
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from minilearn.scale import ScalingRow, scaling

WAYS = ("ddp", "fsdp", "fsdp, kept")
MB = 1e6


def network(width: int) -> nn.Sequential:
    """Linear layers, the last one with 10 outputs, which no 4 processes share evenly."""
    return nn.Sequential(
        nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 2 * width), nn.ReLU(),
        nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 10),
    )  # fmt: skip


def computed(width: int, way: str, processes: int) -> ScalingRow:
    """What `scaling` says of a device."""
    with torch.device("meta"):
        model = network(width)
    strategy: Any = way[:4].rstrip(",")
    reshards = way != "fsdp, kept"
    blocks = None if strategy == "ddp" else nn.Linear
    found = scaling(model, torch.optim.AdamW, (processes,), strategy, blocks=blocks, reshard_after_forward=reshards)
    return found.rows[0]


def wrapped(model: nn.Module, way: str) -> nn.Module:
    """The model as torch distributes it."""
    if way == "ddp":
        return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    from torch.distributed.fsdp import fully_shard

    for layer in [module for module in model.modules() if isinstance(module, nn.Linear)]:
        fully_shard(layer, reshard_after_forward=way == "fsdp")
    return fully_shard(model)


class Calls(TorchDispatchMode):
    """Notes the collectives that Python calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def bytes_of(tensors: Iterable[Tensor | None]) -> int:
    """The storages behind tensors, a shard's padding with it."""
    local = [getattr(tensor, "_local_tensor", tensor) for tensor in tensors]
    storages = [tensor.untyped_storage() for tensor in local if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def number_in(file: str, name: str) -> int:
    """A number of Linux's files on this process."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def measured(width: int, way: str) -> dict[str, int]:
    """One process's bytes, in the third step."""
    torch.manual_seed(0)
    before = number_in("/proc/self/status", "VmRSS:") * 1024
    model = wrapped(network(width), way)
    opt = torch.optim.AdamW(model.parameters())
    x = torch.randn(8, width)
    for _ in range(2):
        F.mse_loss(model(x), torch.zeros(8, 10)).backward()
        opt.step()
        opt.zero_grad()
    counted = Calls()
    dist.barrier()
    written = number_in("/proc/self/io", "wchar:")
    with counted:
        F.mse_loss(model(x), torch.zeros(8, 10)).backward()
    written = number_in("/proc/self/io", "wchar:") - written
    opt.step()
    states = [part for state in opt.state.values() for part in state.values() if isinstance(part, Tensor)]
    found = {
        "parameters": bytes_of(model.parameters()),
        "gradients": bytes_of(p.grad for p in model.parameters()),
        "optimizer": bytes_of(states),
        "sent": written,
        "calls": len(counted.names),
        "resident": number_in("/proc/self/status", "VmHWM:") * 1024 - before,
    }
    if isinstance(model, nn.parallel.DistributedDataParallel):  # what C++ calls is not seen from Python
        sizes = model._get_ddp_logging_data()["rebuilt_bucket_sizes"]
        found["calls"] = len(str(sizes).split(","))
    return found


def process(width: int, ways: list[str]) -> None:
    """What each of the processes does; the first one prints all figures, as JSON."""
    dist.init_process_group("gloo")
    own = {way: measured(width, way) for way in ways}
    of_all: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, own)
    if dist.get_rank() == 0:
        print(json.dumps(of_all))
    leave()


def run(processes: int, width: int, ways: Iterable[str] = WAYS, timeout_s: float = 300) -> list[dict[str, Any]]:
    """The figures of each process, by way."""
    arguments = ("--width", width, "--ways", *ways)
    found: list[dict[str, Any]] = in_processes(processes, "distributed_scale.py", *arguments, timeout_s=timeout_s)
    return found


def pairs(row: ScalingRow, found: list[dict[str, int]], processes: int) -> list[tuple[str, float, float]]:
    """Each figure: its name, computed, and measured where it is highest; what is sent, in the mean of the processes."""
    highest = {name: max(figures[name] for figures in found) for name in found[0]}
    sent = sum(figures["sent"] for figures in found) / processes
    lines: list[tuple[str, float, float]] = [
        ("parameters", row.parameter_bytes, highest["parameters"]),
        ("gradients", row.gradient_bytes, highest["gradients"]),
        ("optimizer", row.optimizer_bytes, highest["optimizer"]),
        ("sent", row.sent_bytes, sent),
    ]
    if row.gradient_sent_bytes < row.sent_bytes:
        lines.append(("sent, as gloo does", row.sent_bytes + row.gradient_sent_bytes, sent))
    return [*lines, ("calls", row.collectives, highest["calls"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048, help="of the network; 2048 has 29 million parameters")
    parser.add_argument("--ways", nargs="+", default=[], choices=WAYS, help="what a process does")
    args = parser.parse_args()
    if args.ways:
        process(args.width, args.ways)
        return
    print(f"{'processes':9}  {'way':10}  {'figure':20}  {'computed MB':>12}  {'measured MB':>12}  ratio")
    for processes in (2, 4):
        for way in WAYS:  # in processes of their own, for their memory
            row = computed(args.width, way, processes)
            found = [figures[way] for figures in run(processes, args.width, [way])]
            lines = pairs(row, found, processes)
            lines.append(("memory, resident", row.memory_bytes, max(figures["resident"] for figures in found)))
            for name, ours, theirs in lines:
                unit = 1 if name == "calls" else MB
                print(
                    f"{processes:9}  {way:10}  {name:20}  {ours / unit:12,.2f}  {theirs / unit:12,.2f}"
                    f"  {theirs / ours:.3f}"
                )


if __name__ == "__main__":
    main()

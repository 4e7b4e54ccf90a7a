"""One process that takes itself for one of 1,024: what `fully_shard` leaves it, sends and holds, as JSON.

The fake process group sends nothing, and fake tensors have no numbers, so that any size runs.
"""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode


class Layer(nn.Linear):
    """One that is gathered by itself, as those within a transformer's block are not."""


BLOCKS = (nn.TransformerEncoderLayer, Layer)


def transformer(layers: int, width: int, vocabulary: int, device: str = "meta") -> nn.Sequential:
    """A language model's parameters: an embedding, blocks, and a layer of logits; (batch, tokens) in."""
    with torch.device(device):
        blocks = [
            nn.TransformerEncoderLayer(width, max(width // 128, 1), 4 * width, dropout=0.0, batch_first=True)
            for _ in range(layers)
        ]
        return nn.Sequential(nn.Embedding(vocabulary, width), *blocks, nn.Linear(width, vocabulary, bias=False))


def few_parameters(device: str = "meta") -> nn.Sequential:
    """Three, of which 1,024 processes share none evenly; torch cuts each into 1,024 pieces, which takes long."""
    with torch.device(device):
        layers = Layer(70, 1030, bias=False), Layer(1030, 70, bias=False)
        return nn.Sequential(nn.Embedding(3000, 70), *layers)


def sharded(model: nn.Module, mesh: DeviceMesh, **options: Any) -> nn.Module:
    for block in [module for module in model.modules() if isinstance(module, BLOCKS)]:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


class Sent(TorchDispatchMode):
    """Counts a ring's bytes of the collectives that are called: (N - 1) shards each."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_allgather_base_" in str(func) or "_reduce_scatter_base_" in str(func):
            sizes = [part.numel() * part.element_size() for part in args[:2] if isinstance(part, Tensor)]
            name = "gather" if "gather" in str(func) else "scatter"
            self.calls[name] += 1
            self.sent[name] += max(sizes) - min(sizes)
        return func(*args, **(kwargs or {}))


def group(rank: int, devices: int) -> DeviceMesh:
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=devices)
    return init_device_mesh("cpu", (devices,))


def held(rank: int, size: tuple[int, int, int]) -> list[int]:
    """The bytes of memory behind the shards of one rank of 1,024, and the bytes of those that count."""
    shards = [p.to_local() for p in sharded(transformer(*size), group(rank, 1024)).parameters()]  # type: ignore[attr-defined]
    return [sum(s.untyped_storage().nbytes() for s in shards), sum(s.numel() * s.element_size() for s in shards)]


def step(devices: int, make: Callable[..., nn.Module], **options: Any) -> dict[str, Any]:
    """A forward and a backward pass of one process of so many: calls and bytes."""
    mesh = group(devices - 1, devices)
    with FakeTensorMode():
        model, sent = sharded(make(device="cpu"), mesh, **options), Sent()
        with sent:
            model(torch.zeros(1, 2, dtype=torch.long)).sum().backward()
    return {"calls": dict(sent.calls), "sent": dict(sent.sent)}


def peak(devices: int, size: tuple[int, int, int], **options: Any) -> int:
    """The most that a process holds in two steps, by torch's own tracker."""
    mesh = group(0, devices)
    with FakeTensorMode():
        model = sharded(transformer(*size, device="cpu"), mesh, **options)
        opt = torch.optim.AdamW(model.parameters(), foreach=False)
        tracker = FSDPMemTracker(model, opt)
        with tracker:
            for _ in range(2):
                model(torch.zeros(1, 2, dtype=torch.long)).sum().backward()
                opt.step()
                opt.zero_grad()
                tracker.reset_mod_stats()
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


def main() -> None:
    seven_billion = (32, 4096, 50_304)
    small, half = partial(transformer, 2, 256, 1000), MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    figures = {
        "first of 1,024": held(0, seven_billion),
        "last of 1,024": held(1023, seven_billion),
        "step of 1,024": step(1024, few_parameters),
        "step of 16": step(16, small),
        "step of 16, kept": step(16, small, reshard_after_forward=False),
        "step of 16, half": step(16, small, mp_policy=half),
        "peak of 16": peak(16, (3, 512, 256)),
        "peak of 16, large ends": peak(16, (3, 512, 8000)),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

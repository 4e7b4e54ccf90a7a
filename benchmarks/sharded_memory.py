"""Memory of each process under FSDP2, beside that of one process alone: a model of 100 million parameters, Adam.

    python benchmarks/sharded_memory.py [--processes 4] [--parameters 100]

Two steps are taken in one process without sharding, then in several (gloo, on the CPU). Printed for each: the bytes
that parameters, gradients and the optimizer's state hold, and the peak of the resident set beyond what the process held
before it made the model; and the ratio of the fullest of several processes to the one. Needs about 7 GB, and a minute.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

BAR = 0.30
"""The share of one process's memory that a process of four may hold."""
LAYERS = 32
"""Of equal size, each a unit: beside its pieces a process holds about three of them whole in the midst of a step."""
MB = 1e6


def resident_bytes() -> int:
    """The resident set of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Peak(threading.Thread):
    """Watches the resident set. What the system counts as its peak holds that of the imports too."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.stopped = 0, False

    def run(self) -> None:
        while not self.stopped:
            self.bytes = max(self.bytes, resident_bytes())
            time.sleep(0.002)


def held_bytes(model: Any, opt: Any) -> dict[str, int]:
    """What parameters, gradients and the optimizer's state hold in this process, after a step."""
    from minilearn.optim.pieces import piece_of

    params = list(model.parameters())
    states = [value for p in params for value in opt.state[p].values() if hasattr(value, "untyped_storage")]
    kinds = {"parameters": params, "gradients": [p.grad for p in params], "optimizer": states}
    return {
        kind: sum({(s := piece_of(t).untyped_storage()).data_ptr(): s.nbytes() for t in several}.values())
        for kind, several in kinds.items()
    }


def measure(parameters: int) -> dict[str, int]:
    """Two steps in this process, sharded where it is one of several."""
    import torch
    import torch.distributed as dist
    from torch import nn

    from minilearn.materialize import materialize
    from minilearn.optim import Adam
    from minilearn.sharding import shard_model

    torch.set_num_threads(1)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    width = round((parameters / LAYERS) ** 0.5)

    def made(layers: int, width: int) -> nn.Module:
        with torch.device("meta"):
            model = nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])
        return materialize(shard_model(model, blocks=nn.Linear) if several else model)

    def steps(model: nn.Module, width: int) -> Any:
        opt = Adam(model.parameters(), lr=1e-3)
        for _ in range(2):
            opt.zero_grad()
            model(torch.ones(2, width)).square().mean().backward()
            opt.step()
        return opt

    if several:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group("gloo", f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    steps(made(2, 8), 8)  # whatever torch imports when it is first used
    before = resident_bytes()
    peak = Peak()
    peak.start()
    model = made(LAYERS, width)
    opt = steps(model, width)
    peak.stopped = True
    peak.join()
    found = {**held_bytes(model, opt), "peak": peak.bytes - before}
    if several:
        dist.barrier()
        dist.destroy_process_group()
    return found


def processes(n: int, parameters: int) -> list[dict[str, int]]:
    """What each of n processes measured."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--measure", "--parameters", str(parameters)]
        env = {**os.environ, "WORLD_SIZE": str(n), "STORE": str(Path(folder, "store")), "OMP_NUM_THREADS": "1"}
        env["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)  # large memory goes back when it is free, else habits are measured
        started = [
            subprocess.Popen(command, env={**env, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
            for rank in range(n)
        ]
        try:
            outputs = [one.communicate(timeout=300)[0] for one in started]
        finally:
            for one in started:
                one.kill()
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4, help="how many hold the sharded model")
    parser.add_argument("--parameters", type=int, default=100_000_000, help="of the model")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.parameters)))
        return
    found = {n: processes(n, args.parameters) for n in (1, args.processes)}
    rows = [*next(iter(found[1])), "held"]
    for each in (one for several in found.values() for one in several):
        each["held"] = each["parameters"] + each["gradients"] + each["optimizer"]
    print(f"{args.parameters / 1e6:g} million parameters, Adam, float32, MB a process")
    print(f"{'':12}{'1 process':>12}{f'{args.processes} processes':>14}{'ratio':>8}")
    for name in rows:
        one, many = found[1][0][name], max(each[name] for each in found[args.processes])
        print(f"{name:12}{one / MB:12.1f}{many / MB:14.1f}{many / one:8.3f}")
    ratio = max(each["held"] for each in found[args.processes]) / found[1][0]["held"]
    print(f"held: {ratio:.3f} of one process's, bar {BAR} on 4 processes")
    sys.exit(ratio > BAR)


if __name__ == "__main__":
    main()

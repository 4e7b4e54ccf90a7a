"""Functions run by several processes of one job at once, over gloo, each forked from a server that knows torch."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any

START_S = 60.0
"""How long a collective may take: longer than a process takes to start on a busy machine."""

PRELOADED = [
    "pytest",
    "minilearn.learner",
    "minilearn.callbacks.checkpoint",
    "minilearn.sharded_storage",
    "torch.distributed.fsdp",
    "torch._dynamo",
]
"""What the server imports once, instead of every process: torch alone takes seconds, what an optimizer asks for more."""


def together(n: int, function: Callable[..., Any], folder: Path, *args: Any, timeout_s: float = 100.0) -> list[Any]:
    """What `function(rank, folder, *args)` gives in each of `n` processes of one job.

    An exception is given as its traceback; a process that died, as its exit code (negative for a signal).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / f".store-{os.urandom(4).hex()}"
    ends, processes = [], []
    for rank in range(n):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(there, rank, n, str(store), function, folder, args), daemon=True)
        process.start()
        there.close()
        ends.append(here)
        processes.append(process)
    until = monotonic() + timeout_s
    given: list[Any] = ["it took too long"] * n
    left: list[Any] = list(ends)
    try:
        while left and monotonic() < until:
            for end in wait(left, timeout=1.0):
                rank = ends.index(end)  # type: ignore[arg-type]
                try:
                    given[rank] = ends[rank].recv()
                except EOFError:
                    processes[rank].join(10)
                    given[rank] = processes[rank].exitcode
                left.remove(end)
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join()
    return given


def _run(end: Connection, rank: int, n: int, store: str, function: Any, folder: Path, args: Any) -> None:
    import torch
    from torch import distributed

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        if n > 1:
            timeout = timedelta(seconds=START_S)
            distributed.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=n, timeout=timeout
            )
        end.send(function(rank, folder, *args))
    except BaseException:
        end.send(traceback.format_exc())

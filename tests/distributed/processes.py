"""Starts a script in several processes of one job, on this machine."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
at_length = pytest.mark.skipif(
    os.environ.get("MINILEARN_DISTRIBUTED") != "full", reason="takes long: MINILEARN_DISTRIBUTED=full, make distributed"
)
"""Marks what is tried in full alone, with two processes in its place otherwise."""


def in_processes(script: Path, world: int, *args: object, timeout_s: float = 120, **variables: str) -> list[str]:
    """Runs a script in `world` processes that find each other by the variables that torchrun sets.

    Args:
        script: the file.
        world: how many processes; 1 for one that is alone.
        args: the script's arguments.
        timeout_s: seconds until all are killed.
        variables: of the environment.
    Returns:
        What each process printed, by rank.
    Raises:
        AssertionError: one of them failed, which ends the others; the message has what it wrote.
    """
    running: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, f"{rank}.{kind}") for rank in range(world) for kind in ("out", "err")]
        for rank, place in enumerate(places(world)):
            with outputs[2 * rank].open("w") as out, outputs[2 * rank + 1].open("w") as err:
                command = [sys.executable, "-W", "error", str(script), *map(str, args)]
                env = {**environment(), **place, **variables}
                running.append(subprocess.Popen(command, stdout=out, stderr=err, env=env, text=True))
        try:
            codes = ended(running, timeout_s)
        finally:
            for process in running:
                process.kill()
                process.wait()
        printed = [path.read_text() for path in outputs]
    failed = [rank for rank, code in enumerate(codes) if code != 0]
    told = "\n".join(f"rank {rank}, exit {codes[rank]}:\n{printed[2 * rank + 1][-4000:]}" for rank in failed)
    assert not failed, f"{script.name} {args}: {told}"
    return printed[::2]


def torchrun(
    script: Path, world: int, *args: object, options: Sequence[object] = (), timeout_s: float = 120, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Runs a script under torchrun, in `world` processes of this machine.

    Args:
        script: the file.
        world: how many processes.
        args: the script's arguments.
        options: torchrun's, such as ``"--max-restarts", 3``.
        timeout_s: seconds until all are ended.
        variables: of the environment.
    Returns:
        How it ended, and what all printed.
    """
    with launched(script, world, *args, options=options, **variables) as job:
        try:
            out, err = job.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            job.send_signal(signal.SIGTERM)  # it ends its processes
            out, err = job.communicate(timeout=60)
            raise AssertionError(
                f"{script.name} {args} did not end in {timeout_s} s:\n{out[-2000:]}{err[-4000:]}"
            ) from None
    return subprocess.CompletedProcess(job.args, job.returncode, out, err)


def launched(
    script: Path, world: int, *args: object, options: Sequence[object] = (), **variables: str
) -> "subprocess.Popen[str]":
    """Starts a script under torchrun."""
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1")
    own = () if "--rdzv-endpoint" in options else meeting
    command = ["-m", "torch.distributed.run", "--nproc-per-node", world, *own, *options, script, *args]
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment(), **variables},
        text=True,
    )


def ended(running: Sequence[subprocess.Popen[str]], timeout_s: float) -> list[int | None]:
    """The exit codes, once all have ended, or some seconds after the first failed, or when the time is over."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        codes = [process.poll() for process in running]
        if None not in codes:
            return codes
        if any(codes):
            until = min(until, time.monotonic() + 3)
        time.sleep(0.05)
    return [process.poll() for process in running]


def environment() -> dict[str, str]:
    """This process's environment, with minilearn to be found, one thread a process, and no job."""
    job = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    own = {name: value for name, value in os.environ.items() if name not in job}
    return {**own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def places(world: int) -> list[dict[str, str]]:
    """The variables by which each process of a job knows its place; none for a process that is alone."""
    if world == 1:
        return [{}]
    port = free_port()
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        for rank in range(world)
    ]


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port

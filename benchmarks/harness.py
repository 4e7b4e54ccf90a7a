"""What every benchmark is made of: a case with its two sides and its bar, the race between the sides, processes."""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

HERE = Path(__file__).parent

Outcome = Sequence[Tensor | float | None]
"""What a side ends with: losses, metrics, weights. Both sides must end with the same."""
Run = Callable[[], Outcome]
Prepare = Callable[[], Run]
"""Makes data, model and warm-up, which are not timed, and gives what is."""
Clock = Callable[[Run], tuple[Outcome, float]]
"""Carries a side out, and gives what it ended with and the seconds that it took."""


def host_time(run: Run) -> tuple[Outcome, float]:
    """By the computer's clock."""
    started = time.perf_counter()
    outcome = run()
    return outcome, time.perf_counter() - started


class Skip(Exception):  # noqa: N818 -- it is no error
    """A case that cannot be measured here; its text says why."""


@dataclass(frozen=True)
class Setting:
    """How thoroughly to measure, and by which clock."""

    quick: bool = False
    trial: bool = False
    """One round of what a quick run does: only to see that it runs."""
    clock: Clock = host_time

    def of(self, full: int, quick: int) -> int:
        """One number for a full run, another for a quick one."""
        return quick if self.quick or self.trial else full

    def rounds(self, full: int, quick: int) -> int:
        """The number of rounds of a full run or a quick one; a trial has one."""
        return 1 if self.trial else self.of(full, quick)


@dataclass(frozen=True)
class Measured:
    """The figure that is held against the bar, its spread, and what it was made of."""

    figure: float
    low: float
    high: float
    ours: str = ""
    theirs: str = ""
    note: str = ""


@dataclass(frozen=True)
class Case:
    """Two sides, what is compared, and the bar."""

    name: str
    ours: str
    theirs: str
    compares: str
    measure: Callable[[Setting], Measured]
    bar: float | None = None
    """The highest figure that is good; None where the figure is only told."""
    unit: str = "×"
    slow: bool = False
    """Left out of a quick run."""

    def good(self, measured: Measured) -> bool:
        """Whether the bar is kept; a figure that is no number does not keep it."""
        return self.bar is None or measured.figure <= self.bar


def middle(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The median and the quartiles."""
    if len(ratios) < 2:
        return ratios[0], ratios[0], ratios[0]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return statistics.median(ratios), low, high


def compared(ours: Sequence[float], theirs: Sequence[float], per: float = 1.0, note: str = "") -> Measured:
    """The median of the rounds' ratios: what slows the machine for a while slows both sides of a round."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Measured(*middle(ratios), seconds_text(ours, per), seconds_text(theirs, per), note)


def race(
    ours: Prepare,
    theirs: Prepare,
    rounds: int,
    *,
    per: float = 1.0,
    tolerance: float | None = 1e-4,
    clock: Clock = host_time,
) -> Measured:
    """Times both sides in turns, each round beginning with the other, and checks that they did the same sums.

    Args:
        ours: our side.
        theirs: the other.
        rounds: how often each is timed; a round before the first is not counted.
        per: what to divide the printed times by: epochs, batches.
        tolerance: how far the outcomes may be apart, relatively; None where the sides draw other random numbers.
        clock: what times a side.
    """
    sides = {"ours": ours, "theirs": theirs}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    outcomes: dict[str, Outcome] = {}
    for i in range(rounds + 1):
        for name in sorted(sides, reverse=bool(i % 2)):
            torch.manual_seed(0)
            run = sides[name]()
            torch.manual_seed(1)
            gc.collect()
            outcomes[name], took = clock(run)
            if i:
                seconds[name].append(took)
    if tolerance is not None:
        same_sums(outcomes["ours"], outcomes["theirs"], tolerance)
    return compared(seconds["ours"], seconds["theirs"], per)


def same_sums(ours: Outcome, theirs: Outcome, tolerance: float) -> None:
    """Raises an AssertionError where the two sides ended with something else, or with nothing."""
    assert ours, "a side ended with nothing that could be compared"
    assert len(ours) == len(theirs), f"one side ended with {len(ours)} things, the other with {len(theirs)}"
    for a, b in zip(ours, theirs, strict=True):
        assert a is not None, "our side ended with a figure that is not there"
        assert b is not None, "the other side ended with a figure that is not there"
        a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()  # noqa: PLW2901
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max())), (
            f"the two sides did different sums: {a.flatten()[:3].tolist()} and {b.flatten()[:3].tolist()}"
        )


def seconds_text(seconds: Iterable[float], per: float = 1.0) -> str:
    """A median time in the unit that reads best."""
    value = statistics.median(seconds) / per
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def in_process(script: str, *arguments: object, env: Mapping[str, str] | None = None) -> Any:
    """What a script of this folder prints last, as JSON, in a fresh process; `env` adds to its environment.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    command = [sys.executable, "-W", "ignore", str(HERE / script), *map(str, arguments)]
    surroundings = {**os.environ, **(env or {})}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=surroundings)
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(map(str, arguments))} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def in_processes(processes: int, script: str, *arguments: object, timeout_s: float = 1800) -> Any:
    """What the first of so many processes, started by torchrun with one thread each, prints last, as JSON.

    Raises:
        RuntimeError: a process failed; with the end of what it said.
    """
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command = [*torchrun, str(processes), str(HERE / script), *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env, timeout=timeout_s)
    if done.returncode:
        raise RuntimeError(f"{script} failed in {processes} processes:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def leave() -> NoReturn:
    """Ends one of several processes that are done, without the interpreter's own end.

    In the midst of that a thread of gloo's may abort the process: seen once, with torch 2.13 on a busy machine.
    """
    import torch.distributed as dist  # here: few cases need it

    sys.stdout.flush()
    sys.stderr.flush()
    dist.barrier()
    os._exit(0)


def seconds_of(code: str) -> float:
    """What `code` prints in a fresh process, which may keep bytecode, as an installed package has it: seconds."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env)
    return float(done.stdout)


def own_peak_mb() -> float:
    """This process's peak memory in MB. Not `ru_maxrss`: on Linux that begins with the peak of the process before."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))

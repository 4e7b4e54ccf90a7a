"""Runs checks in several processes that can talk to each other (gloo, one machine), and says which failed, and how."""

import datetime
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

TIMEOUT_S = 150
PACKAGE_ROOT = Path(__file__).parents[2]


def run_checks(file: Path, n: int, folder: Path, names: list[str] | None = None) -> dict[str, str]:
    """What was said against each check, a function ``check_…`` of a file, in `n` processes; "" where nothing was.

    Args:
        file: the checks; they are run in the order of the file, all processes in step. The first that fails ends it.
        n: the number of processes.
        folder: a folder for this run alone.
        names: those to run, by default all.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(n), "PYTHONPATH": os.pathsep.join(sys.path)}
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-W", "error", str(Path(__file__)), str(file), str(folder), *(names or [])]
    workers = []
    for rank in range(n):
        with (folder / f"out{rank}").open("w") as out:
            started = {"env": {**env, "RANK": str(rank)}, "cwd": PACKAGE_ROOT, "stdout": out, "stderr": out}
            workers.append(subprocess.Popen(command, **started))
    end = time.monotonic() + TIMEOUT_S
    try:
        while any(worker.poll() is None for worker in workers) and time.monotonic() < end:
            if any(worker.poll() for worker in workers):
                time.sleep(1)  # the others may have something to say too
                break
            time.sleep(0.02)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    lines = [(json.loads(line), rank) for rank in range(n) for line in _lines(folder / f"said{rank}")]
    found: dict[str, str] = {}
    for (_, name, said), rank in sorted(lines):  # by time: what others say after the first one is of its absence
        found[name] = found.get(name) or (said and f"process {rank} of {n}:\n{said}")
    if any(worker.returncode for worker in workers) and not any(found.values()):
        found["the processes"] = "\n".join((folder / f"out{rank}").read_text()[-3000:] for rank in range(n))
    return found


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _main(file: str, folder: str, *names: str) -> None:
    import torch.distributed as dist

    rank, n = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", f"file://{folder}/store", datetime.timedelta(seconds=60), rank=rank, world_size=n)
    spec = importlib.util.spec_from_file_location("checks", file)
    assert spec is not None
    assert spec.loader is not None
    checks: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(checks)
    with Path(folder, f"said{rank}").open("w") as said:
        for name in names or [name for name in vars(checks) if name.startswith("check_")]:
            begin = time.monotonic()
            try:
                getattr(checks, name)()
                dist.barrier()
            except BaseException:
                said.write(json.dumps([time.time(), name, traceback.format_exc()]) + "\n")
                said.flush()
                raise
            print(f"{name}: {time.monotonic() - begin:.2f} s", flush=True)
            said.write(json.dumps([time.time(), name, ""]) + "\n")
            said.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""Kills random processes of jobs that torchrun starts again: `python tests/distributed/kill_restart.py --kills 20`.

A fit of several processes is carried out once undisturbed. Then jobs of the same fit are started with ``--max-restarts
3``, and in each up to three times SIGKILL ends a process, any of them at any moment: at the start, in training, in
validation, while a checkpoint is written. Each job must come to its end by itself, with bit for bit the weights, the
optimizer's state and the history of the first. Prints the figures, and exits with 1 where one does not.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESTARTS = 3
TOO_LONG_S = 600.0


@dataclass
class Times:
    """How long the undisturbed job took until its first checkpoint, and from there to its end."""

    start_s: float = 0.0
    fit_s: float = 0.0


def train(folder: Path) -> None:
    """What torchrun starts: a fit that is kept in a folder."""
    (folder / f"pid.{os.environ['RANK']}").write_text(str(os.getpid()))
    import torch
    from digests import digest
    from resumes import Noisy  # here: a kill may come before torch is there
    from torch import nn
    from torch.nn import functional as F

    from minilearn.all import Adam, Checkpoint, DataLoader, DataLoaders, Learner, accuracy, set_seed
    from minilearn.distributed import is_main

    set_seed(1)
    x = torch.randn(400, 12)
    y = x[:, :3].argmax(1)
    dls = DataLoaders(DataLoader(Noisy(x, y), 4, shuffle=True), DataLoader((x[:150], y[:150]), 4))
    model = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))
    learn = Learner(dls, model, F.cross_entropy, Adam, metrics=accuracy, path=folder)
    with learn.no_logging():
        keep = 2 if (folder / "killed").exists() else 100
        learn.fit_one_cycle(4, 0.01, checkpoint=Checkpoint("run", every_batches=3, keep=keep))
    if is_main():
        recorder = learn.recorder
        found = {
            "weights": digest(dict(learn.model.state_dict())),
            "optimizer": digest(learn.opt.state_dict()),
            "history": repr((recorder.values, recorder.losses, recorder.lrs)),
        }
        (folder / "found.json").write_text(json.dumps(found))


def place(folder: Path) -> str:
    """What the run was about, as far as its folder tells."""
    run = folder / "run"
    if not run.is_dir():
        return "before its folder was there"
    if any(file.suffix == ".part" for file in run.iterdir()):
        return "while it wrote"
    return "between checkpoints" if any(run.glob("*.safetensors")) else "before its first checkpoint"


def killed(folder: Path, rank: int) -> bool:
    """Kills a process of a job, if it is there; the number of one that has gone may be another's by now."""
    with suppress(OSError, ValueError):
        process = int((folder / f"pid.{rank}").read_text())
        command = subprocess.run(
            ["ps", "-ww", "-o", "command=", "-p", f"{process}"], capture_output=True, text=True, check=False
        )
        if str(folder) in command.stdout:
            os.kill(process, signal.SIGKILL)
            return True
    return False


def newest(folder: Path) -> float:
    """When the last checkpoint was written; 0: there is none."""
    with suppress(OSError):
        return max((file.stat().st_mtime for file in (folder / "run").glob("*.safetensors")), default=0.0)
    return 0.0


def one_job(
    folder: Path, world: int, nodes: int, kills: int, draw: random.Random, took: Times, places: Any
) -> tuple[int, str]:
    """A job of which `kills` processes are killed; gives how many were, and what is wrong ("": nothing).

    One kill in four is at any time after a start; the others are when the fit goes on, which is a small part of it.
    """
    from processes import free_port, launched

    folder.mkdir()
    if kills:
        (folder / "killed").touch()
    options: tuple[object, ...] = ("--max-restarts", RESTARTS, "--monitor-interval", 0.1)
    if nodes > 1:
        meeting = f"127.0.0.1:{free_port()}"
        options += ("--nnodes", nodes, "--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "--rdzv-id", folder.name)
        options += ("--local-addr", "127.0.0.1")
    jobs = [launched(Path(__file__), world // nodes, "--train", folder, options=options) for _ in range(nodes)]
    begun, done, since = time.time(), 0, 0.0
    in_fit, part = draw.random() < 0.75, draw.random()
    while any(job.poll() is None for job in jobs):
        now = time.time()
        since = since or newest(folder)
        first = since if in_fit else begun
        if done < kills and first >= begun and now - first > part * (took.fit_s if in_fit else took.start_s):
            # A machine whose processes are done is gone, and its rendezvous closed: another's has nobody to meet then.
            over = nodes > 1 and (folder / "found.json").exists()
            if not over and killed(folder, draw.randrange(world)):
                places[place(folder)] += 1
                done += 1
                begun, since = time.time(), 0.0
                in_fit, part = draw.random() < 0.75, draw.random()
        elif since < begun:
            since = 0.0  # of before the kill
        if now - begun > TOO_LONG_S:
            for job in jobs:
                job.send_signal(signal.SIGTERM)
            return done, "it hangs"
        time.sleep(0.01)
    told = [(job.args, *job.communicate()) for job in jobs]
    if not kills:
        written = sorted(file.stat().st_mtime for file in (folder / "run").glob("*.safetensors"))
        began = (folder / "pid.0").stat().st_mtime
        took.fit_s, took.start_s = max(1.0, written[-1] - written[0]), max(1.0, written[0] - began)
    for job, (_, out, err) in zip(jobs, told, strict=True):
        if job.returncode:
            return done, f"it ended with {job.returncode}:\n{out[-2000:]}{err[-20000:]}"
    return done, "" if (folder / "found.json").exists() else "it left no weights"


def main() -> int:
    """Carries out as many kills as were asked for; gives 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many, at least (20)")
    parser.add_argument("--world", type=int, default=2, help="how many processes a job has (2)")
    parser.add_argument(
        "--nodes", type=int, default=1, help="how many torchruns a job has, as if on so many machines (1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which processes are killed (0)")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train(args.train)
        return 0
    draw, places = random.Random(args.seed), collections.Counter[str]()
    kills = jobs = bad = 0
    with tempfile.TemporaryDirectory() as root:
        took = Times()
        _, wrong = one_job(Path(root, "whole"), args.world, args.nodes, 0, draw, took, places)
        if wrong:
            print(f"the undisturbed job failed: {wrong}")
            return 1
        expected = json.loads(Path(root, "whole", "found.json").read_text())
        while kills < args.kills and not bad:
            folder, jobs = Path(root, f"{jobs}"), jobs + 1
            done, wrong = one_job(folder, args.world, args.nodes, min(RESTARTS, args.kills - kills), draw, took, places)
            kills += done
            if not wrong:
                found = json.loads((folder / "found.json").read_text())
                wrong = ", ".join(f"another {name}" for name in expected if found[name] != expected[name])
            if not wrong and jobs > 5 and not kills:
                wrong = "no kill came in time"
            if wrong:
                bad += 1
                print(f"job {jobs}, of {args.world} processes: {wrong}")
    print(f"{kills} kills in {jobs} jobs of {args.world} processes, {bad} of them not as undisturbed; {dict(places)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())

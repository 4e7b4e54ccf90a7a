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
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESTARTS = 3
TOO_LONG_S = 600.0


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
        learn.fit_one_cycle(4, 0.01, checkpoint=Checkpoint("run", every_batches=3))
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
            ["ps", "-o", "command=", "-p", f"{process}"], capture_output=True, text=True, check=False
        )
        if str(folder) in command.stdout:
            os.kill(process, signal.SIGKILL)
            return True
    return False


def one_job(folder: Path, world: int, kills: int, draw: random.Random, took_s: float, places: Any) -> tuple[int, str]:
    """A job of which `kills` processes are killed; gives how many were, and what is wrong ("": nothing)."""
    from processes import launched

    folder.mkdir()
    options = ("--max-restarts", RESTARTS, "--monitor-interval", 0.1)
    job = launched(Path(__file__), world, "--train", folder, options=options)
    begun, done, waits_s = time.monotonic(), 0, draw.uniform(0, took_s)
    out = err = ""
    while job.poll() is None:
        if time.monotonic() - begun > waits_s and done < kills:
            if killed(folder, draw.randrange(world)):
                places[place(folder)] += 1
                done += 1
            begun, waits_s = time.monotonic(), draw.uniform(0, took_s)
        if time.monotonic() - begun > TOO_LONG_S:
            job.send_signal(signal.SIGTERM)
            return done, "it hangs"
        time.sleep(0.01)
    out, err = job.communicate()
    if job.returncode:
        return done, f"it ended with {job.returncode}:\n{out[-2000:]}{err[-20000:]}"
    return done, "" if (folder / "found.json").exists() else "it left no weights"


def main() -> int:
    """Carries out as many kills as were asked for; gives 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many, at least (20)")
    parser.add_argument("--world", type=int, default=2, help="how many processes a job has (2)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which processes are killed (0)")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train(args.train)
        return 0
    draw, places = random.Random(args.seed), collections.Counter[str]()
    kills = jobs = bad = 0
    with tempfile.TemporaryDirectory() as root:
        started = time.monotonic()
        _, wrong = one_job(Path(root, "whole"), args.world, 0, draw, 0, places)
        took_s = time.monotonic() - started
        if wrong:
            print(f"the undisturbed job failed: {wrong}")
            return 1
        expected = json.loads(Path(root, "whole", "found.json").read_text())
        while kills < args.kills and not bad:
            folder, jobs = Path(root, f"{jobs}"), jobs + 1
            done, wrong = one_job(folder, args.world, min(RESTARTS, args.kills - kills), draw, took_s, places)
            kills += done
            if not wrong:
                found = json.loads((folder / "found.json").read_text())
                wrong = ", ".join(f"another {name}" for name in expected if found[name] != expected[name])
            if wrong:
                bad += 1
                print(f"job {jobs}, of {args.world} processes: {wrong}")
    print(f"{kills} kills in {jobs} jobs of {args.world} processes, {bad} of them not as undisturbed; {dict(places)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())

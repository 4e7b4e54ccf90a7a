"""Sends SIGTERM and Ctrl-C to fits at random moments: `python tests/faults/signals.py --signals 100`.

Each must end with the exit code of its signal (143; Ctrl-C's: by SIGINT itself, 130 for a shell), with a checkpoint of
the batch that was under way, and no later one begun; in validation, of its beginning. The run begun again must end as
one that nobody stopped. Prints the figures, and exits with 1 where anything is otherwise.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kill_resume import TOO_LONG_S, WAYS, Way, ended, in_fork, learner, outcome, strays, warm_up

from minilearn.callback import Callback
from minilearn.callbacks import Checkpoint
from minilearn.checkpoints import CheckpointFolder

EPOCHS = 3
LENGTHENED_S = 0.01
"""How long a batch is made to take, so that most signals come within one."""
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: -signal.SIGINT}
"""Python ends itself by SIGINT where nobody catches KeyboardInterrupt; a shell calls that 130."""


class Diary(Callback):
    """Writes down each batch as it begins and ends, at once, so that it is there whatever ends the process."""

    order = -1000

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def before_train(self) -> None:
        self._write("train")

    def before_validate(self) -> None:
        self._write("validate")

    def before_batch(self) -> None:
        self._write("begin")
        time.sleep(LENGTHENED_S)

    def after_batch(self) -> None:
        self._write("end")

    def _write(self, what: str) -> None:
        learn = self.learn
        batch = learn.iter if what in ("begin", "end") else -1
        os.write(self._file, f"{time.monotonic()} {what} {int(learn.training)} {learn.epoch} {batch}\n".encode())


def train(way: Way, folder: Path, diary: Path, into: Path) -> None:
    """A fit that is told to stop, or comes to its end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background would ignore it
    folder.mkdir(exist_ok=True)
    learn = learner(way, folder)
    learn.add_cb(Diary(diary))
    fit = partial(learn.fit_one_cycle, EPOCHS) if way.with_ == "one cycle" else partial(learn.fit, EPOCHS)
    fit(checkpoint=Checkpoint("run", every_epoch=False))
    into.write_text(json.dumps(outcome(learn)))


def told(way: Way, number: int, draw: random.Random, root: Path, whole_s: float, expected: Any) -> list[str] | None:
    """One signal at one moment; what was wrong with how the fit took it, None where the fit was over before.

    The first of what it gives is the part of the epoch in which it came.
    """
    folder, diary, into = root / "run", root / "diary", root / "found.json"
    process = in_fork(partial(train, way, folder, diary, into))
    while not diary.exists() and ended_early(process) is None:
        time.sleep(0.002)
    time.sleep(draw.uniform(0, whole_s))
    sent_at = time.monotonic()
    os.kill(process, number)
    code = ended(process, TOO_LONG_S)
    took_s = time.monotonic() - sent_at
    if into.exists():
        return None
    lines = [line.split() for line in diary.read_text().splitlines()]
    begun = [line for line in lines if line[1] == "begin"]
    if not begun:
        return None  # it came before the first batch: as if nobody listened
    found = CheckpointFolder(folder / "run", 2).newest()
    if found is not None and found[1]["finished"] and code == -number:
        return None  # it came after the fit, which has written its end and listens no more: the script's next line
    wrong = ["training" if begun[-1][2] == "1" else "validation"]
    if code != EXIT_CODES[signal.Signals(number)]:
        wrong.append(f"exit code {code}")
    later = [line for line in begun if float(line[0]) > sent_at]
    if len(later) > 1:
        wrong.append(f"{len(later)} batches begun after the signal")
    if found is None:
        return [*wrong, "no checkpoint"]
    state = found[1]
    _, _, training, epoch, batch = begun[-1]
    place = state["epoch"], state["batch"]
    places = [(int(epoch), int(batch) + 1)] if training == "1" else [(int(epoch), None), (int(epoch) + 1, 0)]
    if place not in places and not state["finished"]:
        wrong.append(f"a checkpoint of {place}, not of {places[0]}")
    if took_s > 10:
        wrong.append(f"it took {took_s:.1f} s")
    if ended(in_fork(partial(train, way, folder, diary, into)), TOO_LONG_S) != 0:
        return [*wrong, "it could not go on"]
    another = json.loads(into.read_text())
    if differing := [name for name in expected if expected[name] != another[name]]:
        wrong.append(f"another {', '.join(differing)} than without interruption")
    if others := sorted(strays(folder)):
        wrong.append(f"left behind {', '.join(others)}")
    return wrong


def ended_early(process: int) -> int | None:
    """Whether a process is no more, without taking its exit code away."""
    found = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return None if found is None else found.si_status


def main(argv: list[str] | None = None) -> int:
    """Sends as many signals as were asked for; gives 1 where one was taken otherwise than it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", type=int, default=100, help="how many (100), by turns SIGTERM and Ctrl-C")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which they are sent (0)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    draw, sent, bad, in_validation = random.Random(args.seed), 0, 0, 0
    warm_up()
    while sent < args.signals:
        way = draw.choice(WAYS)
        root = Path(tempfile.mkdtemp(prefix="signals."))
        try:
            started = time.monotonic()
            work = partial(train, way, root / "whole", root / "whole.diary", root / "whole.json")
            if ended(in_fork(work), TOO_LONG_S) != 0:
                raise RuntimeError(f"{way}: the run without interruption failed")
            whole_s, expected = time.monotonic() - started, json.loads((root / "whole.json").read_text())
            for _ in range(min(4, args.signals - sent)):
                place = Path(tempfile.mkdtemp(dir=root))
                number = (signal.SIGTERM, signal.SIGINT)[sent % 2]
                wrong = told(way, number, draw, place, whole_s, expected)
                if wrong is None:
                    continue
                part, *errors = wrong
                sent, in_validation = sent + 1, in_validation + (part == "validation")
                if errors:
                    bad += 1
                    print(f"{way}: {signal.Signals(number).name} in {part}: {'; '.join(errors)}")
        finally:
            shutil.rmtree(root, ignore_errors=True)
    print(f"{sent - bad} of {sent} signals taken as they should be ({in_validation} of them in validation)")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

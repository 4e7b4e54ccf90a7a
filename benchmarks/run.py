"""All benchmarks, each beside its bar: `python benchmarks/run.py`, or `make bench`.

Both sides of a case run in one process on one thread, in turns, and end with the same weights and figures, or the case
fails; memory, imports and other frameworks take turns as processes. A ratio is ours / the other's: the median over the
rounds, with the quartiles. Writes a table and exits with 1 where a bar is missed or a case fails.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import ddp_overhead
import growth
import images
import linear
import machine
import memory
import models
import optimizers
import peers
import predictions
import table
import torch
from harness import HERE, Case, Setting

CASES: list[Case] = [
    *linear.CASES,
    *peers.CASES,
    *models.CASES,
    *images.CASES,
    *memory.CASES,
    *growth.CASES,
    *predictions.CASES,
    *optimizers.CASES,
    *ddp_overhead.CASES,
]


def chosen(cases: Sequence[Case], only: str, quick: bool, also: str) -> list[Case]:
    """The cases whose name holds `only`; in a quick run, of the slow ones just those whose name holds `also`."""
    return [
        case
        for case in cases
        if only.lower() in case.name.lower()
        and (not quick or not case.slow or (also and also.lower() in case.name.lower()))
    ]


def main(argv: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    """Measures, prints, writes the table; gives 1 where a bar was missed or a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, without the slow cases")
    parser.add_argument("--also", default="", help="in a quick run, these slow cases too: whose name holds this text")
    parser.add_argument("--only", default="", help="only cases whose name holds this text")
    parser.add_argument("--out", type=Path, help="where to write the table (by default results.md, after a full run)")
    parser.add_argument("--list", action="store_true", help="only name the cases, with their bars")
    args = parser.parse_args(argv)
    found = chosen(cases, args.only, args.quick, args.also)
    if args.list:
        for case in found:
            bar = "told" if case.bar is None else f"≤ {case.bar:g} {case.unit}"
            print(f"{case.name}: {case.compares}; {case.ours} / {case.theirs}, {bar}{', slow' if case.slow else ''}")
        return 0
    if not found:
        parser.error(f"no case's name holds {args.only!r}; --list names them")
    torch.set_num_threads(1)
    started = time.perf_counter()
    rows, skipped, good = table.carried_out(found, Setting(args.quick))
    out = args.out or (None if args.only or args.quick else HERE / "results.md")
    if out is not None:
        options = [*(["--quick"] if args.quick else []), *(["--also", f'"{args.also}"'] if args.also else [])]
        command = " ".join(["python benchmarks/run.py", *options])
        seconds, here = time.perf_counter() - started, machine.described(peers.PACKAGES)
        out.write_text(table.text("Benchmarks", command, seconds, here, rows, skipped), encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

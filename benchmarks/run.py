"""All benchmarks, each beside its bar: `python benchmarks/run.py`, or `make bench`.

Both sides of a case run in one process on one thread, in turns, and end with the same weights and figures, or the case
fails; memory, imports and other frameworks take turns as processes. A ratio is ours / the other's: the median over the
rounds, with the quartiles. Writes a table and exits with 1 where a bar is missed or a case fails.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import growth
import images
import linear
import machine
import memory
import models
import optimizers
import peers
import torch
from harness import HERE, Case, Measured, Setting, Skip

CASES: list[Case] = [
    *linear.CASES,
    *peers.CASES,
    *models.CASES,
    *images.CASES,
    *memory.CASES,
    *growth.CASES,
    *optimizers.CASES,
]

HEADER = """# Benchmarks

Written by `{command}` in {minutes:.1f} minutes; do not edit.
A figure marked × is a ratio, ours / the other's: the median over the rounds, with the quartiles in brackets; below 1 we
are faster. [Performance](../docs/performance.md) says how to read it.

{machine}

| case | what is compared | ours | the other | figure | bar | |
| --- | --- | --- | --- | --- | --- | --- |
"""


def chosen(cases: Sequence[Case], only: str, quick: bool, also: str) -> list[Case]:
    """The cases whose name holds `only`; in a quick run, of the slow ones just those whose name holds `also`."""
    return [
        case
        for case in cases
        if only.lower() in case.name.lower()
        and (not quick or not case.slow or (also and also.lower() in case.name.lower()))
    ]


def figure_text(case: Case, value: float) -> str:
    """A figure with its unit: three decimals for a ratio and for seconds, one for MB and µs."""
    return f"{value:.1f} {case.unit}" if case.unit == "MB" else f"{value:.3f} {case.unit}"


def row(case: Case, measured: Measured, verdict: str) -> str:
    """A case's line of the table."""
    figure, low, high = (figure_text(case, value) for value in (measured.figure, measured.low, measured.high))
    unit = f" {case.unit}"
    spread = f"{figure} ({low.removesuffix(unit)}–{high.removesuffix(unit)})"
    bar = "" if case.bar is None else f"≤ {case.bar:g} {case.unit}"
    ours = f"{case.ours}: {measured.ours}" if measured.ours else case.ours
    theirs = f"{case.theirs}: {measured.theirs}" if measured.theirs else case.theirs
    compares = f"{case.compares} ({measured.note})" if measured.note else case.compares
    return f"| {case.name} | {compares} | {ours} | {theirs} | {spread} | {bar} | {verdict} |"


def carried_out(cases: Sequence[Case], setting: Setting) -> tuple[list[str], list[str], bool]:
    """The table's lines, a line for each case that was skipped, and whether every bar was kept."""
    rows, skipped, good = [], [], True
    for case in cases:
        print(f"{case.name:34s} ", end="", flush=True)
        started = time.perf_counter()
        try:
            measured = case.measure(setting)
        except Skip as why:
            print(f"skipped: {why}", flush=True)
            skipped.append(f"- {case.name}: {why}")
            continue
        except Exception as error:
            print(f"FAILED: {error!r}", flush=True)
            traceback.print_exc()
            skipped.append(f"- {case.name}: **failed**, {type(error).__name__}")
            good = False
            continue
        kept = case.good(measured)
        good = good and kept
        verdict = "" if case.bar is None else "ok" if kept else "**missed**"
        rows.append(row(case, measured, verdict))
        bar = "" if case.bar is None else f"≤ {case.bar:<6g}"
        spread = f"({measured.low:.3f}–{measured.high:.3f})"
        sides = f"{measured.ours} / {measured.theirs}" if measured.theirs else measured.ours
        took = f"{time.perf_counter() - started:.0f} s"
        figure = figure_text(case, measured.figure)
        print(f"{figure:>10s} {spread:17s} {bar:9s} {verdict.strip('*'):6s} {sides}  [{took}]", flush=True)
    return rows, skipped, good


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
    rows, skipped, good = carried_out(found, Setting(args.quick))
    out = args.out or (None if args.only or args.quick else HERE / "results.md")
    if out is not None:
        options = [*(["--quick"] if args.quick else []), *(["--also", f'"{args.also}"'] if args.also else [])]
        command = " ".join(["python benchmarks/run.py", *options])
        minutes = (time.perf_counter() - started) / 60
        header = HEADER.format(command=command, minutes=minutes, machine="\n".join(machine.described(peers.PACKAGES)))
        tail = "\nNot measured:\n\n" + "\n".join(skipped) + "\n" if skipped else ""
        out.write_text(header + "\n".join(rows) + "\n" + tail, encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

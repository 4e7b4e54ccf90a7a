"""The table of a run: the cases one after the other, a line for each, and what stands above and below them."""

import sys
import time
import traceback
from collections.abc import Sequence

from harness import Case, Measured, Setting, Skip

TABLE = """# {title}

Written by `{command}` in {minutes:.1f} minutes; do not edit.
A figure marked × is a ratio, ours / the other's: the median over the rounds, with the quartiles in brackets; below 1 we
are faster. [Performance](../docs/performance.md) says how to read it.

{machine}

| case | what is compared | ours | the other | figure | bar | |
| --- | --- | --- | --- | --- | --- | --- |
{rows}
"""


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
        if compiler := sys.modules.get("torch._dynamo"):
            compiler.reset()  # it remembers sizes by a function's name, so that one case's would slow the next one's
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


def text(
    title: str, command: str, seconds: float, machine: Sequence[str], rows: Sequence[str], skipped: Sequence[str]
) -> str:
    """The file: the table, with the command and the machine above it, and below it what was not measured."""
    parts = {"title": title, "command": command, "machine": "\n".join(machine), "rows": "\n".join(rows)}
    tail = "\nNot measured:\n\n" + "\n".join(skipped) + "\n" if skipped else ""
    return TABLE.format(minutes=seconds / 60, **parts) + tail

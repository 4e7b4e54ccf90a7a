"""What a step of each optimizer costs beside torch's fastest form of it: `python benchmarks/optimizers.py`.

Two sets of parameters: those of ResNet-18 (62 tensors, 11.7 million numbers) and 200 tensors of 64×64. All forms of a
rule take turns in one process on one thread, each round beginning with another, and are compared by their median time:
minilearn's, and torch's default, foreach and fused forms where they exist. For rules that torch lacks the other side is
minilearn's Adam. Where torch has no fused kernel, minilearn's form with compile=True is a row of its own. Exits with 1
where a bar is missed.
"""

import argparse
import functools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from harness import Case, Measured, Setting, compared
from torch import Tensor

from minilearn import optim as ours

Make = Callable[[list[Tensor]], torch.optim.Optimizer]


def resnet18() -> list[tuple[int, ...]]:
    """The shapes of ResNet-18's parameters, for 1,000 classes."""

    def block(cin: int, cout: int) -> Iterator[tuple[int, ...]]:
        for kernel in ((cout, cin, 3, 3), (cout, cout, 3, 3)):
            yield from (kernel, (cout,), (cout,))
        if cin != cout:
            yield from ((cout, cin, 1, 1), (cout,), (cout,))

    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    for cin, cout in ((64, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)):
        shapes += block(cin, cout)
    return [*shapes, (1000, 512), (1000,)]


SETS = {"ResNet-18": resnet18(), "200 of 64×64": [(64, 64)] * 200}
FORMS = {"default": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def torchs(cls: type[torch.optim.Optimizer], forms: str, **options: object) -> dict[str, Make]:
    """torch's forms of a rule, by their names."""
    return {
        name: lambda p, form=FORMS[name]: cls(p, lr=1e-3, **options, **form)  # type: ignore[misc, call-arg]
        for name in forms.split()
    }


T = torch.optim
OURS_ADAM: dict[str, Make] = {"our Adam": lambda p: ours.Adam(p, 1e-3)}
ALL, UNFUSED = "default foreach fused", "default foreach"
RULES: dict[str, tuple[Make, dict[str, Make], float]] = {
    "SGD": (lambda p: ours.SGD(p, 1e-3), torchs(T.SGD, ALL), 1.10),
    "SGD momentum": (lambda p: ours.SGD(p, 1e-3, mom=0.9), torchs(T.SGD, ALL, momentum=0.9), 1.10),
    "Adam (L2)": (
        lambda p: ours.Adam(p, 1e-3, decouple_wd=False),
        torchs(T.Adam, ALL, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.01),
        1.10,
    ),
    "AdamW": (
        lambda p: ours.Adam(p, 1e-3),
        torchs(T.AdamW, ALL, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.01),
        1.10,
    ),
    "Adagrad": (lambda p: ours.Adagrad(p, 1e-3), torchs(T.Adagrad, ALL), 1.10),
    "RMSProp": (lambda p: ours.RMSProp(p, 1e-3), torchs(T.RMSprop, UNFUSED), 0.90),
    "Adadelta": (lambda p: ours.Adadelta(p, 1e-3), torchs(T.Adadelta, UNFUSED), 0.90),
    "RAdam": (lambda p: ours.RAdam(p, 1e-3), torchs(T.RAdam, UNFUSED), 0.90),
    "NAdam": (lambda p: ours.NAdam(p, 1e-3), torchs(T.NAdam, UNFUSED), 0.90),
    "Lion": (lambda p: ours.Lion(p, 1e-3), OURS_ADAM, 1.50),
    "Lamb": (lambda p: ours.Lamb(p, 1e-3), OURS_ADAM, 1.50),
    "QHAdam": (lambda p: ours.QHAdam(p, 1e-3), OURS_ADAM, 1.50),
    "RMSProp, compile": (lambda p: ours.RMSProp(p, 1e-3, compile=True), torchs(T.RMSprop, UNFUSED), 0.50),
    "Adadelta, compile": (lambda p: ours.Adadelta(p, 1e-3, compile=True), torchs(T.Adadelta, UNFUSED), 0.50),
    "RAdam, compile": (lambda p: ours.RAdam(p, 1e-3, compile=True), torchs(T.RAdam, UNFUSED), 0.50),
    "NAdam, compile": (lambda p: ours.NAdam(p, 1e-3, compile=True), torchs(T.NAdam, UNFUSED), 0.50),
    "Lion, compile": (lambda p: ours.Lion(p, 1e-3, compile=True), OURS_ADAM, 1.50),
    "Lamb, compile": (lambda p: ours.Lamb(p, 1e-3, compile=True), OURS_ADAM, 1.50),
    "QHAdam, compile": (lambda p: ours.QHAdam(p, 1e-3, compile=True), OURS_ADAM, 1.50),
}


def parameters(shapes: list[tuple[int, ...]], sets: int) -> list[list[Tensor]]:
    """Several sets of parameters with gradients, made in turns: none is to have the better places in memory."""
    made: list[list[Tensor]] = [[] for _ in range(sets)]
    for shape in shapes:
        for params in made:
            params.append(torch.randn(shape).mul_(0.01).requires_grad_())
            params[-1].grad = torch.randn(shape)
    return made


def times_of(makers: dict[str, Make], shapes: list[tuple[int, ...]], rounds: int) -> dict[str, list[float]]:
    """The times of a step of each, in seconds, round by round; they take turns."""
    sets = parameters(shapes, len(makers))
    opts = {name: make(params) for (name, make), params in zip(makers.items(), sets, strict=True)}
    seconds: dict[str, list[float]] = {name: [] for name in opts}
    names = list(opts)
    for i in range(rounds + 3):  # the first rounds make the state and warm up
        for name in names[i % len(names) :] + names[: i % len(names)]:
            opt = opts[name]
            started = time.perf_counter()
            opt.step()
            if i >= 3:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def beside_fastest(rule: str, set_name: str, setting: Setting) -> Measured:
    """Our form of a rule beside the fastest other one."""
    mine, others, _ = RULES[rule]
    times = times_of({"minilearn": mine, **others}, SETS[set_name], setting.of(31, 7))
    best = min(others, key=lambda form: statistics.median(times[form]))
    return compared(times["minilearn"], times[best], note=f"the fastest: {best}")


CASES = [
    Case(
        f"{rule}, {set_name}", "minilearn.optim", "the fastest other form", "a step of an optimizer",
        functools.partial(beside_fastest, rule, set_name), bar, slow=(rule, set_name) != ("AdamW", "ResNet-18"),
    )
    for set_name in SETS
    for rule, (_, _, bar) in RULES.items()
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31, help="steps of each form (default 31)")
    parser.add_argument("--only", default="", help="only rules whose name holds this text")
    args = parser.parse_args()
    torch.set_num_threads(1)
    missed = 0
    for set_name, shapes in SETS.items():
        print(f"{set_name}: {len(shapes)} tensors, {sum(map(math.prod, shapes)):,} numbers")
        for name, (mine, others, bar) in RULES.items():
            if args.only.lower() not in name.lower():
                continue
            rounds = times_of({"minilearn": mine, **others}, shapes, args.rounds)
            times = {form: statistics.median(seconds) for form, seconds in rounds.items()}
            best = min(others, key=lambda form: times[form])
            ratio = times["minilearn"] / times[best]
            missed += ratio > bar
            figures = ", ".join(f"{form} {1e3 * seconds:.2f} ms" for form, seconds in times.items())
            verdict = "ok" if ratio <= bar else "MISSED"
            print(f"  {name:17s} {ratio:5.2f} of {best:9s} ≤ {bar:.2f}  {verdict:6s} {figures}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

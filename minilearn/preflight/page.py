"""The page that `learn.check()` prints."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from textwrap import wrap

from minilearn.preflight.finding import ITEMS, Finding

WIDTH = 110
"""The characters of a line at most, where it can be broken."""


@dataclass(frozen=True)
class Check:
    """What a look at a Learner has found; its text is a page."""

    findings: list[Finding]
    """What is wrong, or may be."""
    shapes: list[str] = field(repr=False)
    """The shapes through the model: a line for each layer that was called."""
    compared: list[str] = field(repr=False)
    """What the loss compares with what."""
    seen: dict[str, str] = field(repr=False)
    """By the names of `ITEMS`, the values that were seen; what is not there could not be looked at."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def errors(self) -> list[Finding]:
        """What is surely wrong."""
        return [one for one in self.findings if one.sure]

    @property
    def warnings(self) -> list[Finding]:
        """What may be meant."""
        return [one for one in self.findings if not one.sure]

    def __str__(self) -> str:
        lines = ["the model", *(f"  {line}" for line in self.shapes), "the loss"]
        lines += [f"  {line}" for line in self.compared]
        lines.append("looked at")
        wide = max(map(len, ITEMS))
        for kind, right in (ITEMS | {one.kind: "" for one in self.findings if one.kind not in ITEMS}).items():
            found = [one for one in self.findings if one.kind == kind]
            if found:
                for one in found:
                    lines += _wrapped("ERROR  " if one.sure else "warning", f"{kind:{wide}}", str(one))
            elif kind in self.seen:
                lines += _wrapped("ok     ", f"{kind:{wide}}", self.seen[kind] or right)
            else:
                lines.append(f"  –        {kind:{wide}}  not looked at")
        n_errors, n_warnings = len(self.errors), len(self.warnings)
        told = [f"{n} {what}{'s' if n > 1 else ''}" for n, what in ((n_errors, "error"), (n_warnings, "warning")) if n]
        return "\n".join([*lines, ", ".join(told) if told else "nothing was found to be wrong"])


def _wrapped(mark: str, kind: str, text: str) -> Iterator[str]:
    start = f"  {mark}  {kind}  "
    for i, line in enumerate(wrap(text, WIDTH - len(start), break_long_words=False, break_on_hyphens=False) or [""]):
        yield (" " * len(start) if i else start) + line

"""The pages of the documentation as the tests read them: their fenced blocks, carried out and compared."""

import ast
import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    [*ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md"]
    + [page for page in ROOT.glob("docs/**/*.md") if not any(part.startswith("_") for part in page.parts)]
)

RELATIVE, ABSOLUTE = 0.01, 0.005  # how far a figure with a decimal point may be from the one that is shown
TIME = re.compile(r"\d+:\d\d(:\d\d)?|[\d.,]+(?= ?(s|ms|µs|seconds?)\b)")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?(?![\w])")
MARK = re.compile(r"# (raises|warns) (\w+)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the page's line on which the text begins, and what it is to its page."""

    language: str
    text: str
    line: int
    is_output: bool  # nothing but empty lines between it and the python block before it

    @property
    def needs(self) -> list[str]:
        """The packages without which it is left out: its first line names them."""
        found = re.match(r"# needs: (.+)", self.text)
        return re.split(r", *", found[1]) if found else []

    @property
    def missing(self) -> list[str]:
        """Those of `needs` that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def split(page: str) -> tuple[list[Block], list[str]]:
    """A page's fenced blocks, and its lines with theirs left empty."""
    blocks: list[Block] = []
    prose: list[str] = []
    lines = iter(enumerate(page.splitlines(), 1))
    since_block = ["the page's beginning"]
    for number, line in lines:
        opened = re.match(r"( *)(`{3,}|~{3,})(.*)", line)
        if not opened:
            prose.append(line)
            since_block.append(line)
            continue
        indent, fence, language = opened.groups()
        text: list[str] = []
        for _, inner in lines:
            if re.fullmatch(rf" *{fence}{fence[0]}* *", inner):
                break
            text.append(inner.removeprefix(indent))
        else:
            raise AssertionError(f"line {number}: this block has no end")
        after_python = bool(blocks) and blocks[-1].language == "python" and not "".join(since_block).strip()
        content = "".join(part + "\n" for part in text)
        blocks.append(Block(language.strip(), content, number + 1, language.strip() == "text" and after_python))
        prose += [""] * (len(text) + 2)
        since_block = []
    return blocks, prose


def run(page: Path) -> ModuleType:
    """The page's python blocks in their order, as one program; what one prints is compared with the block after it."""
    blocks, _ = split(page.read_text())
    program = ModuleType("__main__")
    main, sys.modules["__main__"] = sys.modules["__main__"], program
    try:
        for block, after in pairwise([*blocks, None]):
            if block is None or block.language != "python":
                continue
            if block.missing:
                ast.parse(block.text)
                continue
            printed = carry_out(block, page, program)
            if after is not None and after.is_output:
                wrong = difference(printed, after.text)
                assert wrong is None, f"{page.name}, line {after.line}: {wrong}\n\nprinted in full:\n{printed}"
    finally:
        sys.modules["__main__"] = main
    return program


def run_apart(page: Path, folder: Path) -> None:
    """`run` in a process of its own: other frameworks set what holds for a whole process.

    They seed all generators, take over signals and loggers, and read the environment while they are imported.
    """
    apart(folder, __file__, str(page))


def apart(folder: Path, *command: str) -> str:
    """What a Python program prints that is run in `folder`, where Keras keeps its settings, too."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "KERAS_HOME": str(folder)}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def warnings_of_others_aside() -> None:
    """Warnings are errors, but for those that other packages mean for each other, and advice that depends on the cores."""
    warnings.simplefilter("error")
    # Lightning 2.6.6 calls what torch 2.13 gives up, Keras 3.15.1 what numpy 2.4 does
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    warnings.filterwarnings("error", module=r"(__main__|minilearn\b)")
    # Lightning advises so where there are three cores or more
    warnings.filterwarnings("ignore", r"The '\w+' does not have many workers")


def carry_out(block: Block, page: Path, program: ModuleType) -> str:
    """What a python block prints; where a comment says that it raises or warns, that too."""
    where = f"{page.name}, line {block.line}"
    tree = ast.parse(block.text)
    source = "\n" * (block.line - 1) + block.text  # so that a traceback names the page's own line, and shows it
    marks = dict(MARK.findall(block.text))
    out = io.StringIO()
    with warnings.catch_warnings(record=True) if "warns" in marks else contextlib.nullcontext([]) as warned:
        if "warns" in marks:
            warnings.simplefilter("always")
        try:
            with contextlib.redirect_stdout(out):
                exec(compile(source, page, "exec"), vars(program))
        except Exception as error:
            if type(error).__name__ != marks.get("raises"):
                raise
            last = tree.body[-1]
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
            first_line, last_line = (block.line - 1 + (line or 0) for line in (last.lineno, last.end_lineno))
            assert first_line <= lines[0] <= last_line, f"{where}: not the last statement raised, but line {lines[0]}"
            out.write("".join(traceback.format_exception_only(error)))
        else:
            assert "raises" not in marks, f"{where}: no {marks['raises']} was raised"
    names = {warning.category.__name__ for warning in warned or []}
    assert names == {marks[key] for key in marks if key == "warns"}, f"{where}: warned of {names}"
    return out.getvalue() + "".join(f"{each.category.__name__}: {each.message}\n" for each in warned or [])


def difference(printed: str, shown: str) -> str | None:
    """Where what was printed is not what the page shows, or None; a line "…" or "..." stands for any lines."""
    parts: list[list[str]] = [[]]
    for line in shown.splitlines():
        if line.strip() in {"…", "..."}:
            parts.append([])
        else:
            parts[-1].append(line)
    rest = [line.rstrip() for line in printed.splitlines()]
    for i, part in enumerate(parts):
        starts = range(len(rest) - len(part) + 1) if i else range(1)
        if len(parts) > 1 and i == len(parts) - 1:  # the last part is the end
            starts = range(max(len(rest) - len(part), 0), len(rest) - len(part) + 1)
        found = next((start for start in starts if all(map(alike, rest[start:], part))), None)
        if found is None or len(rest) - found < len(part):
            got = next((line for line, want in zip(rest, part, strict=False) if not alike(line, want)), "nothing more")
            return f"{part!r} is shown, and {rest!r} was printed; the first that differs: {got!r}"
        rest = rest[found + len(part) :]
    return f"{rest!r} was printed too" if rest and len(parts) == 1 else None


def alike(line: str, shown: str) -> bool:
    """Whether two lines are the same but for times, spaces, and the last digits of figures with a decimal point."""
    line, shown = (TIME.sub("TIME", text) for text in (line, shown))
    if NUMBER.sub("#", line).split() != NUMBER.sub("#", shown).split():
        return False
    return all(near(*pair) for pair in zip(numbers(line), numbers(shown), strict=True))


def numbers(line: str) -> Iterator[str]:
    return (found[0].replace(",", "") for found in NUMBER.finditer(line))


def near(number: str, shown: str) -> bool:
    """Whole numbers must be equal, others within 1% and 0.005."""
    if shown.lstrip("+-").isdigit():
        return number == shown
    return abs(float(number) - float(shown)) <= ABSOLUTE + RELATIVE * abs(float(shown))


if __name__ == "__main__":
    from minilearn.operators import ready_for_torchvision

    warnings_of_others_aside()
    ready_for_torchvision()  # Lightning imports torchmetrics, which imports it
    run(Path(sys.argv[1]))

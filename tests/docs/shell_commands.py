"""Whether a command that a page shows would find what it names: make's targets, scripts, their options, extras."""

import configparser
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from doc_pages import ROOT

STEPS = re.compile(r"^([A-Z_]+=\S+|export|source|cd|git|nice)$")  # nothing in them that could be wrong about minilearn


def commands(text: str) -> list[list[str]]:
    """The words of each command of a shell block, comments and settings of the environment aside."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word in {"&&", ";", "|"}:
                found.append(without_settings(words))
                words = []
            else:
                words.append(word)
    return [words for words in found if words]


def without_settings(words: list[str]) -> list[str]:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


def complaint(words: list[str]) -> str | None:
    """What the command names that is not there, or None."""
    program, given = Path(words[0]).name, words[1:]
    if program == "make":
        dry = subprocess.run(["make", "--dry-run", *given], cwd=ROOT, capture_output=True, text=True, check=False)
        return None if dry.returncode == 0 else dry.stderr
    if program.startswith("python"):
        if given[:1] == ["-m"]:
            return complaint(given[1:]) if given[1] == "pip" else missing_module(given[1])
        return missing_in_script(given)
    if program == "pip":
        return missing_in_install(given)
    if program == "pytest":
        return next((f"no {name}" for name in given if name[0] != "-" and not (ROOT / name).exists()), None)
    beside = Path(sys.executable).parent
    if STEPS.match(program) or shutil.which(program) or shutil.which(program, path=beside):
        return None
    return f"no program {program}"


def missing_module(name: str) -> str | None:
    return None if importlib.util.find_spec(name) else f"no module {name}"


def missing_in_script(given: list[str]) -> str | None:
    script = ROOT / given[0]
    if not script.is_file():
        return f"no file {given[0]}"
    text = script.read_text()
    for name in re.findall(r"^from (\w+) import", text, re.MULTILINE):  # where the options of several are
        beside = script.parent / f"{name}.py"
        text += beside.read_text() if beside.exists() else ""
    options = [word.partition("=")[0] for word in given[1:] if word.startswith("-") and word != "--help"]
    return next((f"{given[0]} has no {option}" for option in options if f'"{option}"' not in text), None)


def missing_in_install(given: list[str]) -> str | None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    for before, word in zip(["", *given], given, strict=False):
        if before in {"-c", "-r", "--constraint"} and not (ROOT / word).is_file():
            return f"no file {word}"
        extras = re.fullmatch(r"(?:\.|minilearn)\[(.+)\]", word)
        absent = set(extras[1].split(",") if extras else []) - set(settings["options.extras_require"])
        if absent:
            return f"no extra {absent}"
    return None

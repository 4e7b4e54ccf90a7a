"""The gallery: each file of examples/ is run, as its reader runs it, and its page shows what it prints and draws.

What is run is a copy in docs/_build, whose docstring alone differs: it gets a title, for which an example that is read
by itself has no use. The pictures are those that the run saves; the gallery has no others.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sphinx.application import Sphinx

TITLES = {
    "gradient_descent": "Gradient descent by hand",
    "function_minimum": "The minimum of a function",
    "linear_regression": "Linear regression",
    "optimizers": "Optimizers, three times over",
    "sgd_from_scratch": "3 or 7, from scratch",
    "mnist_mlp": "Ten digits, a small network",
    "lenet": "LeNet-5",
    "custom_callbacks": "Five callbacks of your own",
    "numpy_autograd": "What backward() does",
    "mnist_sample": "3 or 7, in ten lines",
    "every_optimizer": "All optimizers on a curve",
    "mnist_optimizers": "All optimizers on MNIST",
}
"""In the order of the lessons; a file that is not here comes after them, under its own name."""

SHORT = {"mnist_optimizers": ["--only", "Adam"]}
"""How one is shortened that does not have the lessons' command line; mnist_sample is short as it is."""

HEADER = """
The lessons
===========

Each is one file, read from top to bottom: first the idea bare, in a few lines of Python, then the same thing in
minilearn, with the same numbers. The pictures and figures here are what the files printed and drew when this page was
built{how}. To run one, take a checkout and the line that its page begins with; ``--help`` says what it can be asked.
"""

IN_SHORT = """
.. note::
   This page was built with ``make docs-short``: the lesson ran with less data or fewer epochs, and its figures are not
   those of the text. ``make docs`` runs it in full.
"""


def copied(examples: Path, folder: Path, short: bool) -> None:
    """Writes the examples, with titles, and what they read into a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(examples, folder, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    how = ", in their short form" if short else ""
    (folder / "GALLERY_HEADER.rst").write_text(HEADER.format(how=how), encoding="utf-8")
    for path in folder.glob("*.py"):
        if path.stem != "command_line":
            path.write_text(titled(path, IN_SHORT if short else ""), encoding="utf-8")


def titled(path: Path, note: str) -> str:
    """An example with a title over its docstring, in reStructuredText; the code is as it was."""
    doc, code = re.fullmatch(r'"""(.*?)"""\n(.*)', path.read_text(encoding="utf-8"), re.DOTALL).groups()
    title = TITLES.get(path.stem, path.stem.replace("_", " ").capitalize())
    # An indented line is something to type.
    doc = re.sub(r"\n\n((?:    .*\n)+)", r"\n\n.. code-block:: sh\n\n\1", doc.replace("\\", "\\\\"))
    return f'r"""\n{title}\n{"=" * len(title)}\n\n{doc.strip()}\n{note}"""\n{code}'


class InOrder:
    """Sorts the gallery as `TITLES` does."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, name: str) -> tuple[int, str]:
        stem = Path(name).stem
        return (list(TITLES).index(stem) if stem in TITLES else len(TITLES)), stem


class Arguments:
    """What an example is called with; it saves its pictures where it stands, beside its copy."""

    def __init__(self, short: bool) -> None:
        self.short = short

    def __repr__(self) -> str:
        return f"Arguments(short={self.short})"

    def __call__(self, gallery_conf: dict[str, Any], script_vars: dict[str, Any]) -> list[str]:
        path = Path(script_vars["src_file"])
        if not self.short:
            return []
        return ["--short"] if "from command_line import" in path.read_text(encoding="utf-8") else SHORT.get(path.stem, [])


def saved_pictures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """The pictures that an example has saved, in the order in which it did."""
    from matplotlib import pyplot
    from sphinx_gallery.scrapers import figure_rst

    pyplot.close("all")
    folder = Path(block_vars["src_file"]).parent
    files: Iterator[str] = block_vars["image_path_iterator"]
    taken = []
    for picture in sorted(folder.glob("*.png"), key=lambda path: path.stat().st_mtime_ns):
        taken.append(next(files))
        shutil.move(picture, taken[-1])
    return figure_rst(taken, gallery_conf["src_dir"])


def as_before(gallery_conf: dict[str, Any], name: str) -> None:
    """One lesson's settings of torch do not reach the next."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(False)


THREADS = torch.get_num_threads()


def gallery_settings(docs: Path, short: bool) -> dict[str, Any]:
    """What sphinx-gallery is told; the copies are written first."""
    folder = docs / "_build" / "examples"
    copied(docs.parent / "examples", folder, short)
    return {
        "examples_dirs": str(folder),
        "gallery_dirs": "gallery",
        "filename_pattern": r"\.py$",
        "ignore_pattern": "command_line",
        "within_subsection_order": "lessons.InOrder",
        "image_scrapers": ("lessons.saved_pictures",),
        "reset_modules": ("matplotlib", "lessons.as_before"),
        "reset_argv": Arguments(short),
        "capture_repr": (),
        "notebook_extensions": [],
        "copyfile_regex": r".*\.csv",
        "download_all_examples": False,
        "show_signature": False,
        "show_memory": False,
        "write_computation_times": False,
        "backreferences_dir": None,
        "remove_config_comments": True,
        "thumbnail_size": (480, 320),
        "abort_on_example_error": False,
        "plot_gallery": "True",
    }


def trimmed(app: Sphinx, docname: str, content: list[str]) -> None:
    """Leaves out the download of an example's copy, which would not run alone, and says where the file is."""
    if not docname.startswith("gallery/") or docname.endswith("/index"):
        return
    name = docname.removeprefix("gallery/")
    text = re.sub(r"\.\. only:: html\n\n    \.\. note::.*?(?=\.\. rst-class:: sphx-glr-example-title)", "", content[0], flags=re.DOTALL)
    text = re.sub(r"\.\. _sphx_glr_download_.*", "", text, flags=re.DOTALL)
    content[0] = f"{text}\nThe file is ``examples/{name}.py``; :doc:`all lessons <index>`.\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", trimmed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

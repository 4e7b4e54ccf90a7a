"""The package's files as pages, each line with an anchor, so that the reference and the texts can point at a line."""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent.parent


def page_of(file: Path) -> str:
    """The page of a file in the repository: ``source/minilearn/loop``."""
    return f"source/{file.with_suffix('').as_posix()}"


def address_of(module: str, name: str) -> str | None:
    """Where an object is written, as seen from a page in ``reference/``; None for what Python cannot trace."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = inspect.getattr_static(found, part, None) if inspect.isclass(found) else getattr(found, part, None)
    found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
    try:
        found = inspect.unwrap(found)
        file = Path(inspect.getsourcefile(found) or "").relative_to(ROOT)
        file.relative_to("minilearn")  # not of a virtual environment in this folder
        line = inspect.getsourcelines(found)[1]
    except (TypeError, ValueError, OSError):
        return None
    return f"../{page_of(file)}.html#L-{line}"


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each file of the package, and of the lessons' shared command line."""
    for path in [*sorted((ROOT / "minilearn").rglob("*.py")), ROOT / "examples" / "command_line.py"]:
        file = path.relative_to(ROOT)
        code = highlight(
            path.read_text(encoding="utf-8"),
            PythonLexer(),
            HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True, wrapcode=True),
        )
        body = f'<h1>{file}</h1>\n<div class="source highlight-python notranslate">{code}</div>'
        yield page_of(file), {"title": str(file), "body": body, "toc": "", "display_toc": False}, "page.html"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

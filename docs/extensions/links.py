"""Links that lead out of docs/ on a code host lead to their page on the site; and no link leads nowhere."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sources import ROOT, page_of
from sphinx.application import Sphinx
from sphinx.util import logging

LOG = logging.getLogger(__name__)
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGES.md": "changes.md"}
PAGES["benchmarks/results.md"] = "results.md"


def rewritten(app: Sphinx, docname: str, content: list[str]) -> None:
    """Points a Markdown page's links to files of the repository at their pages."""
    path = app.env.doc2path(docname)
    if path.suffix != ".md":
        return
    up = "../" * docname.count("/")

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        if ":" in target or target.startswith("#"):
            return match[0]
        name, _, anchor = target.partition("#")
        absolute = Path(os.path.normpath(path.parent / name))
        if not absolute.is_relative_to(ROOT):
            return match[0]
        file = absolute.relative_to(ROOT)
        if str(file) in PAGES:
            return f"[{text}]({up}{PAGES[str(file)]}{'#' + anchor if anchor else ''})"
        if file == Path("examples"):
            return f"[{text}]({up}gallery/index.rst)"
        if file.parent == Path("examples") and file.suffix == ".py" and file.stem != "command_line":
            return f"[{text}]({up}gallery/{file.stem}.rst)"
        if file.suffix == ".py" and file.parts[0] in ("minilearn", "examples") and absolute.is_file():
            line = re.sub(r"^L(\d+).*", r"#L-\1", anchor)  # a code host's anchor of a line, or of several
            return f'<a class="reference internal" href="{up}{page_of(file)}.html{line}">{text}</a>'
        return match[0]

    parts = FENCED.split(content[0])
    content[0] = "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


class Anchors(HTMLParser):
    """What of a page can be pointed at, and where it points."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {given[key] or "" for key in ("id", "name") if given.get(key)}
        self.links += [given[key] or "" for key in ("href", "src") if given.get(key)]


def broken(site: Path) -> list[str]:
    """Each link of the site's pages that leads to no file or to no anchor; links to elsewhere are not looked at."""
    pages = {page: Anchors(page) for page in sorted(site.rglob("*.html"))}
    found = []
    for page, anchors in pages.items():
        for link in dict.fromkeys(anchors.links):
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = Path(os.path.normpath(page.parent / unquote(url.path))) if url.path else page
            if target.is_dir():
                target /= "index.html"
            anchor = unquote(url.fragment)
            there = target in pages or (not anchor and target.is_file())
            if not there or (anchor and anchor not in pages[target].ids):
                found.append(f"{page.relative_to(site)}: no {link}")
    return found


def checked(app: Sphinx, problem: Exception | None) -> None:
    """Warns of each broken link of the built site, which ``-W`` makes an error."""
    if problem is None and app.builder.format == "html":
        for line in broken(Path(app.outdir)):
            LOG.warning("broken link: %s", line)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", rewritten)
    app.connect("build-finished", checked)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

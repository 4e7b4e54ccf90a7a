"""Our docstrings as reStructuredText: sections that stand close, sources on one line, `names` in backticks."""

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.roles import XRefRole
from sphinx.util.nodes import make_refnode

SECTION = re.compile(r"(Args|Returns|Raises|Yields):$")
SOURCE = re.compile(r"Source: (.*)$")
PLURAL = re.compile(r"(?<![`\w])(`[^`]+`)(?=\w)")  # `Metric`s
BARS = re.compile(r"\|(\w+)\|")  # |p|, which would be a substitution


def spaced(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Puts an empty line before each section, and the source into a field, before napoleon reads them."""
    if what in ("attribute", "data", "property"):
        app.as_written = list(lines)  # type: ignore[attr-defined]
    out: list[str] = []
    in_source = False
    for given in lines:
        line = BARS.sub(r"\\|\1\\|", PLURAL.sub(r"\1\\ ", given))
        source = SOURCE.match(line)
        if source or SECTION.match(line) or (in_source and not line.strip()):
            in_source = False
            out.append("")
        if source:
            in_source = True
            out.append(f":Source: {source[1]}")  # a field beside napoleon's
        else:
            out.append(f"    {line}" if in_source else line)
    lines[:] = out


def unread(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Undoes what napoleon makes of an attribute: it takes a sentence up to a colon for its type."""
    if what in ("attribute", "data", "property"):
        lines[:] = app.as_written  # type: ignore[attr-defined]


class Named(XRefRole):
    """`name`: a link to the object of that name where the reference has it, else the name as code."""

    def __init__(self) -> None:
        super().__init__(innernodeclass=nodes.literal)

    def process_link(
        self, env: BuildEnvironment, refnode: nodes.Element, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        refnode["refdomain"], refnode["reftype"] = "py", "named"
        refnode["py:module"] = env.ref_context.get("py:module")
        refnode["py:class"] = env.ref_context.get("py:class")
        return title, target.removesuffix("()")


def resolved(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement) -> Any:
    """The link of a `name`, or what the name says; and that of a type in a signature, by the name it is known by."""
    if node.get("refdomain") != "py":
        return None
    target, last = node["reftarget"], node["reftarget"].rsplit(".", 1)[-1]
    if node["reftype"] != "named":
        # The parts of which a Learner is made are no pages of their own.
        last = "Learner" if target.endswith(("Loop", "ScheduledFits")) else last
        candidates = [f"minilearn.all.{last}"] if target.startswith("minilearn.") or "." not in target else []
    else:
        inside = [f"{node['py:class']}.{target}"] if node.get("py:class") else []
        candidates = [f"minilearn.all.{name}" for name in (*inside, target, f"Learner.{target}")] + [target]
    objects = env.domains["py"].objects
    for entry in (objects[name] for name in candidates if name in objects):
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content)
    return content if node["reftype"] == "named" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_role("named", Named())
    app.connect("autodoc-process-docstring", spaced, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-docstring", unread, priority=600)
    app.connect("missing-reference", resolved)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Our docstrings as reStructuredText: sections that stand close, sources on one line, `names` in backticks."""

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.roles import XRefRole

SECTION = re.compile(r"(Args|Returns|Raises|Yields):$")
SOURCE = re.compile(r"Source: (.*)$")
PLURAL = re.compile(r"(?<![`\w])(`[^`]+`)(?=\w)")  # `Metric`s
BARS = re.compile(r"\|(\w+)\|")  # |p|, which would be a substitution
FORMULA = re.compile(r"[^`]*(←|else:).*$")


def spaced(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Puts an empty line before each section, and the source into a section of its own, before napoleon reads them."""
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
            out += ["Source:", f"    {source[1]}"]
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


def resolved(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement) -> nodes.Element | None:
    """The link of a `name`, or what the name says."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains["py"]
    target = node["reftarget"]
    last = target.rsplit(".", 1)[-1]
    if node["reftype"] != "named":
        # A type in a signature, named by where it is made; the reference names it by where it is imported from.
        # The parts of which a Learner is made are no pages of their own.
        last = "Learner" if target.endswith(("Loop", "ScheduledFits")) else last
        candidates = [f"minilearn.all.{last}"] if target.startswith("minilearn.") or "." not in target else []
    elif re.fullmatch(r"[\w.]+", target):
        inside = node.get("py:class")
        candidates = [f"minilearn.all.{inside}.{target}"] if inside else []
        candidates += [f"minilearn.all.{target}", f"minilearn.all.Learner.{target}", target]
    else:
        candidates = []
    for name in candidates:
        if name in domain.objects and app.builder is not None:
            entry = domain.objects[name]
            return domain_link(app, node, entry.docname, entry.node_id, content)
    return content if node["reftype"] == "named" else None


def domain_link(app: Sphinx, node: pending_xref, docname: str, anchor: str, content: nodes.TextElement) -> nodes.Element:
    """A reference from where `node` stands to an object's anchor."""
    from sphinx.util.nodes import make_refnode

    return make_refnode(app.builder, node["refdoc"], docname, anchor, content)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_role("named", Named())
    app.connect("autodoc-process-docstring", spaced, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-docstring", unread, priority=600)
    app.connect("missing-reference", resolved)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

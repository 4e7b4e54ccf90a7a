"""How Sphinx builds the site: `make docs`; `make docs-short` runs the lessons in their short form."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]
os.environ["MPLBACKEND"] = "agg"

import minilearn  # noqa: E402 -- of this checkout

project = "minilearn"
version = release = minilearn.__version__
copyright = "the authors of minilearn, Apache-2.0"  # noqa: A001 -- Sphinx's name for it
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.linkcode",
    "sphinx_gallery.gen_gallery",
    "docstrings",
    "lessons",
    "links",
    "sources",
]
exclude_patterns = ["_build", "gallery/*.py", "gallery/*.ipynb"]
nitpicky = True

html_theme = "furo"
html_title = "minilearn"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
highlight_language = "none"  # a block without a language is what a program printed
pygments_style, pygments_dark_style = "friendly", "github-dark"

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]
suppress_warnings = ["config.cache"]  # the gallery's settings hold functions, which Sphinx cannot compare

add_module_names = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}  # of its own, where they have a docstring
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Source", "returns_style")]
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"
default_role = "named"  # `name` links to the reference where it is there; see extensions/docstrings.py
# Types from elsewhere: the site fetches nothing, so it has no list of what their pages are.
ELSEWHERE = "torch|numpy|np|nn|pathlib|collections|matplotlib|fastcore|typing|types|abc|Axes|Figure"
nitpick_ignore_regex = [("py:.*", rf"({ELSEWHERE})\b.*")]

from lessons import gallery_settings  # noqa: E402
from sources import address_of  # noqa: E402

sphinx_gallery_conf = gallery_settings(HERE, short=os.environ.get("MINILEARN_EXAMPLES") == "short")


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Where [source] of an object in the reference leads to."""
    return address_of(info["module"], info["fullname"]) if domain == "py" else None

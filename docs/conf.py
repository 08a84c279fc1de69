"""How Sphinx builds the documentation: `tox run -e docs`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent / "src")]

from itwinai import __version__  # noqa: E402

project = "itwinai"
author = "the itwinai developers"
copyright = "the itwinai developers"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "executed_tutorials",
    "command_reference",
    "repository_links",
]
exclude_patterns = ["_build", "extensions"]

html_theme = "furo"
html_title = "itwinai"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4  # links to headings work as they do on GitHub
# Tutorials are run by `executed_tutorials`.
nb_execution_mode = "off"
suppress_warnings = ["misc.highlighting_failure"]  # of a `!command` that goes on in the next line
nb_merge_streams = True
nb_render_markdown_format = "myst"

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
default_role = "code"  # docstrings have names in single backticks
napoleon_numpy_docstring = False

highlight_language = "none"  # of blocks that name no language: what a terminal shows
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True

linkcheck_timeout = 20
linkcheck_retries = 2


def without_references(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Take out of inherited docstrings the references to pages that other projects have."""
    lines[:] = [re.sub(r":ref:`([^`<]+?)\s*(?:<[^>]+>)?`", r"\1", line) for line in lines]


def setup(app: Any) -> None:
    """Connect to Sphinx."""
    app.connect("autodoc-process-docstring", without_references)

"""A Sphinx extension: links work on the site as they do in the repository, where READMEs and code are near.

The READMEs of examples become pages. A link to a file that is on no page, such as code, is shown as its text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parents[1]
REPOSITORY = DOCS.parent
README = re.compile(r"^<!-- the README of (?P<folder>\S+) -->$", re.MULTILINE)
FENCED = re.compile(r"(^(?P<fence>`{3,}|:{3,}).*?^(?P=fence)$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")


def rebased(text: str, origin: Path, page: Path) -> str:
    """Return Markdown of a file of the repository as it has to be in a page of the site."""

    def link(found: re.Match[str]) -> str:
        target = (origin.parent / found["target"]).resolve()
        if target.name == "README.md" and (example := DOCS / "examples" / f"{target.parent.name}.md").exists():
            target = example
        if found["image"] or target.is_relative_to(DOCS):
            return f"{found['image']}[{found['text']}]({os.path.relpath(target, page.parent)}{found['anchor'] or ''})"
        return found["text"]

    parts = FENCED.split(text)  # text, block, its fence, text, ...
    for position in range(0, len(parts), 3):
        parts[position] = LINK.sub(link, parts[position])
    return "".join(part for position, part in enumerate(parts) if position % 3 != 2)


def rewrite(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the README that a page asks for into it, and set the links right."""
    page = Path(app.env.doc2path(docname))
    if readme := README.search(source[0]):
        path = REPOSITORY / readme["folder"] / "README.md"
        app.env.note_dependency(str(path))
        source[0] = rebased(path.read_text(), path, page)
    else:
        source[0] = rebased(source[0], page, page)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx."""
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True}

"""A Sphinx extension: tutorials are shown with what their cells really gave, by `tutorial_runner`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import tutorial_runner
from sphinx.application import Sphinx


def read_executed(text: str, tutorial: str) -> nbformat.NotebookNode:
    """Return the cells of a tutorial, as MyST-NB reads them, with their outputs."""
    notebook = tutorial_runner.read(text, tutorial)
    executed = tutorial_runner.executed(Path(tutorial))
    notebook.metadata.language_info = executed.metadata.language_info
    for cell, done in zip(notebook.cells, executed.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
    return notebook


def read_tutorials_executed(app: Sphinx) -> None:
    """Have MyST-NB read each tutorial with `read_executed`; it looks for a reader by the end of a file's path."""
    readers = {
        f"/{path.parent.name}/{path.name}": ("executed_tutorials.read_executed", {"tutorial": str(path)}, False)
        for path in tutorial_runner.tutorials()
    }
    config = app.env.mystnb_config  # type: ignore[attr-defined]
    app.env.mystnb_config = config.copy(custom_formats={**config.custom_formats, **readers})  # type: ignore[attr-defined]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx, after MyST-NB has made its configuration."""
    app.setup_extension("myst_nb")
    app.connect("builder-inited", read_tutorials_executed, priority=900)
    return {"parallel_read_safe": True}

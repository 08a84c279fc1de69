"""A SLURM for tutorials that submit jobs: ``slurm_nodes: 2`` in the front matter, and the tag ``slurm`` at their cells.

It is the one that the tests use: the daemons of SLURM on this machine, in a temporary folder. Where SLURM is not
installed, these cells are not run, and the page says so; with ``ITWINAI_TESTS_REQUIRE_ALL=1`` that is an error.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import nbformat

TAG = "slurm"
MISSING = "Not run: SLURM is not installed where this page was made (apt-get install slurm-wlm munge).\n"


def missing_for(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the programs that a tutorial needs and that are not installed here."""
    missing: list[str] = _support().missing_programs() if "slurm_nodes" in notebook.metadata else []
    if missing and os.environ.get("ITWINAI_TESTS_REQUIRE_ALL"):
        raise AssertionError(f"{', '.join(missing)} not found: apt-get install slurm-wlm munge")
    return missing


@contextmanager
def slurm_for(notebook: nbformat.NotebookNode) -> Iterator[dict[str, str]]:
    """Run the SLURM that a tutorial asks for; yield the environment variables by which its cells find it.

    Cells that need one and cannot have it get an output that says so. They have the tag ``slurm``.
    """
    if "slurm_nodes" not in notebook.metadata:
        yield {}
    elif missing_for(notebook):
        for cell in notebook.cells:
            if TAG in cell.metadata.get("tags", []):
                cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", name="stderr", text=MISSING)], 0
        yield {}
    else:
        with (
            tempfile.TemporaryDirectory(prefix="slurm-") as folder,
            _support().slurm_cluster(Path(folder), notebook.metadata["slurm_nodes"]) as variables,
        ):
            # All nodes are this machine, and their names are not resolved.
            yield {**variables, "MASTER_ADDR": "127.0.0.1"}


def _support() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "tests/support/slurm.py"
    spec = importlib.util.spec_from_file_location("tutorial_slurm_support", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""Run a tutorial from top to bottom, and keep what it printed until its text, the package or a version changes.

The site shows what is kept here, and `tests/docs/test_tutorials.py` runs the same function: there is one way to run a
tutorial. A tutorial is a MyST text notebook, ``docs/tutorials/NAME.md``. Its cells run in one kernel of this Python, in
a new empty folder named after it, with one thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import html
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import nbformat
import tutorial_slurm
from jupyter_client import AsyncKernelManager
from myst_nb.core.read import read_myst_markdown_notebook
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "itwinai"
TUTORIALS = REPOSITORY / "docs/tutorials"
CACHE = REPOSITORY / "docs/_build/tutorials"
CELL_TIMEOUT_S = 300  # for a machine that is busy: cells take seconds

# Two workers on one core each: several threads per process would only wait for each other. Widths and colours are those
# of a page, not of the terminal that runs this.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "COLUMNS": "110",
    "LINES": "40",
    "NO_COLOR": "1",
    "TERM": "dumb",
}
UNSET = ("FORCE_COLOR", "CLICOLOR_FORCE", "PYTEST_CURRENT_TEST", "MPLBACKEND", "ITWINAI_VERBOSE")

# IPython's own `!command` runs it in a terminal, where progress bars draw over themselves, and goes on when it has
# failed. A page has neither.
SETUP = r"""
def _system(command):
    import subprocess, sys
    process = subprocess.Popen(
        ["bash", "-c", get_ipython().var_expand(command, depth=1)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )
    for line in process.stdout:
        sys.stdout.write(line)
    if process.wait():
        raise RuntimeError(f"exit code {process.returncode}: {command}")

get_ipython().system = _system
del _system
%config InlineBackend.figure_formats = ["retina"]
"""

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
FRAME = re.compile(r'<iframe\b(?P<before>[^>]*?)\ssrc="(?P<src>[^"]+)"', re.DOTALL)


class TutorialError(AssertionError):
    """A cell of a tutorial failed: which one, its code, and the error."""


def tutorials() -> list[Path]:
    """Return the text notebooks, in alphabetical order."""
    return [page for page in sorted(TUTORIALS.glob("*.md")) if is_notebook(page.read_text())]


def is_notebook(text: str) -> bool:
    """Tell whether the front matter of a page says that it is a text notebook."""
    return text.startswith("---\n") and "format_name: myst" in text.split("\n---\n", 1)[0]


def read(text: str, name: str) -> nbformat.NotebookNode:
    """Return a tutorial's cells, without outputs; the lines where they begin are in ``metadata.source_map``."""
    return read_myst_markdown_notebook(text, add_source_map=True, path=name)


def executed(tutorial: Path) -> nbformat.NotebookNode:
    """Return a tutorial with what its cells gave: from the cache, or else by running it now.

    Raises:
        TutorialError: a cell failed, took too long or ended the kernel.
    """
    text = tutorial.read_text()
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE / f"{tutorial.stem}.lock"):
        kept = CACHE / f"{tutorial.stem}-{_key(text)}.ipynb"
        if not kept.exists():
            notebook = run(text, tutorial.stem)
            for old in CACHE.glob(f"{tutorial.stem}-{'?' * 64}.ipynb"):
                old.unlink()
            begun = kept.with_suffix(".partial")
            nbformat.write(notebook, begun)
            begun.rename(kept)
        return nbformat.read(kept, as_version=4)


def run(text: str, name: str) -> nbformat.NotebookNode:
    """Run all cells of a tutorial, in a folder that is removed afterwards, and return them with their outputs."""
    notebook = read(text, name)
    setup = nbformat.v4.new_code_cell(SETUP)
    left_out = tutorial_slurm.TAG if tutorial_slurm.missing_for(notebook) else None
    cells = [cell for cell in notebook.cells if left_out not in cell.metadata.get("tags", [])]
    whole = nbformat.v4.new_notebook(cells=[setup, *cells], metadata=notebook.metadata)
    with tempfile.TemporaryDirectory(prefix="tutorial-") as folder, tutorial_slurm.slurm_for(notebook) as variables:
        place = Path(folder, name)
        place.mkdir()
        logging.getLogger("traitlets").setLevel(logging.ERROR)  # nbclient says which kernel it starts
        client = NotebookClient(
            whole,
            km=AsyncKernelManager(kernel_name="python3", transport="ipc", ip=str(Path(folder, "kernel"))),
            timeout=CELL_TIMEOUT_S,
            resources={"metadata": {"path": str(place)}},
        )
        # What cells print comes as messages. The kernel repeats it on its own streams.
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            # Of a manager that it was given, the client would leave the kernel running until this process ends.
            client.execute(env={**_environment(), **variables}, cleanup_kc=True, **quiet)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise TutorialError(_failure(notebook, name, error)) from None
        notebook.metadata.language_info = whole.metadata.language_info  # by which code is coloured
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [_of_a_page(output, place) for output in cell.outputs]
                cell.metadata.pop("execution", None)  # at what time it ran
    return notebook


def text_of(cell: nbformat.NotebookNode) -> str:
    """Return the text that a cell printed, on both streams."""
    return "".join(output.text for output in cell.get("outputs", []) if output.output_type == "stream")


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH")]))
    # `!itwinai` is that of this Python, whatever the shell would find.
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return {**kept, **ENVIRONMENT, "PYTHONPATH": path, "PATH": programs}


def _failure(notebook: nbformat.NotebookNode, name: str, error: Exception) -> str:
    lines = notebook.metadata.get("source_map", [])
    for cell, line in zip(notebook.cells, lines, strict=True):
        if cell.cell_type != "code":
            continue
        failed = [output for output in cell.get("outputs", []) if output.output_type == "error"]
        if failed:
            reason = "\n".join(failed[0].traceback)
        elif cell.get("execution_count") is None:  # it has not answered
            reason = str(error)
        else:
            continue
        printed = text_of(cell)
        return ESCAPES.sub("", f"docs/tutorials/{name}.md:{line + 1}\n\n{cell.source}\n\n{printed}\n{reason}")
    return f"docs/tutorials/{name}.md: {error}"


def _of_a_page(output: nbformat.NotebookNode, place: Path) -> nbformat.NotebookNode:
    """Return an output as it looks when it has been printed, with the pages that it frames within it."""
    if output.output_type == "stream":
        # The folder is one that a reader could have.
        text = output.text.replace(str(place), f"~/{place.name}")
        lines = ESCAPES.sub("", text).replace("\r\n", "\n").split("\n")
        output.text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
    elif "text/html" in output.get("data", {}):

        def inlined(frame: re.Match[str]) -> str:
            page = place / frame["src"]
            if not page.is_file():
                return frame[0]
            return f'<iframe{frame["before"]} srcdoc="{html.escape(page.read_text())}"'

        output.data["text/html"] = FRAME.sub(inlined, "".join(output.data["text/html"]))
    return output


def _key(text: str) -> str:
    """Return a hash of all that a tutorial's output depends on."""
    key = hashlib.sha256(f"{text}\0{tutorial_slurm.missing_for(read(text, ''))}".encode())
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    for path in [*sorted(Path(__file__).parent.glob("tutorial_*.py")), *sorted(files)]:
        key.update(f"\0{os.path.relpath(path, PACKAGE)}\0".encode())
        key.update(path.read_bytes())
    key.update("\n".join([sys.version, *_versions()]).encode())
    return key.hexdigest()


def _versions() -> Iterator[str]:
    """Yield the versions of what the package and its extras need, those for tests and documentation aside."""
    for text in sorted(metadata.requires("itwinai") or []):
        need = Requirement(text)
        if need.marker is not None and any(name in str(need.marker) for name in ('"test"', '"docs"')):
            continue
        try:
            yield f"{need.name}=={metadata.version(need.name)}"
        except metadata.PackageNotFoundError:
            yield f"{need.name}: not installed"
    try:
        yield f"horovod=={metadata.version('horovod')}"
    except metadata.PackageNotFoundError:
        yield "horovod: not installed"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time run a tutorial: the second finds what the first has kept."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

"""What git takes of this repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import grimp

from tests.conftest import REPOSITORY


def test_no_source_file_is_ignored(tmp_path: Path) -> None:
    """A pattern for what runs leave, such as ``runs/``, would also keep a package of that name out of the history."""
    # A repository of its own, to which all files are new: the tests may run from an archive.
    own = tmp_path / "git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(own)], check=True)
    git = ["git", f"--git-dir={own}", f"--work-tree={REPOSITORY}"]
    listed = subprocess.run(
        [*git, "ls-files", "--others", "--ignored", "--exclude-standard", "--", "itwinai", "tests", "docs", "examples"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    ignored = [path for path in listed.stdout.splitlines() if not path.startswith("docs/_build/")]
    assert [path for path in ignored if path.endswith((".py", ".md", ".html"))] == []


def test_no_module_imports_one_that_imports_it() -> None:
    """Also not by an import within a function, and over any number of modules."""
    graph = grimp.build_graph("itwinai", cache_dir=None)
    # The protocols name in their type hints what the modules above hand over, and import none of it at run time.
    running = grimp.build_graph("itwinai", exclude_type_checking_imports=True, cache_dir=None)
    assert not running.find_modules_directly_imported_by("itwinai.interfaces")
    modules = {
        name: {one for one in graph.find_modules_directly_imported_by(name) if one in graph.modules}
        for name in graph.modules - {"itwinai.interfaces"}
    }
    while free := {name for name, imported in modules.items() if not imported & modules.keys()}:
        modules = {name: imported for name, imported in modules.items() if name not in free}
    while unused := modules.keys() - {one for imported in modules.values() for one in imported}:
        modules = {name: imported for name, imported in modules.items() if name not in unused}
    assert {name: sorted(imported & modules.keys()) for name, imported in modules.items()} == {}

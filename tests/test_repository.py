"""What git takes of this repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

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
    assert [path for path in listed.stdout.splitlines() if path.endswith((".py", ".md", ".html"))] == []

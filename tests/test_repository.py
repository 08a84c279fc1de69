"""What git takes of this repository."""

from __future__ import annotations

import subprocess

from tests.conftest import REPOSITORY


def test_no_source_file_is_ignored() -> None:
    """A pattern for what runs leave, such as ``runs/``, would also keep a package of that name out of the history."""
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "itwinai", "tests", "docs", "*.py"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    ours = [path for path in listed.stdout.splitlines() if path.endswith((".py", ".md", ".html"))]
    assert [path for path in ours if path.startswith(("itwinai/", "tests/", "docs/", "examples/"))] == []

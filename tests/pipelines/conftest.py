"""A project for each test, in the current folder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.project import Project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project that has not run yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of two texts within a second it would run the first
    made = Project(tmp_path)
    made.write()
    importlib.invalidate_caches()
    yield made
    for name in [one for one in sys.modules if one.partition(".")[0] in ("project", "other_package")]:
        del sys.modules[name]

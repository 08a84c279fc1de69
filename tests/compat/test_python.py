"""What `itwinai.compat.python` takes for granted about private names."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from itwinai.compat import python as compat_python


def test_exit_functions_run_once(tmp_path: Path) -> None:
    script = (
        "import atexit, sys; from itwinai.compat import python as compat_python; atexit.register(print, 'ended'); "
        "compat_python.run_exit_functions(); print('and then')"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["ended", "and then"]


def test_fork_leaves_what_runs_at_exit_to_its_parent(tmp_path: Path) -> None:
    script = (
        "import atexit, weakref; from itwinai.compat import python as compat_python; "
        "atexit.register(print, 'of the parent'); "
        "held = set(); weakref.finalize(held, print, 'of the parent too'); "
        "compat_python.forget_exit_functions(); atexit.register(print, 'of the copy')"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["of the copy"]


def test_warnings_that_are_recorded_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        warnings.warn("kept", stacklevel=1)
        compat_python.print_recorded_warnings()
        warnings.warn("printed", stacklevel=1)
    assert [str(warning.message) for warning in recorded] == ["kept"]
    assert "UserWarning: printed" in capsys.readouterr().err


def test_changed_filters_are_looked_at_again() -> None:
    def warn() -> None:
        warnings.warn("again", stacklevel=1)

    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("default")
        warn()
        warn()
        compat_python.forget_warned()
        warn()
    assert len(recorded) == 2

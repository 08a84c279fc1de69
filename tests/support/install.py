"""What the tests of ``itwinai install`` have in common."""

from __future__ import annotations

import os
from pathlib import Path

import itwinai

VERSION = "0.28.1"


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment, without build options of the developer's own, with some changes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOROVOD_") and name != "CXX"}
    package_root = str(Path(itwinai.__file__).parents[1])
    return {**kept, "PYTHONPATH": package_root, **changes}

"""Make the modules of `docs/extensions` importable, as `docs/conf.py` does."""

import sys

from tests.conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "docs/extensions"))

"""What several tests of checkpoints compare with."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests.support.resumed import train


@pytest.fixture(scope="package")
def reference() -> Tensor:
    """The weights that a single uninterrupted process ends with."""
    return train("auto", 1, [])

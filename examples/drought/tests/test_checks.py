"""The surrogate passes the checks that any module can be given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from itwinai_drought.data.datamodule import DroughtDataModule
from itwinai_drought.model import DroughtLSTM

from itwinai.testing import parametrize_with_checks

GIVEN: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def given(options: dict[str, Any]) -> None:
    """Tell `make` where the store is."""
    GIVEN.update(options)


def make() -> tuple[DroughtLSTM, DroughtDataModule]:
    return DroughtLSTM(hidden=4, cells=96), DroughtDataModule(**GIVEN)


@parametrize_with_checks(
    make,
    checks=["same_seed", "unused_parameters", "pickling", "logged_keys", "resume", "evaluation", "prediction_order"],
    strategies=["ddp"],
)
def test_surrogate(check: Callable[[], None]) -> None:
    check()

"""What a script has set in modules reaches workers that import these modules again."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from itwinai.launchers.module_values import changed_values
from tests.support.cases import Regression, loader, make_trainer

SOURCE = """
import os

SCALE = 1.0
NAME: str = "first"
SIZES = (8, -16)
UNCHANGED = None
NOT_A_NUMBER = float("nan")
TABLE = [1]
CORES = os.cpu_count()
TWICE = 1
TWICE = 2


def local():
    SCALE = 2
    return SCALE
"""


@pytest.fixture
def scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "scaled_by.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("scaled_by")
    del sys.modules["scaled_by"]


def test_constants_that_are_not_as_the_file_says(scaled: Any) -> None:
    assert "scaled_by" not in changed_values()
    scaled.SCALE, scaled.NAME, scaled.SIZES = 3, "second", (8, 32)
    scaled.TABLE.append(2)
    scaled.CORES, scaled.TWICE, scaled.OTHER = 1, 3, 4
    assert changed_values()["scaled_by"] == {"SCALE": 3, "NAME": "second", "SIZES": (8, 32)}
    scaled.SCALE = torch.ones(1)  # which may be large
    assert changed_values()["scaled_by"] == {"NAME": "second", "SIZES": (8, 32)}


class Scaled(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        import scaled_by

        self.used = scaled_by.SCALE
        return super().training_step(batch, batch_idx)


def test_workers_that_are_sent_a_payload_have_them(scaled: Any) -> None:
    scaled.SCALE = 3.0
    module = Scaled()
    make_trainer("ddp", 2, max_epochs=1, limit_train_batches=1, launcher="payload").fit(module, loader(4))
    assert module.used == 3.0

"""Each tutorial runs from top to bottom and prints nothing that a reader would call noise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tutorial_runner

NOISE = re.compile(
    r"\wWarning|WARNING|GPU available|TPU available|litlogger|litmodels|Tip: |DeepSpeed info|\[INFO\]|\[WARNING\]"
    r"|INFO worker\.py|Traceback|\x1b"
)


@pytest.mark.parametrize("tutorial", tutorial_runner.tutorials(), ids=lambda path: path.stem)
def test_tutorial_runs(tutorial: Path) -> None:
    notebook = tutorial_runner.executed(tutorial)
    assert any(cell.get("outputs") for cell in notebook.cells)
    for cell in notebook.cells:
        if "noise" in cell.metadata.get("tags", []):  # the text speaks of it
            continue
        noise = [line for line in tutorial_runner.text_of(cell).splitlines() if NOISE.search(line)]
        assert noise == [], f"printed by:\n{cell.source}"


def test_every_page_of_tutorials_is_run() -> None:
    assert tutorial_runner.tutorials() == sorted(tutorial_runner.TUTORIALS.glob("*.md"))

"""The checks for a visit to a GPU, run on the CPU, so that they do not rot; and broken on purpose, so that they can."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunCommand, python
from tests.gpu.registry import all_checks

pytestmark = pytest.mark.timeout(600)  # the first test waits for all checks

NAMES = [check.name for check in all_checks()]


@pytest.fixture(scope="session")
def rehearsal(run_command: RunCommand, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run everything once, and return the folder of the results."""
    out = tmp_path_factory.mktemp("gpu")
    # A machine with a GPU is one without here.
    done = run_command(python("-m", "tests.gpu.rehearse", str(out)), timeout=580, CUDA_VISIBLE_DEVICES="")
    assert done.code == 0, done.output
    return out


@pytest.fixture(scope="session")
def results(rehearsal: Path) -> dict[str, Any]:
    """Return the results of the dry run by the names of the checks."""
    return {check["name"]: check for check in json.loads((rehearsal / "dry/results.json").read_text())["checks"]}


@pytest.mark.parametrize("name", NAMES)
def test_the_check_passes_dry(name: str, results: dict[str, Any]) -> None:
    result = results[name]
    if result["status"] == "not installed" and not os.environ.get("ITWINAI_TESTS_REQUIRE_ALL"):
        pytest.skip(result["why"])
    assert result["status"] == "passed", [result["why"], *(one for one in result["figures"] if not one["ok"])]
    assert result["figures"], "it has measured nothing"


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("numbers", "failed"),
        ("ddp-two", "failed"),
        ("worker-dies", "failed"),
        ("checkpoint-random", "failed"),
        ("monitor", "failed"),
        ("transformer", "error"),
        ("fork", "timed out"),
    ],
)
def test_a_check_that_is_broken_on_purpose_does_not_pass(name: str, status: str, rehearsal: Path) -> None:
    assert json.loads((rehearsal / "broken.json").read_text())[name] == status


def test_the_exit_code_says_what_happened(rehearsal: Path) -> None:
    assert json.loads((rehearsal / "codes.json").read_text()) == {"no GPU": 3, "dry": 0, "not forked": 0}


def test_the_page_says_that_it_is_dry_and_shows_every_check(rehearsal: Path) -> None:
    page = (rehearsal / "dry/results.md").read_text()
    assert "nothing here was measured on a GPU" in page
    assert [name for name in NAMES if f"`{name}`" not in page] == []


def test_the_report_names_every_check() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/gpu.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in page] == []

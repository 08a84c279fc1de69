"""`itwinai check`: green on good modules, and on faulty ones exactly the right check is red and names the line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import itwinai
from itwinai.checks.registry import CHECKS
from tests.checks import faulty
from tests.conftest import REPOSITORY, RunCommand, python

DIGITS = REPOSITORY / "examples" / "digits"
LOCAL = [name for name in CHECKS if name != "hpo_trial"]  # which needs Ray, and is checked with the digits


def line_of(name: str) -> str:
    """Return the place of the line of `faulty` that is marked with a check."""
    file = Path(faulty.__file__)
    number = next(i for i, line in enumerate(file.read_text().splitlines(), 1) if line.endswith(f"# {name}"))
    return f"{os.path.relpath(file)}:{number}"


@pytest.mark.parametrize("name", faulty.FAULTY)
def test_exactly_the_right_check_is_red_and_names_the_line(name: str) -> None:
    module, data = faulty.FAULTY[name]
    report = itwinai.check(module(), data(), checks=LOCAL, strategies=["ddp"])
    assert report.failed == [name], str(report)
    assert report[name].at == line_of(name), str(report)
    assert report[name].mend
    assert name in str(report) and line_of(name) in str(report)


def test_digits_are_green_under_every_strategy(run_command: RunCommand, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    ended = run_command(
        [*python("-m", "itwinai.cli.main"), "check", "-c", "config.yaml", "--json", str(out)], cwd=DIGITS
    )
    assert ended.code == 0, ended.output
    report = json.loads(out.read_text())
    assert [one["name"] for one in report["checks"]] == list(CHECKS)
    assert {one["status"] for one in report["checks"]} == {"pass"}, ended.output
    assert "ray" in next(one["detail"] for one in report["checks"] if one["name"] == "portable_checkpoint")
    assert "11 passed" in ended.output
    assert not (DIGITS / "runs").exists() or "runs" not in ended.output

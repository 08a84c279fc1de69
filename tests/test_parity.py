"""Every strategy ends with the weights, the logged values and the metrics of one process."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import RunCommand, python, require_programs
from tests.support.cases import CASES, Case, relative_difference, run_case

# The contract's limits. What is seen is about 1e-7 for all.
LIMITS = {"deepspeed": 1e-5, "others": 1e-6}


def check(result: dict[str, Any], references: dict[str, dict[str, Any]], strategy: str) -> None:
    """Compare a run with that of one process."""
    reference = references[str(Case(**result["case"]))]
    limit = LIMITS["deepspeed" if "deepspeed" in strategy else "others"]
    assert reference["global_step"] >= 20
    assert result["global_step"] == reference["global_step"]
    assert result["current_epoch"] == reference["current_epoch"]
    assert result["steps_seen"] == reference["steps_seen"]
    assert relative_difference(result["weights"], reference["weights"]) <= limit, result["case"]
    assert result["metrics"] == pytest.approx(reference["metrics"], rel=20 * limit, abs=limit), result["case"]


LOCAL = ("ddp", "deepspeed_stage_0", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3", "horovod")


@pytest.mark.parametrize("strategy", LOCAL)
def test_all_cases_under_torchrun(
    strategy: str, references: dict[str, Any], run_command: RunCommand, tmp_path: Path
) -> None:
    out = tmp_path / "results.pt"
    script = ["tests/support/joined.py", strategy, "2", str(out)]
    ended = run_command(python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script))
    assert ended.code == 0, ended.output
    assert "2 workers launched by torchrun" in ended.output
    assert "TCPStore" not in ended.output  # nobody looks at the store of a worker that has ended
    results = torch.load(out)
    assert len(results) == len(CASES)
    for result in results:
        check(result, references, strategy)


@pytest.mark.parametrize("strategy", LOCAL)
def test_workers_of_our_own(strategy: str, references: dict[str, Any], no_leftovers: None) -> None:
    case = Case("adamw", accumulate=3)
    check(run_case(case, strategy, workers=2), references, strategy)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("strategy", ["ray", "ray_deepspeed", "ray_horovod"])
def test_ray_actors(strategy: str, case: Case, references: dict[str, Any], local_ray: None) -> None:
    check(run_case(case, strategy, workers=2), references, strategy)


@pytest.mark.parametrize("strategy", ["horovod", "ddp"])
def test_all_cases_under_horovodrun(
    strategy: str, references: dict[str, Any], run_command: RunCommand, tmp_path: Path
) -> None:
    out = tmp_path / "results.pt"
    script = ["tests/support/joined.py", strategy, "2", str(out)]
    ended = run_command([str(Path(sys.executable).with_name("horovodrun")), "--gloo", "-np", "2", *python(*script)])
    assert ended.code == 0, ended.output
    assert "2 workers launched by horovodrun" in ended.output
    assert "TCPStore" not in ended.output
    for result in torch.load(out):
        check(result, references, strategy)


@pytest.mark.parametrize("strategy", ["ddp", "horovod", "deepspeed_stage_3"])
def test_mpirun(strategy: str, references: dict[str, Any], run_command: RunCommand, tmp_path: Path) -> None:
    require_programs([name for name in ["mpirun"] if shutil.which(name) is None], "apt-get install openmpi-bin")
    out = tmp_path / "results.pt"
    case = Case("adamw", accumulate=3)
    script = ["tests/support/joined.py", strategy, "2", str(out), str(case)]
    ended = run_command(["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2", *python(*script)])
    assert ended.code == 0, ended.output
    assert "2 workers launched by mpirun" in ended.output
    (result,) = torch.load(out)
    check(result, references, strategy)


def test_four_workers(references: dict[str, Any]) -> None:
    check(run_case(Case("sgd"), "ddp", workers=4), references, "ddp")

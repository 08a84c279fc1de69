"""Every strategy ends with the weights, the logged values and the metrics of one process."""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY, RunCommand, python, require_programs
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


# The workers of a launcher train with one strategy after the other, but for Horovod's, which has groups of its own.
TOGETHER = ("ddp", "deepspeed_stage_0", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3")
LOCAL = (*TOGETHER, "horovod")


def run_joined(
    launcher: list[str], strategies: tuple[str, ...], run_command: RunCommand, out: Path, *cases: Case
) -> tuple[str, list[dict[str, Any]]]:
    """Train with some strategies in two workers of a launcher; return what was printed, and the results."""
    script = [str(REPOSITORY / "tests/support/joined.py"), ",".join(strategies), "2", str(out), *map(str, cases)]
    ended = run_command([*launcher, *script])
    assert ended.code == 0, ended.output
    results = torch.load(out)
    assert len(results) == len(strategies) * len(cases or CASES)
    return ended.output, results


@pytest.mark.parametrize("strategies", [TOGETHER, ("horovod",)], ids=["torch", "horovod"])
def test_all_cases_under_torchrun(
    strategies: tuple[str, ...], references: dict[str, Any], run_command: RunCommand, tmp_path: Path
) -> None:
    torchrun = python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    printed, results = run_joined(torchrun, strategies, run_command, tmp_path / "results.pt")
    assert printed.count("2 workers launched by torchrun") == len(results)
    assert "TCPStore" not in printed  # nobody looks at the store of a worker that has ended
    for result in results:
        check(result, references, result["strategy"])


@pytest.mark.parametrize("strategy", LOCAL)
def test_workers_of_our_own(strategy: str, references: dict[str, Any], no_leftovers: None) -> None:
    case = Case("adamw", accumulate=3)
    check(run_case(case, strategy, workers=2), references, strategy)


@pytest.mark.parametrize(
    ("strategy", "case"),
    [("ray", Case("adamw", accumulate=3)), *itertools.product(["ray_deepspeed", "ray_horovod"], CASES)],
    ids=str,
)
def test_ray_actors(strategy: str, case: Case, references: dict[str, Any], local_ray: None) -> None:
    check(run_case(case, strategy, workers=2), references, strategy)


def test_all_cases_in_the_same_ray_actors(references: dict[str, Any], kept_ray_workers: None) -> None:
    for case in CASES:
        check(run_case(case, "ray", workers=2), references, "ray")


@pytest.mark.parametrize("strategy", ["horovod", "ddp"])
def test_all_cases_under_horovodrun(
    strategy: str, references: dict[str, Any], run_command: RunCommand, tmp_path: Path
) -> None:
    launcher = [str(Path(sys.executable).with_name("horovodrun")), "--gloo", "-np", "2", *python()]
    printed, results = run_joined(launcher, (strategy,), run_command, tmp_path / "results.pt")
    assert "2 workers launched by horovodrun" in printed
    assert "TCPStore" not in printed
    for result in results:
        check(result, references, strategy)


@pytest.mark.parametrize("strategies", [("ddp", "deepspeed_stage_3"), ("horovod",)], ids=["torch", "horovod"])
def test_mpirun(
    strategies: tuple[str, ...], references: dict[str, Any], run_command: RunCommand, tmp_path: Path
) -> None:
    require_programs([name for name in ["mpirun"] if shutil.which(name) is None], "apt-get install openmpi-bin")
    launcher = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2", *python()]
    case = Case("adamw", accumulate=3)
    printed, results = run_joined(launcher, strategies, run_command, tmp_path / "results.pt", case)
    assert printed.count("2 workers launched by mpirun") == len(results)
    for result in results:
        check(result, references, result["strategy"])


def test_four_workers(references: dict[str, Any]) -> None:
    check(run_case(Case("sgd"), "ddp", workers=4), references, "ddp")

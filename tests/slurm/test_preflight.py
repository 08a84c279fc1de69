"""Checks of the nodes before a job trains: what they find by what nodes tell, and on a real SLURM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from itwinai.errors import ConfigurationError
from itwinai.slurm.findings import Finding, Plan, find_problems
from itwinai.slurm.preflight import check_nodes
from tests.conftest import REPOSITORY, Finished, python, require_programs
from tests.support.slurm import missing_programs, slurm_cluster

NODES = ("n1", "n2", "n3")


def told(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what three nodes tell that are well, with some changes by node."""
    well: dict[str, Any] = {
        "skew": -0.01,
        "python": "3.11.2",
        "itwinai": "0.1.0",
        "commit": "1234567890ab",
        "folder_seen": True,
        "folder_problem": "",
        "address_problems": [],
        "port_taken": "",
        "torch": "2.13.0",
        "gpus": 2,
        "seconds": {"cuda:0": 0.010, "cuda:1": 0.011},
        "wrong": {},
        "round_trips": {},
        "done": True,
    }
    return {node: {**well, **changes.get(node, {})} for node in NODES}


def found(parts: dict[str, dict[str, Any]], **plan: Any) -> list[Finding]:
    return find_problems(
        Plan(**{"nodes": NODES, "tasks_per_node": 2, "cores_per_node": 8, "threads": 4, **plan}), parts
    )


def test_nothing_is_found_where_all_is_well() -> None:
    assert found(told()) == []


@pytest.mark.parametrize(
    ("changes", "plan", "level", "words", "nodes"),
    [
        ({"n2": {"commit": "abcdef"}}, {}, "error", ("commit", "abcdef on n2", "one folder of code"), ()),
        ({"n3": {"torch": "2.12.0"}}, {}, "error", ("same torch", "2.12.0 on n3"), ()),
        ({"n2": {"folder_seen": False}}, {}, "error", ("n2 does not see the job's folder", "share"), ()),
        ({"n2": {"folder_problem": "No space left"}}, {}, "error", ("n2 cannot write", "No space left"), ()),
        ({"n2": {"gpus": 1}}, {}, "error", ("1 on n2", "--exclude n2"), ("n2",)),
        ({}, {"tasks_per_node": 1}, "error", ("1 task on each node", "2 GPUs", "--ntasks-per-node=2"), ()),
        ({}, {"tasks_per_node": 2, "devices_per_node": 4}, "error", ("2 tasks", "4 devices"), ()),
        ({}, {"tasks_per_node": None, "devices_per_node": 4}, "error", ("4 workers", "--gpus-per-node=4"), ()),
        ({"n1": {"port_taken": "in use"}}, {}, "error", ("taken on n1", "MASTER_PORT"), ()),
        (
            {node: {"address_problems": [("it does not resolve", "Set MASTER_ADDR")]} for node in NODES},
            {},
            "error",
            ("on n1, n2, n3: it does not resolve. Set MASTER_ADDR.",),
            (),
        ),
        ({"n2": {"group_problem": "no connection"}}, {}, "error", ("n2: no connection", "GLOO_SOCKET_IFNAME"), ()),
        ({"n3": {"wrong": {"cuda:1": "wrong sum"}}}, {}, "error", ("cuda:1 of n3: wrong sum", "--exclude n3"), ("n3",)),
        ({"n3": {"seconds": {"cuda:0": 0.04}}}, {}, "warning", ("cuda:0 of n3 takes 3.8 times", "temperature"), ()),
        ({"n1": {"round_trips": {"1": 0.01, "2": 0.05}}}, {}, "warning", ("n3 takes 5.0 times", "network"), ()),
        ({"n2": {"skew": 7.0}}, {}, "warning", ("the clock of n2 is 7 s ahead",), ()),
        ({}, {"threads": 8}, "warning", ("OMP_NUM_THREADS=8", "Set OMP_NUM_THREADS=4"), ()),
        ({}, {"threads": None}, "warning", ("OMP_NUM_THREADS is not set", "Set OMP_NUM_THREADS=4"), ()),
    ],
)
def test_each_fault_is_one_finding(
    changes: dict[str, Any], plan: dict[str, Any], level: str, words: tuple[str, ...], nodes: tuple[str, ...]
) -> None:
    findings = found(told(**changes), **plan)
    (fault,) = [finding for finding in findings if level == "warning" or finding.level == "error"]
    assert (fault.level, fault.nodes) == (level, nodes)
    for word in words:
        assert word in str(fault)


def test_nodes_that_do_not_answer_are_sick() -> None:
    parts = told()
    del parts["n2"]
    del parts["n3"]["seconds"], parts["n3"]["done"]
    silent, stuck = found(parts)
    assert silent.nodes == ("n2",) and "n2 does not answer" in str(silent)
    assert stuck.nodes == ("n3",) and "matrix product" in str(stuck)


def test_only_in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    with pytest.raises(ConfigurationError, match="salloc"):
        check_nodes()


# ----------------------------------------------------------------------------------------------------- real SLURM


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    require_programs(missing_programs(), "apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_cluster(folder) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}.items():
            patch.setenv(name, value)
        yield folder


def preflight(folder: Path, *options: str, **variables: str) -> Finished:
    """Check both nodes of the cluster."""
    command = ["salloc", "--quiet", "-N2", "-n2", "--ntasks-per-node=1", "--exclusive"]
    began = time.monotonic()
    ended = subprocess.run(
        [*command, *python("-m", "itwinai.slurm.preflight", *options)],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return Finished(ended.returncode, ended.stdout, time.monotonic() - began)


def test_two_nodes(slurm: Path, tmp_path: Path) -> None:
    """Both nodes are this machine, whose name they do not resolve: the address has to be given."""
    well = preflight(tmp_path, MASTER_ADDR="127.0.0.1")
    assert well.code == 0 and "error" not in well.output, well.output
    assert list(tmp_path.iterdir()) == []
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        wrong = preflight(
            tmp_path,
            *("--tasks-per-node", "1", "--devices-per-node", "2"),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(taken.getsockname()[1]),
            GLOO_SOCKET_IFNAME="ib9",
        )
    assert wrong.code == 1
    assert "srun starts 1 task on each node, and 2 devices are asked for" in wrong.output
    assert "on n1, n2: GLOO_SOCKET_IFNAME=ib9 names a network interface" in wrong.output
    assert "the port of rank 0 is taken on n1" in wrong.output
    unresolved = preflight(tmp_path)
    assert unresolved.code == 1 and unresolved.seconds < 60
    assert "on n1, n2: the host name 'n1' of rank 0 does not resolve" in unresolved.output
    assert "frame #" not in unresolved.output  # torch says the same in forty lines


def test_node_that_is_gone_is_named_and_left_out(slurm: Path, tmp_path: Path) -> None:
    def idle() -> bool:
        return subprocess.run(["sinfo", "-h", "-o", "%T %D"], capture_output=True, text=True).stdout.strip() == "idle 2"

    _wait_until(idle)
    os.kill(int((slurm / "slurmd-n2.pid").read_text()), signal.SIGKILL)
    script = tmp_path / "job.sh"
    check = f"{sys.executable} -m itwinai.slurm.preflight --max-requeues 1"
    script.write_text(f"#!/bin/bash\ntrap '' TERM\n{check} || exit\ntouch {tmp_path}/trained\n")
    output = tmp_path / "output"
    options = ["--requeue", "-N2", "-n2", "--ntasks-per-node=1", f"--output={output}", "--no-kill"]
    options.append("--export=ALL,MASTER_ADDR=127.0.0.1")
    submitted = subprocess.run(["sbatch", "--parsable", *options, str(script)], capture_output=True, text=True)
    job = submitted.stdout.strip()
    _wait_until(lambda: output.exists() and "is queued again without n2" in output.read_text())
    assert "error: n2 does not answer. Leave it out (--exclude n2)" in output.read_text()
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    assert "ExcNodeList=n2" in shown
    assert not (tmp_path / "trained").exists()
    subprocess.run(["scancel", job], check=True)


def _wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)

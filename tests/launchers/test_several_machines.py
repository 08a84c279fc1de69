"""Several machines without SLURM: torchrun over a network, and what is said where the network is in the way."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from itwinai.launchers.reach import spans_nodes
from tests.conftest import REPOSITORY, Finished, python, require_programs
from tests.support.cases import Case, relative_difference
from tests.support.network import ADDRESSES, can_make_machines, on, packets_dropped, two_machines

FIRST, SECOND = ADDRESSES
CASE = Case("adamw", accumulate=3)


@pytest.fixture(scope="module", autouse=True)
def machines() -> Iterator[None]:
    require_programs([] if can_make_machines() else ["ip netns"], "run as root, with iproute2")
    with two_machines():
        yield


def checked(address: str, port: int = 29400, limit: float = 4, **variables: str) -> Finished:
    """Check on the second machine whether it reaches rank 0."""
    check = f"from itwinai.launchers.reach import check_network; check_network({address!r}, {port}, True, {limit})"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "eth0", **variables}
    began = time.monotonic()
    ended = subprocess.run(on(SECOND, *python("-c", check)), env=environment, capture_output=True, text=True)
    return Finished(ended.returncode, ended.stderr, time.monotonic() - began)


def test_what_is_in_the_way_is_named() -> None:
    assert checked(ADDRESSES[FIRST]).code == 0  # nothing listens yet, and the machine is there

    unknown = checked("node-that-is-not-there.invalid")
    assert "'node-that-is-not-there.invalid' of rank 0 does not resolve" in unknown.output

    with packets_dropped():
        dropped = checked(ADDRESSES[FIRST])
    assert "does not reach rank 0 at 10.77.0.1, port 29400 from its address 10.77.0.2: timed out" in dropped.output
    assert "firewall" in dropped.output and "MASTER_PORT" in dropped.output

    absent = checked("10.77.0.9")
    assert "does not reach rank 0 at 10.77.0.9" in absent.output and "MASTER_ADDR" in absent.output

    wrong = checked(ADDRESSES[FIRST], GLOO_SOCKET_IFNAME="eth1")
    assert "from its address 10.78.0.2" in wrong.output and "GLOO_SOCKET_IFNAME" in wrong.output

    missing = checked(ADDRESSES[FIRST], GLOO_SOCKET_IFNAME="ib0")
    assert "GLOO_SOCKET_IFNAME=ib0 names a network interface" in missing.output and "lo, eth0" in missing.output

    inward = checked(ADDRESSES[FIRST], GLOO_SOCKET_IFNAME="lo")
    assert "GLOO_SOCKET_IFNAME=lo has the address 127.0.0.1" in inward.output

    for failed in (unknown, dropped, absent, wrong, missing, inward):
        assert failed.code == 1 and failed.seconds < 60, failed.output


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LOCAL_WORLD_SIZE": "2"}, True),
        ({"LOCAL_WORLD_SIZE": "4", "SLURM_NNODES": "2"}, False),
        ({"SLURM_NNODES": "2"}, True),
        ({"SLURM_NNODES": "2", "SLURM_STEP_NUM_NODES": "1"}, False),
        ({}, False),
    ],
)
def test_spans_nodes(variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NNODES", "SLURM_STEP_NUM_NODES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert spans_nodes(4) is expected


def test_torchrun_on_two_machines(references: dict[str, Any], tmp_path: Path) -> None:
    """As docs/how-to/run-on-a-cluster.md starts it."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

    def start(machine: str, interface: str, out: Path, rank: int) -> subprocess.Popen[str]:
        torchrun = python("-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}")
        address = [f"--master-addr={ADDRESSES[FIRST]}", "--master-port=29400"]
        script = [str(REPOSITORY / "tests/support/joined.py"), "ddp", "2", str(out), str(CASE)]
        return subprocess.Popen(
            on(machine, *torchrun, *address, *script),
            env={**environment, "GLOO_SOCKET_IFNAME": interface},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    out = tmp_path / "results.pt"
    nodes = [start(FIRST, "eth0", out, 0), start(SECOND, "eth0", out, 1)]
    said = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "".join(said)
    assert "2 workers launched by torchrun, rank 0 at 10.77.0.1:" in said[0]
    (result,) = torch.load(out)
    assert relative_difference(result["weights"], references[str(CASE)]["weights"]) < 1e-6

"""Check the nodes of a SLURM job before it trains: ``python -m itwinai.slurm.preflight`` in a batch script."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itwinai.errors import ConfigurationError
from itwinai.launchers.slurm_job import job_id, restarts
from itwinai.launchers.worker import exit_soon
from itwinai.slurm.findings import Finding, Plan, find_problems
from itwinai.slurm.node_check import MARK, Request
from itwinai.slurm.requeue import JobRecord, requeue

LIMIT = 60.0
"""Seconds for all nodes to answer. Importing torch from a busy file system takes most of them."""

_NETWORK_LIMIT = 20.0
_ASKING = 30.0


def check_nodes(
    tasks_per_node: int | None = None,
    devices_per_node: int | None = None,
    folder: str | Path = ".",
    limit: float = LIMIT,
    python: Sequence[str] = (),
) -> list[Finding]:
    """Check the nodes of this job with one task on each, within a time limit.

    Args:
        tasks_per_node: workers that srun will start on each node; None if something else starts them.
        devices_per_node: devices that the config asks for on each node; None for all.
        folder: that all nodes have to share; the job's own by default.
        limit: seconds after which a node that has not answered is named and left behind.
        python: the command of Python on the nodes; by default this one.

    Returns:
        What is wrong, errors first; empty if all is well.

    Raises:
        ConfigurationError: this is no SLURM job.
    """
    if "SLURM_JOB_NODELIST" not in os.environ:
        raise ConfigurationError(
            "The preflight checks the nodes of a SLURM job, and this is none. Submit it, or run it within `salloc`."
        )
    nodes = _hostnames(os.environ["SLURM_JOB_NODELIST"])
    request = Request(
        folder=str(Path(folder).absolute()),
        token=uuid.uuid4().hex[:12],
        address=os.environ.get("MASTER_ADDR") or nodes[0],
        port=int(os.environ.get("MASTER_PORT") or 15000 + int(os.environ["SLURM_JOB_ID"][-4:])),
        limit=min(_NETWORK_LIMIT, limit / 2),
    )
    cores = re.match(r"\d+", os.environ.get("SLURM_JOB_CPUS_PER_NODE", ""))
    threads = os.environ.get("OMP_NUM_THREADS", "")
    plan = Plan(
        nodes=nodes,
        tasks_per_node=tasks_per_node,
        devices_per_node=devices_per_node,
        cores_per_node=int(cores[0]) if cores else 0,
        threads=int(threads) if threads.isdigit() else None,
    )
    try:
        request.shared_file.write_text("")
        told = _ask(nodes, request, limit, python or [sys.executable])
    except OSError as error:
        reason = error.strerror or str(error)
        return [Finding("error", f"the folder {folder} cannot be written ({reason})", "Submit from another folder")]
    finally:
        for left in request.shared_file.parent.glob(f"{request.shared_file.name}*"):
            left.unlink(missing_ok=True)
    return find_problems(plan, told)


def _ask(nodes: Sequence[str], request: Request, limit: float, python: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what each node tells, by its name, in the order of the nodes."""
    step = ["srun", "--overlap", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1"]
    step += ["--kill-on-bad-exit=0", "--unbuffered", "--export=ALL"]
    command = [*step, *python, "-m", "itwinai.slurm.node_check", request.text()]
    told: dict[str, dict[str, Any]] = defaultdict(dict)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                now = time.time()
                if not line.startswith(MARK):
                    print(line, end="", file=sys.stderr)
                    continue
                part = json.loads(line.removeprefix(MARK))
                if "time" in part:
                    part["skew"] = part["time"] - now
                told[part.pop("node")].update(part)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
        reader.join(5)
    return {node: told[node] for node in nodes if node in told}


def _hostnames(listed: str) -> list[str]:
    """Return the nodes of a list as SLURM writes it."""
    shown = subprocess.run(
        ["scontrol", "show", "hostnames", listed], capture_output=True, text=True, timeout=_ASKING, check=True
    )
    return shown.stdout.split()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is wrong with the nodes of this job.

    Args:
        arguments: those of the command line by default.

    Returns:
        1 if there is an error, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m itwinai.slurm.preflight", description=__doc__)
    parser.add_argument("--tasks-per-node", type=int, help="workers that srun will start on each node")
    parser.add_argument("--devices-per-node", type=int, help="devices that the config asks for on each node")
    parser.add_argument("--folder", default=".", help="that all nodes have to share; the current one by default")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds; 60 by default")
    parser.add_argument(
        "--max-requeues", type=int, default=0, help="queue the job again without sick nodes, at most so often"
    )
    parsed = parser.parse_args(arguments)
    began = time.monotonic()
    found = check_nodes(parsed.tasks_per_node, parsed.devices_per_node, parsed.folder, parsed.limit)
    code = report(found, time.monotonic() - began)
    errors = [finding for finding in found if finding.level == "error"]
    sick = sorted({node for finding in errors for node in finding.nodes})
    # What is wrong with no node in particular would be as wrong with others.
    if sick and all(finding.nodes for finding in errors) and restarts() < parsed.max_requeues:
        job = job_id()
        if requeue(job, sick, JobRecord.ask(job).excluded):
            print(f"itwinai: job {job} is queued again without {', '.join(sick)}", file=sys.stderr)
    return code


def report(found: Sequence[Finding], seconds: float) -> int:
    """Print findings; return 1 if there is an error among them, else 0."""
    for finding in found:
        print(f"itwinai: {finding}", file=sys.stderr)
    errors = sum(finding.level == "error" for finding in found)
    if not found:
        print(f"itwinai: the nodes are checked, in {seconds:.0f} s: all is well", file=sys.stderr)
    sys.stderr.flush()
    return int(errors > 0)


if __name__ == "__main__":
    exit_soon()
    sys.exit(main())

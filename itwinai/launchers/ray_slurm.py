"""A Ray cluster over all nodes of a SLURM allocation, for as long as it is needed."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from itwinai.compat import ray as compat_ray
from itwinai.errors import ResourceError
from itwinai.launchers.slurm_job import inside_slurm_step

JOINING = 120.0
"""Seconds within which all nodes have to join."""

# What srun says to the tasks of a step: trainers would take it for the launch of their own workers.
_OF_STEPS = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NPROCS")


def allocated_nodes() -> list[str]:
    """Return the nodes of the SLURM allocation whose batch script this process belongs to.

    Returns:
        Their names. Empty outside of SLURM, in a step of srun, which has launched what runs here, and in a shell of
        salloc that is on none of the nodes.
    """
    names = os.environ.get("SLURM_JOB_NODELIST")
    if not names or "SLURMD_NODENAME" not in os.environ:
        return []
    if inside_slurm_step():
        return []
    listed = subprocess.run(["scontrol", "show", "hostnames", names], capture_output=True, text=True, check=True)
    return listed.stdout.split()


def agree_on_token() -> None:
    """Let a cluster that this process may start ask for a token: others may have accounts on the nodes.

    Ray reads the variables when it is imported. Where it has been, the nodes do as this process does.
    """
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ and len(allocated_nodes()) > 1:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


@contextmanager
def ray_over(nodes: Sequence[str]) -> Iterator[str]:
    """Run Ray on all nodes of an allocation; yield its address.

    Args:
        nodes: see `allocated_nodes`.

    Raises:
        ResourceError: not all nodes have joined.
    """
    import ray

    from itwinai.launchers.local import free_port

    here, port = ray.util.get_node_ip_address(), free_port()
    cpus = os.environ.get("SLURM_CPUS_ON_NODE", "1")
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    start.append(f"--num-cpus={cpus}")
    head = [*start, "--head", f"--node-ip-address={here}", f"--port={port}", "--include-dashboard=false"]
    others = len(nodes) - 1
    step = ["srun", "--overlap", f"--nodes={others}", f"--ntasks={others}", f"--cpus-per-task={cpus}"]
    step += [f"--exclude={os.environ['SLURMD_NODENAME']}", "--export=ALL", "env"]
    step += [argument for name in _OF_STEPS for argument in ("-u", name)]
    address = f"{here}:{port}"
    processes: list[subprocess.Popen[bytes]] = []
    # Kept for an error: at the end of every job srun says that the nodes of Ray were killed.
    with tempfile.TemporaryFile() as said:
        try:
            processes.append(_started(head, said))
            _wait_for_nodes(address, 1, processes, said)
            processes.append(_started([*step, *start, f"--address={address}"], said))
            _wait_for_nodes(address, len(nodes), processes, said)
            yield address
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()
                process.wait()
            compat_ray.forget_ray_cluster(address)


def _started(command: Sequence[str], said: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = {"RAY_AUTH_MODE": "disabled", **os.environ}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        env=environment,
        start_new_session=True,
    )


def _wait_for_nodes(address: str, number: int, processes: Sequence[subprocess.Popen[bytes]], said: IO[bytes]) -> None:
    """Wait until all nodes have joined."""
    deadline = time.monotonic() + JOINING
    while _joined(address) < number:
        if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines()
            raise ResourceError(
                f"Ray did not start on {number} nodes of the SLURM allocation. Check that srun is allowed within the "
                "job and that the nodes reach each other. To use a running cluster, pass --address. Its output:\n"
                + "\n".join(lines[-20:])
            )
        time.sleep(0.5)


def _joined(address: str) -> int:
    """Return how many nodes have joined; asked for in a process of its own, as this one is to connect only once."""
    ask = (
        "import logging, ray, sys; ray.init(address=sys.argv[1], logging_level=logging.CRITICAL, log_to_driver=False); "
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    asked = subprocess.run([sys.executable, "-c", ask, address], capture_output=True, text=True)
    return int(asked.stdout.split()[-1]) if asked.returncode == 0 else 0

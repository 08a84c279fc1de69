"""A real SLURM of some nodes on this machine: munged, slurmctld and a slurmd per node, in a temporary folder."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=100 State=UNKNOWN\n"


def missing_programs() -> list[str]:
    """Return the programs of SLURM that this machine lacks."""
    return [name for name in ("munged", "slurmctld", "slurmd", "srun", "sinfo") if shutil.which(name) is None]


@contextmanager
def slurm_cluster(folder: Path, number: int = 2, more: str = "") -> Iterator[dict[str, str]]:
    """Run a cluster; yield the environment variables by which its commands find it.

    Jobs that are queued again wait for six seconds, and not for two minutes as elsewhere (``cred_expire``).

    Args:
        folder: an empty one, for all files.
        number: of nodes, which are called n1, n2, ...
        more: further lines of slurm.conf.
    """
    nodes = [f"n{index + 1}" for index in range(number)]
    for name in ("state", *(f"spool-{node}" for node in nodes)):
        (folder / name).mkdir()
    folder.chmod(0o755)
    host, (controller_port, *ports) = socket.gethostname(), _free_ports(1 + number)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        "".join(_NODE.format(name=name, host=host, port=port) for name, port in zip(nodes, ports, strict=True))
        + _CONFIGURATION.format(host=host, folder=folder, controller_port=controller_port)
        + more
    )
    environment = {"SLURM_CONF": str(configuration)}
    everything = {**os.environ, **environment}
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    daemons = []

    def start(*command: str) -> None:
        log = (folder / f"{len(daemons)}.log").open("wb")
        daemons.append(subprocess.Popen(command, env=everything, stdout=log, stderr=log))

    try:
        munge_files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        start(
            "munged",
            "--foreground",
            "--force",  # it dislikes that others may write to the folder above
            f"--key-file={key}",
            *(f"--{option}={folder}/munge.{name}" for option, name in munge_files.items()),
        )
        _wait_until((folder / "munge.socket").exists, folder)
        start("slurmctld", "-D")
        for node in nodes:
            start("slurmd", "-D", "-N", node)

        def all_idle() -> bool:
            seen = subprocess.run(["sinfo", "-h", "-o", "%T %D"], env=everything, capture_output=True, text=True)
            return seen.stdout.splitlines()[:1] == [f"idle {number}"]

        _wait_until(all_idle, folder)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _wait_until(condition: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(f"== {path.name}\n{path.read_text(errors='replace')}" for path in folder.glob("*.log"))
            raise TimeoutError(f"SLURM, started by {getpass.getuser()}, did not come up:\n{logs}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()

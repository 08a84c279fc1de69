"""The hardware of this machine: host name, cores, memory; and the launcher of this process."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from itwinai.cli.resources import available_memory, usable_cpus


def describe_machine(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hardware of this machine, and the launcher of this process.

    Args:
        facts: what `inspect` returned.
    """
    usable = usable_cpus()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shm = shutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None
    slurm = {name: os.environ.get(f"SLURM_{name.upper()}") for name in ("job_id", "nnodes", "nodelist")}
    return {
        "host": {"name": socket.gethostname(), **facts.get("host", {})},
        "cores": {"usable": usable, "total": os.cpu_count() or usable},
        "memory": {"total": min(total, _memory_limit() or total), "available": available_memory()},
        "shm": None if shm is None else {"total": shm.total, "free": shm.free},
        "launcher": facts.get("launcher", {"name": None}),
        "slurm": slurm if slurm["job_id"] else None,
    }


def inspect_host() -> dict[str, Any]:
    """Look up the address of this host, which may take as long as a name server wants."""
    name = socket.gethostname()
    try:
        return {"name": name, "address": socket.gethostbyname(name)}
    except OSError as error:
        return {"name": name, "address": None, "unresolved": str(error)}


def inspect_launcher() -> dict[str, Any]:
    """Return the launcher of this process, as the trainer detects it."""
    from itwinai.launchers.environment import find_outer_environment, launcher_name

    environment = find_outer_environment()
    if environment is None:
        return {"name": None}
    return {"name": launcher_name(environment), "workers": environment.world_size()}


def _memory_limit() -> int | None:
    """Return the memory that the container or job may use, in bytes, or None where there is no limit."""
    with suppress(OSError):
        own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        folder = Path("/sys/fs/cgroup", own.strip("/"))
        files = [level / "memory.max" for level in (folder, *folder.parents)]
        limits = [file.read_text().strip() for file in files if file.is_file()]
        return min((int(limit) for limit in limits if limit.isdigit()), default=None)
    return None

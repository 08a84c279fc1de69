"""A site from what SLURM says of the machine."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from itwinai.errors import ConfigurationError
from itwinai.slurm.commands import ask
from itwinai.slurm.site import Partition, Site, find_site
from itwinai.slurm.times import seconds_of

_AMD = re.compile(r"\bmi\d|amd|radeon|instinct", re.IGNORECASE)


def propose_site() -> Site:
    """Return a site for this machine: the nearest of the package's, with the partitions and limits that SLURM names.

    Raises:
        ConfigurationError: there is no SLURM.
        SlurmError: SLURM does not answer.
    """
    listed = ask("sinfo", "-h", "-o", "%P|%a|%l|%c|%G|%D|%f")
    site = proposal(listed, has_infiniband=any(Path("/sys/class/infiniband").glob("*")))
    names = {path.name for path in Path("/sys/class/net").glob("*")} if site.name != "workstation" else set()
    options: dict[str, Any] = dict(site.options)
    environment = dict(options.get("environment", {}))
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        wanted = environment.get(variable)
        if wanted and not any(name.startswith(str(wanted)) for name in names):
            environment.pop(variable)  # whether the nodes have it is not known here
    return replace(site, options={**options, "environment": environment}) if site.name != "workstation" else site


def proposal(listed: str, has_infiniband: bool) -> Site:
    """Return the site that fits what sinfo has listed.

    Args:
        listed: lines of partition, availability, time limit, cores, GPUs, nodes and features, with ``|`` between.
        has_infiniband: whether the machine where jobs are submitted has InfiniBand.

    Raises:
        ConfigurationError: no partition is available.
    """
    partitions: dict[str, Partition] = {}
    nodes: dict[str, int] = {}
    default = ""
    told = ""
    for line in listed.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 7 or fields[1] != "up":
            continue
        name = fields[0].rstrip("*")
        default = name if fields[0].endswith("*") else default
        told += f"{fields[4]} {fields[6]} "
        before = partitions.get(name, Partition())
        partitions[name] = Partition(
            max_time="UNLIMITED" if seconds_of(fields[2]) == float("inf") else fields[2],
            gpus_per_node=max(before.gpus_per_node or 0, _gpus(fields[4])),
            cpus_per_node=min(before.cpus_per_node or 10**9, int(fields[3].rstrip("+"))),
        )
        nodes[name] = nodes.get(name, 0) + int(fields[5])
    if not partitions:
        raise ConfigurationError(
            "sinfo lists no partition that is up, so no site can be proposed. Name one with --site."
        )
    default = default or max(partitions, key=lambda name: (partitions[name].gpus_per_node or 0, nodes[name]))
    has_gpus = any(one.gpus_per_node for one in partitions.values())
    if max(nodes.values()) == 1:
        kind = "workstation"
    elif not has_gpus:
        kind = "cpu-cluster"
    else:
        kind = "amd-slingshot" if _AMD.search(told) else "nvidia-infiniband"
    nearest = find_site(kind)
    environment = dict(nearest.options.get("environment", {}))
    if kind == "nvidia-infiniband" and not has_infiniband:
        environment.pop("NCCL_IB_DISABLE", None)
    own = {name: value for name, value in nearest.options.items() if name not in ("tasks_per_node", "cpus_per_task")}
    main = partitions[default]
    return replace(
        nearest,
        path="",
        description=f"proposed from sinfo, after {kind}",
        options={"partition": default, **own, "environment": environment},
        max_time=main.max_time,
        gpus_per_node=main.gpus_per_node,
        cpus_per_node=main.cpus_per_node,
        partitions={name: limits for name, limits in partitions.items() if name != default},
    )


def _gpus(text: str) -> int:
    """Return the number of GPUs in what sinfo says of a node's resources, as in ``gpu:a100:4(S:0-1),nvme:1``."""
    counts = re.findall(r"gpu(?::[^:,()]+)?:(\d+)", text)
    return sum(int(count) for count in counts)

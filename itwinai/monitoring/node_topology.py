"""Which workers share a node, and which of them measures it."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from itwinai.monitoring.visible_devices import gpu_environment


@dataclass(frozen=True)
class WorkerLocation:
    """Where a worker is.

    Attributes:
        host: name of its machine.
        node_rank: number of its node in the run; several nodes of a run may be on one machine, as in a trial.
        pid: its process.
        gpus: what its environment says about GPUs.
        gpu: id of the GPU that it trains on, where that is known.
    """

    host: str
    node_rank: int
    pid: int
    gpus: Mapping[str, str] = field(default_factory=dict)
    gpu: str | None = None


def this_location(node_rank: int, gpu: str | None) -> WorkerLocation:
    """Return where this process is.

    Args:
        node_rank: number of its node in the run.
        gpu: id of the GPU that it trains on, where that is known.
    """
    return WorkerLocation(socket.gethostname(), node_rank, os.getpid(), gpu_environment(), gpu)


@dataclass(frozen=True)
class Node:
    """The workers of a node.

    Attributes:
        name: the machine's name, with the number of the node where several have the same.
        leader: rank of the worker that measures it.
        workers: all of them.
    """

    name: str
    leader: int
    workers: Sequence[WorkerLocation]


def nodes_of(locations: Sequence[WorkerLocation]) -> list[Node]:
    """Return the nodes of a run, in the order of their first ranks.

    Args:
        locations: of the workers, by rank.
    """
    groups: dict[tuple[int, str], list[int]] = {}
    for rank, place in enumerate(locations):
        groups.setdefault((place.node_rank, place.host), []).append(rank)
    machines = Counter(host for _, host in groups)
    return [
        Node(host if machines[host] == 1 else f"{host}-{number}", ranks[0], [locations[rank] for rank in ranks])
        for (number, host), ranks in groups.items()
    ]

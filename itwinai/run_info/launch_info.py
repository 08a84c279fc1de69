"""Where a run ran: how many workers, who started them, on which machines."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from itwinai.checkpoints.naming import strategy_name_of
from itwinai.launchers.environment import launcher_name

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@dataclass(frozen=True)
class Slurm:
    """The job of a run.

    Attributes:
        job: its number.
        name: its name.
        partition: where it runs.
        nodes: the list of its nodes, as SLURM writes it.
        restarts: how often it was queued again.
    """

    job: str
    name: str
    partition: str
    nodes: str
    restarts: int


@dataclass(frozen=True)
class Launch:
    """The launch plan of a run.

    Attributes:
        strategy: name of the strategy, or the class of one that is not itwinai's.
        world_size: number of workers.
        nodes: number of nodes.
        workers_per_node: workers on each.
        device: what the model is on: the GPU's name, or "cpu".
        launcher: who started the workers.
        host: this node.
        slurm: the job, inside of one.
    """

    strategy: str
    world_size: int
    nodes: int
    workers_per_node: int
    device: str
    launcher: str
    host: str
    slurm: Slurm | None


def launch_of(trainer: Trainer) -> Launch:
    """Return the launch plan of a trainer that is set up. Asks no other worker."""
    strategy = trainer.strategy
    environment = getattr(strategy, "cluster_environment", None)
    device = strategy.root_device
    nodes = max(trainer.num_nodes, 1)
    return Launch(
        strategy=strategy_name_of(trainer),
        world_size=trainer.world_size,
        nodes=nodes,
        workers_per_node=max(trainer.world_size // nodes, 1),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        launcher="this process" if environment is None else launcher_name(environment),
        host=socket.gethostname(),
        slurm=_slurm(),
    )


def _slurm() -> Slurm | None:
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    return Slurm(
        job=job,
        name=os.environ.get("SLURM_JOB_NAME", ""),
        partition=os.environ.get("SLURM_JOB_PARTITION", ""),
        nodes=os.environ.get("SLURM_JOB_NODELIST", ""),
        restarts=int(restarts) if restarts.isdigit() else 0,
    )

"""A worker's ranks in its group, and the outer launchers that may have assigned them."""

from __future__ import annotations

import os
import sys
import zlib
from dataclasses import dataclass
from typing import Literal

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from typing_extensions import override

from itwinai.compat.lightning_launching import SrunEnvironment
from itwinai.compat.ray import tune_storage
from itwinai.errors import ConfigurationError
from itwinai.launchers.slurm_job import inside_slurm_step

NOTEBOOK = "ITWINAI_NOTEBOOK"
"""The environment variable by which workers know that a notebook shows what they print."""

WorkerKind = Literal["auto", "fork", "script", "payload"]
"""What the workers of this machine are made of; see `itwinai.launchers.local.LocalLauncher`."""


def in_notebook() -> bool:
    """Return whether this process is a kernel of Jupyter. A process that starts kernels imports ``ipykernel`` too."""
    return "ipykernel.kernelapp" in sys.modules


@dataclass(frozen=True)
class RankInfo:
    """One worker's ranks in its group.

    Attributes:
        rank: global rank, 0 to ``world_size - 1``.
        world_size: number of workers in the group.
        local_rank: rank among the workers on the same node.
        local_world_size: number of workers on this node.
        node_rank: index of the node.
        num_nodes: number of nodes.
        main_address: host name or IP address of rank 0, reachable from all workers.
        main_port: port on ``main_address`` that is free for the group's rendezvous.
        launcher: who started the workers, for the line that announces the run.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    num_nodes: int
    main_address: str
    main_port: int
    launcher: str

    def variables(self) -> dict[str, str]:
        """Return the environment variables by which torch, DeepSpeed and others know these ranks."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "NODE_RANK": str(self.node_rank),
            "GROUP_RANK": str(self.node_rank),
            "MASTER_ADDR": self.main_address,
            "MASTER_PORT": str(self.main_port),
        }


class PlacedEnvironment(ClusterEnvironment):
    """Lightning's view of a `RankInfo`: the worker exists already, so nothing is launched."""

    def __init__(self, rank_info: RankInfo) -> None:
        super().__init__()
        self.rank_info = rank_info

    @property
    @override
    def creates_processes_externally(self) -> bool:
        return True

    @property
    @override
    def main_address(self) -> str:
        return self.rank_info.main_address

    @property
    @override
    def main_port(self) -> int:
        return self.rank_info.main_port

    @staticmethod
    @override
    def detect() -> bool:
        return False  # assigned, never guessed

    @override
    def world_size(self) -> int:
        return self.rank_info.world_size

    def set_world_size(self, size: int) -> None:
        """Do nothing: the launcher of the worker sets the ranks."""

    @override
    def global_rank(self) -> int:
        return self.rank_info.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the launcher of the worker sets the ranks."""

    @override
    def local_rank(self) -> int:
        return self.rank_info.local_rank

    @override
    def node_rank(self) -> int:
        return self.rank_info.node_rank


def find_outer_environment() -> ClusterEnvironment | None:
    """Find the launcher that started this process as one worker of several.

    Ray Train, horovodrun and mpirun come before SLURM, because they are used inside SLURM allocations, where the
    variables of SLURM describe the batch step and not the worker.

    Returns:
        The environment of torchrun, srun, jsrun, mpirun, horovodrun or Ray Train; None when this process was started
        by hand.

    Raises:
        ConfigurationError: mpirun spans several hosts and does not say where rank 0 is.
    """
    rank_info = _ray_train_rank() or _horovodrun_rank() or _mpirun_rank()
    if rank_info is not None:
        return PlacedEnvironment(rank_info)
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    # Without a step there is no srun: an sbatch script or an salloc shell that runs Python itself is one process.
    if inside_slurm_step() and SLURMEnvironment.detect():
        return SrunEnvironment()
    if LSFEnvironment.detect():
        return LSFEnvironment()
    return None


def launcher_name(environment: ClusterEnvironment) -> str:
    """Return the name of the launcher that created the workers of an environment."""
    if isinstance(environment, PlacedEnvironment):
        return environment.rank_info.launcher
    names: dict[type[ClusterEnvironment], str] = {
        TorchElasticEnvironment: "torchrun",
        SrunEnvironment: "srun",
        LSFEnvironment: "jsrun",
        LightningEnvironment: "this process",
    }
    return names.get(type(environment), type(environment).__name__)


def _ray_train_rank() -> RankInfo | None:
    # Inside a Ray Train worker ray is loaded already; if it is not, there is nothing to ask.
    if "ray.train" not in sys.modules or not sys.modules["ray"].is_initialized():
        return None
    if tune_storage() is not None:  # a function of Ray Tune, which has no ranks
        return None
    from ray.train import get_context

    try:
        context = get_context()
        world_size = context.get_world_size()
    except RuntimeError:  # "should only be called inside a train function": this is a driver
        return None
    if not world_size:
        return None
    return RankInfo(
        rank=context.get_world_rank(),
        world_size=world_size,
        local_rank=context.get_local_rank(),
        local_world_size=context.get_local_world_size(),
        node_rank=context.get_node_rank(),
        num_nodes=1 + (world_size - 1) // context.get_local_world_size(),
        main_address=os.environ.get("MASTER_ADDR", "127.0.0.1"),
        main_port=int(os.environ.get("MASTER_PORT", "29500")),
        launcher="Ray Train",
    )


def _horovodrun_rank() -> RankInfo | None:
    if "HOROVOD_RANK" not in os.environ or "HOROVOD_SIZE" not in os.environ:
        return None

    def number(name: str) -> int:
        return int(os.environ[f"HOROVOD_{name}"])

    main_address, main_port = _address_from_environment(
        single_host=number("CROSS_SIZE") == 1,
        job=os.environ.get("HOROVOD_GLOO_RENDEZVOUS_PORT", "") + os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR", ""),
        launcher="horovodrun",
    )
    return RankInfo(
        rank=number("RANK"),
        world_size=number("SIZE"),
        local_rank=number("LOCAL_RANK"),
        local_world_size=number("LOCAL_SIZE"),
        node_rank=number("CROSS_RANK"),
        num_nodes=number("CROSS_SIZE"),
        main_address=main_address,
        main_port=main_port,
        launcher="horovodrun",
    )


# Open MPI; then MPICH and Intel MPI, whose PMI variables srun may set as well.
_MPI_VARIABLES: tuple[dict[str, str], ...] = (
    {
        "rank": "OMPI_COMM_WORLD_RANK",
        "size": "OMPI_COMM_WORLD_SIZE",
        "local_rank": "OMPI_COMM_WORLD_LOCAL_RANK",
        "local_size": "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    {
        "rank": "PMI_RANK",
        "size": "PMI_SIZE",
        "local_rank": "MPI_LOCALRANKID",
        "local_size": "MPI_LOCALNRANKS",
    },
)


def _mpirun_rank() -> RankInfo | None:
    for names in _MPI_VARIABLES:
        if not all(names[key] in os.environ for key in ("rank", "size", "local_rank", "local_size")):
            continue
        if names["rank"] == "PMI_RANK" and inside_slurm_step():
            continue
        rank, size, local_rank, local_size = (
            int(os.environ[names[key]]) for key in ("rank", "size", "local_rank", "local_size")
        )
        main_address, main_port = _address_from_environment(
            single_host=local_size == size,
            # All ranks of one mpirun have the same parent, whose number differs between jobs on a host.
            job=os.environ.get("PMIX_NAMESPACE") or str(os.getppid()),
            launcher="mpirun",
        )
        return RankInfo(
            rank=rank,
            world_size=size,
            local_rank=local_rank,
            local_world_size=local_size,
            node_rank=(rank - local_rank) // local_size,
            num_nodes=-(-size // local_size),
            main_address=main_address,
            main_port=main_port,
            launcher="mpirun",
        )
    return None


def _address_from_environment(single_host: bool, job: str, launcher: str) -> tuple[str, int]:
    """Return rank 0's address and a port, for launchers that hand out neither.

    The port is derived from the job's own name, so that two jobs on one host seldom meet, and it lies below the range
    from which systems take the ports of outgoing connections.
    """
    address = os.environ.get("MASTER_ADDR")
    if address is None:
        if not single_host:
            raise ConfigurationError(
                f"{launcher} started workers on several hosts, but did not say where rank 0 is. Set MASTER_ADDR (and "
                f"MASTER_PORT if 20000 to 32767 are not open) to rank 0's host before {launcher} is called."
            )
        address = "127.0.0.1"
    port = os.environ.get("MASTER_PORT")
    return address, int(port) if port else 20000 + zlib.crc32(job.encode()) % 12768

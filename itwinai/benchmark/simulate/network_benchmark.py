"""Measure latency and bandwidth between real workers: of this machine, or of the job of an outer launcher."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from itwinai.benchmark.simulate.measured_links import MeasuredLinks, read_links
from itwinai.benchmark.simulate.network_worker import measure_in_group, powers_of_two
from itwinai.errors import ConfigurationError, WorkerError
from itwinai.launchers.child_process import ChildProcess

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment

TIMEOUT = 600.0
"""Seconds after which workers are ended."""


def measure_links(workers: Sequence[int] | None = None, backend: str | None = None) -> MeasuredLinks | None:
    """Measure the links between workers.

    Under an outer launcher (torchrun, srun, mpirun) its processes are the workers, and all of them have to call this;
    with several nodes the link between these is measured too. Otherwise the workers are started here.

    Args:
        workers: numbers of workers of a node to measure with; by default 2, 4, ... up to as many as there are GPUs, 2
            and 4 on CPUs, or as many as an outer launcher started.
        backend: of torch.distributed; by default ``nccl`` with two GPUs or more, otherwise ``gloo``.

    Returns:
        The links; None in all processes of an outer launcher but the first.

    Raises:
        ConfigurationError: there are too few GPUs or workers.
        WorkerError: a worker failed; its output is in the message.
    """
    from itwinai.launchers.environment import find_outer_environment

    environment = find_outer_environment()
    if environment is not None and environment.world_size() > 1:
        return _join(environment, workers, backend or ("nccl" if _gpus() else "gloo"))
    backend = backend or ("nccl" if _gpus() >= 2 else "gloo")
    numbers = sorted(set(workers or powers_of_two(_gpus() if backend == "nccl" else 4)))
    if not numbers or numbers[0] < 2:
        raise ConfigurationError("A link needs two workers: measure with 2 or more (--workers 2,4).")
    if backend == "nccl" and numbers[-1] > _gpus():
        raise ConfigurationError(
            f"{numbers[-1]} workers with NCCL need as many GPUs, and this machine has {_gpus()}. Use fewer workers, or "
            "--backend gloo, which measures the links of CPUs."
        )
    return _run_workers(numbers, backend)


def _join(environment: ClusterEnvironment, workers: Sequence[int] | None, backend: str) -> MeasuredLinks | None:
    """Measure in the group that an outer launcher started."""
    os.environ.update(
        MASTER_ADDR=environment.main_address,
        MASTER_PORT=str(environment.main_port),
        RANK=str(environment.global_rank()),
        WORLD_SIZE=str(environment.world_size()),
    )
    return measure_in_group(backend, workers, environment.node_rank(), environment.local_rank())


def _run_workers(workers: Sequence[int], backend: str) -> MeasuredLinks:
    """Start workers on this machine, wait for them, and return what they measured."""
    from itwinai.launchers.environment import RankInfo
    from itwinai.launchers.local import free_port, loopback_interface

    most, port = workers[-1], free_port()
    # Gloo looks its own host name up, and laptops are often unable to resolve theirs.
    common = {"GLOO_SOCKET_IFNAME": loopback_interface(), **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryDirectory(prefix="itwinai-links-") as folder, ExitStack() as ending:
        result = Path(folder, "links.json")
        arguments = [backend, ",".join(map(str, workers)), str(result)]
        command = [sys.executable, "-m", "itwinai.benchmark.simulate.network_worker", *arguments]
        children = []
        for rank in range(most):
            place = RankInfo(rank, most, rank, most, 0, 1, "127.0.0.1", port, "itwinai")
            env, output = {**common, **place.variables()}, Path(folder, f"rank-{rank}.txt")
            children.append(ending.enter_context(ChildProcess(command, output, env=env, tied=True)))
        _wait(children)
        return read_links(result)


def _wait(children: Sequence[ChildProcess]) -> None:
    """Wait until all workers have ended, or one of them has failed."""
    deadline = time.monotonic() + TIMEOUT
    while any(child.code is None for child in children) and not any(child.code for child in children):
        if time.monotonic() > deadline:
            raise WorkerError(
                f"Measuring the links took more than {TIMEOUT:.0f} s. Rank 0 printed:\n{children[0].tail()}"
            )
        time.sleep(0.05)
    for rank, child in enumerate(children):
        if child.code:
            raise WorkerError(
                f"Rank {rank} of the workers that measure the links ended with exit code {child.code}, and printed:\n"
                f"{child.tail() or 'nothing'}"
            )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0

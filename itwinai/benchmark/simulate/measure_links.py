"""Measure latency and bandwidth between real workers: of this machine, or of the job that an outer launcher started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from itwinai.benchmark.simulate.links_file import MeasuredLinks, read_links
from itwinai.errors import ConfigurationError, WorkerError

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment

TIMEOUT = 600.0
"""Seconds after which workers that have not ended are ended."""


def measure_links(workers: Sequence[int] | None = None, backend: str | None = None) -> MeasuredLinks | None:
    """Measure the links between workers.

    Under an outer launcher (torchrun, srun, mpirun) the processes that it has started are the workers, and all of them
    have to call this. With several nodes the link between them is measured too. Otherwise the workers are started here,
    as processes that end with this one.

    Args:
        workers: numbers of workers of a node to measure with; by default 2, 4, ... up to as many as there are GPUs, or
            2 and 4 on CPUs, or as an outer launcher has started.
        backend: of torch.distributed; by default ``nccl`` with two GPUs or more, and otherwise ``gloo``.

    Returns:
        The links; None in processes of an outer launcher but the first.

    Raises:
        ConfigurationError: there are too few GPUs, or too few workers.
        WorkerError: a worker has failed; what it has printed is in the message.
    """
    from itwinai.benchmark.simulate.link_worker import powers_of_two
    from itwinai.launchers.environment import find_outer_environment

    environment = find_outer_environment()
    if environment is not None and environment.world_size() > 1:
        return _join(environment, workers, backend)
    backend = backend or _usual_backend(2)
    numbers = sorted(set(workers or powers_of_two(_gpus() if backend == "nccl" else 4)))
    if not numbers or numbers[0] < 2:
        raise ConfigurationError("A link joins two workers: measure with 2 or more (--workers 2,4).")
    if backend == "nccl" and numbers[-1] > _gpus():
        raise ConfigurationError(
            f"{numbers[-1]} workers over NCCL need as many GPUs, and this machine has {_gpus()}. Ask for fewer "
            "workers, or for the backend gloo, which measures the links of CPUs."
        )
    return _run_workers(numbers, backend)


def _join(environment: ClusterEnvironment, workers: Sequence[int] | None, backend: str | None) -> MeasuredLinks | None:
    """Measure in the group that an outer launcher has started."""
    from itwinai.benchmark.simulate.link_worker import measure_in_group

    os.environ.update(
        MASTER_ADDR=environment.main_address,
        MASTER_PORT=str(environment.main_port),
        RANK=str(environment.global_rank()),
        WORLD_SIZE=str(environment.world_size()),
    )
    local_rank = environment.local_rank()
    return measure_in_group(backend or _usual_backend(1), workers, environment.node_rank(), local_rank)


def _run_workers(workers: Sequence[int], backend: str) -> MeasuredLinks:
    """Start workers on this machine, wait for them, and return what they have measured."""
    from itwinai.launchers.environment import RankInfo
    from itwinai.launchers.local import free_port, loopback_interface

    most, port = workers[-1], free_port()
    # Gloo looks its own host name up, and laptops are often unable to resolve theirs.
    common = {"GLOO_SOCKET_IFNAME": loopback_interface(), **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryDirectory(prefix="itwinai-links-") as folder, ExitStack() as ending:
        result = Path(folder, "links.json")
        arguments = [backend, ",".join(map(str, workers)), str(result)]
        outputs = [Path(folder, f"rank-{rank}.txt") for rank in range(most)]
        processes = []
        for rank, output in enumerate(outputs):
            place = RankInfo(rank, most, rank, most, 0, 1, "127.0.0.1", port, "itwinai")
            with output.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", "itwinai.benchmark.simulate.link_worker", *arguments],
                    env={**common, **place.variables()},
                    stdin=subprocess.PIPE,  # closes when this process is gone, and the workers end with it
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            ending.callback(_end, process)
            processes.append(process)
        _wait(processes, outputs)
        return read_links(result)


def _wait(processes: Sequence[subprocess.Popen[bytes]], outputs: Sequence[Path]) -> None:
    """Wait until all workers have ended, or one of them has failed."""
    deadline = time.monotonic() + TIMEOUT
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):
            break
        if time.monotonic() > deadline:
            raise WorkerError(
                f"The workers that measure the links have not ended within {TIMEOUT:.0f} s. Rank 0 has printed:\n"
                f"{_end_of(outputs[0])}"
            )
        time.sleep(0.05)
    for rank, process in enumerate(processes):
        if code := process.poll():
            raise WorkerError(
                f"Rank {rank} of the workers that measure the links has ended with exit code {code}, and has printed:\n"
                f"{_end_of(outputs[rank])}"
            )


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _end_of(output: Path) -> str:
    return output.read_text(errors="replace")[-4000:].strip() or "nothing"


def _usual_backend(gpus: int) -> str:
    return "nccl" if _gpus() >= gpus else "gloo"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0

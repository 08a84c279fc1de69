"""Measure latency and bandwidth between real workers: of this machine, or of the job of an outer launcher."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from itwinai.benchmark.simulate.measured_links import MeasuredLinks, Timing, fit_link, read_links, write_links
from itwinai.errors import ConfigurationError, WorkerError
from itwinai.launchers.child_process import ChildProcess

if TYPE_CHECKING:
    import torch

SIZES = tuple(2**exponent for exponent in range(10, 27, 2))
"""Bytes: 1 KiB to 64 MiB."""

ROUNDS = 3
"""All groups and sizes are measured this often in turn, so that other load on the machine affects all alike."""

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
        rank, local_rank = environment.global_rank(), environment.local_rank()
        address = f"tcp://{environment.main_address}:{environment.main_port}"
        backend = backend or ("nccl" if _gpus() else "gloo")
        return _join(backend, address, rank, environment.world_size(), environment.node_rank(), local_rank, workers)
    backend = backend or ("nccl" if _gpus() >= 2 else "gloo")
    numbers = sorted(set(workers or powers_of_two(_gpus() if backend == "nccl" else 4)))
    if not numbers or numbers[0] < 2:
        raise ConfigurationError("A link needs two workers: measure with 2 or more (--workers 2,4).")
    if backend == "nccl" and numbers[-1] > _gpus():
        raise ConfigurationError(
            f"{numbers[-1]} workers with NCCL need as many GPUs, and this machine has {_gpus()}. Use fewer workers, or "
            "--backend gloo, which measures the links of CPUs."
        )
    return _start_workers(numbers, backend)


def time_all_reduces(
    settings: Sequence[Sequence[Sequence[int]]],
    device: torch.device,
    rounds: int = ROUNDS,
    sizes: Sequence[int] = SIZES,
) -> list[tuple[Timing, ...]]:
    """Time all-reduces in several settings, one after the other; all workers have to call it.

    Args:
        settings: of each, the ranks of the groups that are busy at the same time; rank 0 is in the first group.
        device: of this worker.
        rounds: how often to repeat all settings and sizes.
        sizes: bytes from each worker.

    Returns:
        The timings of each setting, of the first group; valid on rank 0.
    """
    import torch
    import torch.distributed as dist

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    rank = dist.get_rank()
    # All workers have to take part in making any group.
    handles = [[(ranks, dist.new_group(list(ranks))) for ranks in groups] for groups in settings]
    own = [next((handle for ranks, handle in groups if rank in ranks), None) for groups in handles]
    memory = torch.zeros(max(sizes) // 4, device=device)  # zeros do not grow by being added up
    samples: list[dict[int, list[float]]] = [{size: [] for size in sizes} for _ in settings]
    for _ in range(rounds):
        for handle, times in zip(own, samples, strict=True):
            dist.barrier()  # no other group uses the links now
            if handle is None:
                continue
            for size in sizes:
                repeats = 20 if size <= 2**16 else 10 if size <= 2**20 else 3  # small messages vary more
                for repeat in range(1 + repeats):
                    # Another part of the memory each time: gradients are in no cache either.
                    begin = repeat * size // 4 % (memory.numel() - size // 4 + 1)
                    tensor = memory[begin : begin + size // 4]
                    synchronize()
                    started = time.perf_counter()
                    dist.all_reduce(tensor, group=handle)
                    synchronize()
                    if repeat:  # the first one warms up
                        times[size].append(time.perf_counter() - started)
    dist.barrier()
    return [tuple(Timing(size, median(seconds)) for size, seconds in times.items() if seconds) for times in samples]


def powers_of_two(most: int) -> list[int]:
    """Return 2, 4, ... up to a number."""
    return [2**exponent for exponent in range(1, most.bit_length())]


def _start_workers(numbers: Sequence[int], backend: str) -> MeasuredLinks:
    """Start workers on this machine, wait for them, and return what they measured."""
    from itwinai.launchers.local import loopback_interface

    with tempfile.TemporaryDirectory(prefix="itwinai-links-") as folder:
        # A process of its own starts the workers, so that they do not import the caller's script.
        command = [sys.executable, "-m", __name__, folder, backend, *map(str, numbers)]
        # Gloo looks its own host name up, and laptops are often unable to resolve theirs.
        env = {"GLOO_SOCKET_IFNAME": loopback_interface(), **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with ChildProcess(command, Path(folder, "output.txt"), env=env, tied=True) as child:
            if not child.wait(TIMEOUT):
                raise WorkerError(f"Measuring the links took more than {TIMEOUT:.0f} s. It printed:\n{child.tail()}")
            if child.code:
                raise WorkerError(f"A worker that measures the links failed:\n{child.tail() or 'It printed nothing.'}")
        return read_links(Path(folder, "links.json"))


def _main(folder: str, backend: str, *numbers: str) -> None:
    """Start the workers, and end them once one of them fails or the caller is gone."""
    from torch.multiprocessing.spawn import spawn

    from itwinai.launchers.worker import die_with_caller

    die_with_caller(os.dup(0))
    workers = [int(number) for number in numbers]
    spawn(_work, (folder, backend, workers), nprocs=workers[-1])


def _work(rank: int, folder: str, backend: str, workers: Sequence[int]) -> None:
    links = _join(backend, f"file://{folder}/rendezvous", rank, workers[-1], 0, rank, workers)
    if links is not None:
        write_links(links, Path(folder, "links.json"))


def _join(
    backend: str,
    address: str,
    rank: int,
    world_size: int,
    node_rank: int,
    local_rank: int,
    workers: Sequence[int] | None,
) -> MeasuredLinks | None:
    """Join a process group as one of its workers, measure its links, and leave it; returns them on rank 0 only."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=world_size)
    try:
        return _measure(device, workers, node_rank)
    finally:
        dist.destroy_process_group()


def _measure(device: torch.device, workers: Sequence[int] | None, node_rank: int) -> MeasuredLinks | None:
    import torch.distributed as dist

    from itwinai.launchers.cpu_affinity import own_cores, quota

    found: list[tuple[int, frozenset[int]]] = [(0, frozenset())] * dist.get_world_size()
    dist.all_gather_object(found, (node_rank, own_cores()))
    on_nodes: dict[int, list[int]] = {}
    for rank, (node, _) in enumerate(found):
        on_nodes.setdefault(node, []).append(rank)
    nodes = list(on_nodes.values())
    first = nodes[0]
    numbers = powers_of_two(len(first)) if workers is None else sorted(set(workers))
    if numbers and not 2 <= numbers[0] <= numbers[-1] <= len(first):
        raise ConfigurationError(
            f"The launcher started {len(first)} workers on the first node, so links of {numbers} workers cannot be "
            "measured. Change --workers, or start more."
        )
    settings = [[first[:number]] for number in numbers]
    if len(nodes) > 1:  # every worker with its counterparts on the other nodes, all at once
        settings.append([list(ranks) for ranks in zip(*nodes, strict=False)])
    timed = time_all_reduces(settings, device)
    if dist.get_rank():
        return None
    fitted = [fit_link(len(groups[0]), timings) for groups, timings in zip(settings, timed, strict=True)]
    between = fitted.pop() if len(nodes) > 1 else None
    return MeasuredLinks(
        backend=dist.get_backend(),
        device=device.type,
        cores=min(len(frozenset().union(*(found[rank][1] for rank in first))), quota()),
        workers_per_node=len(first),
        within=tuple(fitted),
        between=between,
    )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""A worker that measures its links: ``python -m itwinai.benchmark.simulate.network_worker BACKEND WORKERS FILE``.

Its rank is in the variables of torch.distributed. Rank 0 writes the links to the file.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from itwinai.benchmark.simulate.measured_links import MeasuredLinks, Timing, fit_link, write_links
from itwinai.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

SIZES = tuple(2**exponent for exponent in range(10, 27, 2))
"""Bytes: 1 KiB to 64 MiB."""

ROUNDS = 3
"""All groups and sizes are measured this often in turn, so that other load on the machine affects all alike."""


def main(argv: Sequence[str]) -> int:
    """Measure the links; ``argv`` is backend, numbers of workers separated by commas, and path of the file."""
    from itwinai.launchers.worker import die_with_caller

    die_with_caller(os.dup(0))
    links = measure_in_group(argv[0], [int(number) for number in argv[1].split(",")], 0, int(os.environ["LOCAL_RANK"]))
    if links is not None:
        write_links(links, argv[2])
    return 0


def measure_in_group(
    backend: str, workers: Sequence[int] | None, node_rank: int, local_rank: int
) -> MeasuredLinks | None:
    """Join the process group of this process's environment variables, measure its links, and leave it.

    Args:
        backend: of torch.distributed.
        workers: numbers of workers of the first node to measure with; by default 2, 4, ... up to all of them.
        node_rank: index of the node of this process.
        local_rank: rank of this process on its node.

    Returns:
        The links on rank 0, None elsewhere.

    Raises:
        ConfigurationError: the first node has too few workers.
    """
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    try:
        return _measure(device, workers, node_rank)
    finally:
        dist.destroy_process_group()


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

    rank = dist.get_rank()
    # All workers have to take part in making any group.
    handles = [[(ranks, dist.new_group(list(ranks))) for ranks in groups] for groups in settings]
    own = [next((handle for ranks, handle in groups if rank in ranks), None) for groups in handles]
    memory = torch.zeros(max(sizes) // 4, device=device)  # zeros do not grow by being added up
    samples: list[dict[int, list[float]]] = [{size: [] for size in sizes} for _ in settings]
    for _ in range(rounds):
        for handle, times in zip(own, samples, strict=True):
            dist.barrier()  # no other group uses the links meanwhile
            if handle is None:
                continue
            for size in sizes:
                for repeat in range(1 + _repeats(size)):
                    # Another part of the memory each time: gradients are in no cache either.
                    begin = repeat * size // 4 % (memory.numel() - size // 4 + 1)
                    tensor = memory[begin : begin + size // 4]
                    _wait(device)
                    started = time.perf_counter()
                    dist.all_reduce(tensor, group=handle)
                    _wait(device)
                    if repeat:  # the first one warms up
                        times[size].append(time.perf_counter() - started)
    dist.barrier()
    return [tuple(Timing(size, median(seconds)) for size, seconds in times.items() if seconds) for times in samples]


def _measure(device: torch.device, workers: Sequence[int] | None, node_rank: int) -> MeasuredLinks | None:
    import torch.distributed as dist

    from itwinai.launchers.cpu_affinity import own_cores, quota

    places: list[tuple[int, frozenset[int]]] = [(0, frozenset())] * dist.get_world_size()
    dist.all_gather_object(places, (node_rank, own_cores()))
    on_nodes: dict[int, list[int]] = {}
    for rank, (node, _) in enumerate(places):
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
        cores=min(len(frozenset().union(*(places[rank][1] for rank in first))), quota()),
        workers_per_node=len(first),
        within=tuple(fitted),
        between=between,
    )


def powers_of_two(most: int) -> list[int]:
    """Return 2, 4, ... up to a number."""
    return [2**exponent for exponent in range(1, most.bit_length())]


def _repeats(size: int) -> int:
    """Return how often to measure a size in a round: small messages vary more, and take less time."""
    return 20 if size <= 2**16 else 10 if size <= 2**20 else 3


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

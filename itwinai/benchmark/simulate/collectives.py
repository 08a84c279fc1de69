"""Time of collective operations: ring, tree and hierarchical all-reduce, reduce-scatter, all-gather."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from itwinai.benchmark.simulate.topology import Link, Topology
from itwinai.errors import ConfigurationError

Algorithm = Literal["ring", "tree", "hierarchical", "best"]
"""``best`` is the fastest of the others for the bytes at hand, as NCCL chooses."""

ALGORITHMS: tuple[str, ...] = get_args(Algorithm)


@dataclass(frozen=True)
class Cost:
    """Seconds of an operation: ``latency`` does not depend on the bytes, ``transfer`` is proportional to them."""

    latency: float = 0.0
    transfer: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the whole operation."""
        return self.latency + self.transfer

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.latency + other.latency, self.transfer + other.transfer)

    def __mul__(self, factor: float) -> Cost:
        return Cost(self.latency * factor, self.transfer * factor)


def all_reduce(size: float, workers: int, topology: Topology, algorithm: Algorithm = "best") -> Cost:
    """Return the time until every worker has the sum of ``size`` bytes from each worker."""
    return _cheapest({"ring": _ring, "tree": _tree, "hierarchical": _hierarchical}, size, workers, topology, algorithm)


def reduce_scatter(size: float, workers: int, topology: Topology, algorithm: Algorithm = "best") -> Cost:
    """Return the time until every worker has its part of the sum: half of a ring or hierarchical all-reduce.

    A tree ends with the whole sum at its root, so ``tree`` uses the ring. An all-gather sends the same messages in
    reverse.
    """
    ways = {"ring": _ring, "tree": _ring, "hierarchical": _hierarchical_rings}
    return _cheapest(ways, size, workers, topology, algorithm) * 0.5


all_gather = reduce_scatter


def ring(size: float, workers: int, link: Link) -> Cost:
    """Return the time of a ring all-reduce: ``2 (N - 1) latency + 2 (N - 1) / N * size / bandwidth``.

    Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", Journal of Parallel and
    Distributed Computing 2009. Adding up is part of the bandwidth.
    """
    steps = 2 * (workers - 1)
    return Cost(steps * link.latency, steps / workers * size / link.bandwidth)


def double_tree(size: float, workers: int, link: Link) -> Cost:
    """Return the time of an all-reduce by two binary trees: ``2 ceil(log2 N) latency + 2 size / bandwidth``.

    Sanders, Speck and Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", Parallel Computing
    2009: each tree takes half of the bytes, and the inner workers of one are the leaves of the other. The time to fill
    the pipeline is left out. NCCL has it since version 2.4.
    """
    if workers == 1:
        return Cost()
    return Cost(2 * math.ceil(math.log2(workers)) * link.latency, 2 * size / link.bandwidth)


def _ring(size: float, workers: int, topology: Topology) -> Cost:
    """One ring over all workers: each step waits for the slowest link."""
    within = ring(size, workers, topology.link_within(topology.local(workers)))
    if topology.nodes(workers) == 1:
        return within
    between = ring(size, workers, topology.link_between())
    return between if topology.workers_per_node == 1 else max(within, between, key=lambda cost: cost.total)


def _tree(size: float, workers: int, topology: Topology) -> Cost:
    """Two trees over all workers, with the workers of each node as a branch."""
    local, nodes = topology.local(workers), topology.nodes(workers)
    within = double_tree(size, local, topology.link_within(local))
    if nodes == 1:
        return within
    between = double_tree(size, nodes, topology.link_between())
    return Cost(within.latency + between.latency, max(within.transfer, between.transfer))


def _hierarchical(size: float, workers: int, topology: Topology, trees: bool = True) -> Cost:
    """Reduce-scatter within each node, all-reduce between the nodes, all-gather within each node.

    Each of the k workers of a node exchanges 1/k of the bytes with those of other nodes, all k at once, by a ring or by
    trees: trees are faster with many nodes.
    """
    local, nodes = topology.local(workers), topology.nodes(workers)
    within = ring(size, local, topology.link_within(local))
    if nodes == 1:
        return within
    ways = (ring, double_tree) if trees else (ring,)
    link = topology.link_between()
    return within + min((way(size / local, nodes, link) for way in ways), key=lambda cost: cost.total)


def _hierarchical_rings(size: float, workers: int, topology: Topology) -> Cost:
    return _hierarchical(size, workers, topology, trees=False)


def _cheapest(
    ways: Mapping[str, Callable[[float, int, Topology], Cost]],
    size: float,
    workers: int,
    topology: Topology,
    algorithm: Algorithm,
) -> Cost:
    if workers < 1:
        raise ConfigurationError(f"A collective operation needs at least one worker; got {workers}.")
    if workers == 1:
        return Cost()
    if algorithm == "best":
        return min((way(size, workers, topology) for way in ways.values()), key=lambda cost: cost.total)
    if algorithm not in ways:
        raise ConfigurationError(f"There is no algorithm '{algorithm}'. Choose one of {', '.join(ALGORITHMS)}.")
    return ways[algorithm](size, workers, topology)

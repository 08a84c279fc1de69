"""How long collective operations take, by the number of workers, the bytes and the links."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from itwinai.benchmark.simulate.links import Link, Topology
from itwinai.errors import ConfigurationError

Algorithm = Literal["ring", "tree", "hierarchical", "best"]
"""``best`` is whichever of the others takes the least time for the bytes at hand, as NCCL chooses."""

ALGORITHMS: tuple[str, ...] = get_args(Algorithm)


@dataclass(frozen=True)
class Cost:
    """Seconds of an operation.

    Attributes:
        latency: that do not depend on the bytes.
        transfer: that are proportional to the bytes.
    """

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
    """Return the time until every worker has the sum.

    Args:
        size: bytes that each worker contributes.
        workers: how many take part.
        topology: what joins them.
        algorithm: how they go about it.
    """
    return _cheapest({"ring": _ring, "tree": _tree, "hierarchical": _hierarchical}, size, workers, topology, algorithm)


def reduce_scatter(size: float, workers: int, topology: Topology, algorithm: Algorithm = "best") -> Cost:
    """Return the time until every worker has its part of the sum: half of an all-reduce by ring or by hierarchy.

    A tree ends with the whole sum at its root, so there is none for this; with ``tree`` it goes round the ring.

    Args:
        size: bytes that each worker contributes.
        workers: how many take part.
        topology: what joins them.
        algorithm: how they go about it.
    """
    ways = {"ring": _ring, "tree": _ring, "hierarchical": _hierarchical_rings}
    return _cheapest(ways, size, workers, topology, algorithm) * 0.5


def all_gather(size: float, workers: int, topology: Topology, algorithm: Algorithm = "best") -> Cost:
    """Return the time until every worker has the parts of all: the same messages as a reduce-scatter, backwards.

    Args:
        size: bytes of all parts together.
        workers: how many take part.
        topology: what joins them.
        algorithm: how they go about it.
    """
    return reduce_scatter(size, workers, topology, algorithm)


def ring(size: float, workers: int, link: Link) -> Cost:
    """Return the time of an all-reduce round a ring: ``2 (N - 1) latency + 2 (N - 1) / N * size / bandwidth``.

    Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", Journal of Parallel and
    Distributed Computing 2009. Adding up is part of the bandwidth.
    """
    steps = 2 * (workers - 1)
    return Cost(steps * link.latency, steps / workers * size / link.bandwidth)


def double_tree(size: float, workers: int, link: Link) -> Cost:
    """Return the time of an all-reduce by two binary trees: ``2 ceil(log2 N) latency + 2 size / bandwidth``.

    Sanders, Speck and Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", Parallel Computing
    2009: each tree takes one half of the bytes, and the inner workers of one are the leaves of the other. The bytes
    flow in a pipeline, whose filling is left out. NCCL has it since version 2.4.
    """
    if workers == 1:
        return Cost()
    return Cost(2 * math.ceil(math.log2(workers)) * link.latency, 2 * size / link.bandwidth)


def _ring(size: float, workers: int, topology: Topology) -> Cost:
    """Return the time of one ring over all workers, in which each step waits for the slowest link."""
    within = ring(size, workers, topology.link_within(topology.local(workers)))
    if topology.nodes(workers) == 1:
        return within
    between = ring(size, workers, topology.link_between())
    if topology.workers_per_node == 1:
        return between
    return max(within, between, key=lambda cost: cost.total)


def _tree(size: float, workers: int, topology: Topology) -> Cost:
    """Return the time of two trees, of which every node's workers are a branch."""
    local, nodes = topology.local(workers), topology.nodes(workers)
    within = double_tree(size, local, topology.link_within(local))
    if nodes == 1:
        return within
    between = double_tree(size, nodes, topology.link_between())
    return Cost(within.latency + between.latency, max(within.transfer, between.transfer))


def _hierarchical(size: float, workers: int, topology: Topology) -> Cost:
    """Return the time of a reduce-scatter in each node, all-reduces between the nodes, and an all-gather in each node.

    Each of the k workers of a node exchanges 1/k of the bytes with those of other nodes, all k at once, round a ring or
    by trees: the latter are faster for many nodes.
    """
    within, between = _levels(size, workers, topology)
    if topology.nodes(workers) == 1:
        return within
    local, nodes = topology.local(workers), topology.nodes(workers)
    trees = double_tree(size / local, nodes, topology.link_between())
    return within + min(between, trees, key=lambda cost: cost.total)


def _hierarchical_rings(size: float, workers: int, topology: Topology) -> Cost:
    """Return the same with rings only, of which a reduce-scatter is one half."""
    within, between = _levels(size, workers, topology)
    return within + between


def _levels(size: float, workers: int, topology: Topology) -> tuple[Cost, Cost]:
    """Return the time of rings within the nodes, and of rings between them for each worker's part."""
    local, nodes = topology.local(workers), topology.nodes(workers)
    within = ring(size, local, topology.link_within(local))
    return within, Cost() if nodes == 1 else ring(size / local, nodes, topology.link_between())


def _cheapest(
    ways: Mapping[str, Callable[[float, int, Topology], Cost]],
    size: float,
    workers: int,
    topology: Topology,
    algorithm: Algorithm,
) -> Cost:
    if workers < 1:
        raise ConfigurationError(f"At least one worker takes part in an operation, and not {workers}.")
    if workers == 1:
        return Cost()
    if algorithm == "best":
        return min((way(size, workers, topology) for way in ways.values()), key=lambda cost: cost.total)
    if algorithm not in ways:
        raise ConfigurationError(f"There is no algorithm '{algorithm}': take one of {', '.join(ALGORITHMS)}.")
    return ways[algorithm](size, workers, topology)

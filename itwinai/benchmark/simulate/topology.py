"""Latency and bandwidth of the links between workers, within a node and between nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from itwinai.errors import ConfigurationError


@dataclass(frozen=True)
class Link:
    """A link between two workers: a message of M bytes takes ``latency + M / bandwidth`` seconds.

    The model of Hockney, "The communication challenge for MPP: Intel Paragon and Meiko CS-2", Parallel Computing 1994.

    Attributes:
        latency: seconds for an empty message.
        bandwidth: bytes per second that one worker sends while all workers send.
    """

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        if not 0 <= self.latency < math.inf:
            raise ConfigurationError(f"The latency of a link must be at least 0 seconds; got {self.latency}.")
        if not self.bandwidth > 0:
            raise ConfigurationError(f"The bandwidth of a link must be more than 0 bytes/s; got {self.bandwidth}.")


@dataclass(frozen=True)
class Topology:
    """Nodes of equal size, filled one after the other.

    Attributes:
        workers_per_node: most workers on a node.
        within: link between the workers of a node.
        between: link between nodes; None with one node. Its bandwidth is that of one worker while all workers of its
            node send: that of a network card if each worker has one, else its share of the node's card.
        within_measured: number of workers on a node and their link, as measured with that many at once; ascending.
            More workers share a node's memory and cores, so each of them has less. Other numbers use the nearest
            smaller one, or ``within`` if there is none.
    """

    workers_per_node: int
    within: Link
    between: Link | None = None
    within_measured: tuple[tuple[int, Link], ...] = ()

    def __post_init__(self) -> None:
        if self.workers_per_node < 1:
            raise ConfigurationError(f"A node has at least one worker; got {self.workers_per_node}.")

    @classmethod
    def flat(cls, link: Link) -> Topology:
        """Return a topology with the same link between any two workers: each is a node of its own."""
        return cls(1, link, link)

    @property
    def most_workers(self) -> float:
        """The most workers there can be; infinite if the link between nodes is known."""
        return math.inf if self.between is not None else self.workers_per_node

    def local(self, workers: int) -> int:
        """Return how many of these workers share a node."""
        return min(workers, self.workers_per_node)

    def nodes(self, workers: int) -> int:
        """Return how many nodes these workers fill."""
        return -(-workers // self.workers_per_node)

    def link_within(self, workers: int) -> Link:
        """Return the link between that many workers of one node."""
        return next((link for number, link in reversed(self.within_measured) if number <= workers), self.within)

    def link_between(self) -> Link:
        """Return the link between nodes.

        Raises:
            ConfigurationError: it is not known.
        """
        if self.between is None:
            raise ConfigurationError(
                f"More than {self.workers_per_node} workers need several nodes, and the link between nodes is not "
                "known. Give --node-latency and --node-bandwidth, measure it in a job of two nodes, or use fewer "
                "workers."
            )
        return self.between

"""What joins the workers: latency and bandwidth within a node and between nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from itwinai.errors import ConfigurationError


@dataclass(frozen=True)
class Link:
    """A way from one worker to another: a message of M bytes takes ``latency + M / bandwidth`` seconds.

    The model of Hockney, "The communication challenge for MPP: Intel Paragon and Meiko CS-2", Parallel Computing 1994.

    Attributes:
        latency: seconds for a message of no bytes.
        bandwidth: bytes per second that one worker sends while all workers send.
    """

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        if not 0 <= self.latency < math.inf:
            raise ConfigurationError(f"A link's latency is 0 or more seconds, and not {self.latency}.")
        if not self.bandwidth > 0:
            raise ConfigurationError(f"A link's bandwidth is more than 0 bytes per second, and not {self.bandwidth}.")


@dataclass(frozen=True)
class Topology:
    """Nodes of equal size, filled one after the other.

    Attributes:
        workers_per_node: most workers on a node.
        within: joins the workers of a node.
        between: joins the nodes. Its bandwidth is that of one worker while all workers of its node use it too: with a
            network card for each worker that of a card, with one card per node its share of it. None with one node.
        within_measured: number of workers of a node and their link, as measured with so many at once; ascending. More
            workers share a node's memory and cores, so each of them has less. Numbers that are not there take the
            nearest smaller one that is; fewer than all of these take ``within``.
    """

    workers_per_node: int
    within: Link
    between: Link | None = None
    within_measured: tuple[tuple[int, Link], ...] = ()

    def __post_init__(self) -> None:
        if self.workers_per_node < 1:
            raise ConfigurationError(f"A node has at least one worker, and not {self.workers_per_node}.")

    @classmethod
    def flat(cls, link: Link) -> Topology:
        """Return a topology in which the same link joins any two workers: each is a node of its own."""
        return cls(1, link, link)

    @property
    def most_workers(self) -> float:
        """How many workers there can be; infinite if the nodes are joined."""
        return math.inf if self.between is not None else self.workers_per_node

    def local(self, workers: int) -> int:
        """Return how many of some workers share a node."""
        return min(workers, self.workers_per_node)

    def nodes(self, workers: int) -> int:
        """Return how many nodes some workers fill."""
        return -(-workers // self.workers_per_node)

    def link_within(self, workers: int) -> Link:
        """Return the link of so many workers on one node."""
        fitting = [link for number, link in self.within_measured if number <= workers]
        return fitting[-1] if fitting else self.within

    def link_between(self) -> Link:
        """Return the link between nodes.

        Raises:
            ConfigurationError: nothing is known of it.
        """
        if self.between is None:
            raise ConfigurationError(
                f"More than {self.workers_per_node} workers need several nodes, and nothing is known of the link "
                "between nodes. Give its latency and bandwidth (--node-latency, --node-bandwidth), measure it in a "
                "job of two nodes, or ask for fewer workers."
            )
        return self.between

"""What was measured of the links, as a file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itwinai.benchmark.simulate.fit import FittedLink, Timing
from itwinai.benchmark.simulate.links import Link, Topology
from itwinai.errors import ConfigurationError
from itwinai.io.atomic import write_whole
from itwinai.io.versioned_json import reading, versioned

VERSION = 1
"""Of the format."""


@dataclass(frozen=True)
class MeasuredLinks:
    """The links of a machine.

    Attributes:
        backend: of torch.distributed, by which the workers were joined.
        device: what the bytes lay on: ``cpu`` or ``cuda``.
        cores: that the workers of a node could use together.
        workers_per_node: workers that there were on the first node.
        within: of one node, by number of workers, ascending.
        between: of several nodes, while all their workers send at once; None if there was one node only. Its number of
            workers is that of the nodes.
    """

    backend: str
    device: str
    cores: float
    workers_per_node: int
    within: tuple[FittedLink, ...]
    between: FittedLink | None = None

    def topology(self, workers_per_node: int | None = None) -> Topology:
        """Return what joins the workers.

        Args:
            workers_per_node: most workers on a node; by default as many as there were when the links were measured.

        Raises:
            ConfigurationError: several workers share a node, and their link was not measured.
        """
        most = workers_per_node or self.workers_per_node
        between = None if self.between is None else self.between.link
        if self.within:
            links = tuple((fitted.workers, fitted.link) for fitted in self.within)
            return Topology(most, links[0][1], between, links)
        if between is None or most > 1:
            raise ConfigurationError(
                f"These links were measured with one worker on each node, and {most} shall share one. Measure with two "
                "or more workers on a node."
            )
        return Topology.flat(between)


def write_links(links: MeasuredLinks, path: str | os.PathLike[str]) -> None:
    """Write links as JSON; a file of that name is replaced as a whole.

    Times are in seconds, bandwidths in bytes per second.

    Raises:
        OSError: it could not be written; the old file is still there.
    """
    plain = {"version": VERSION, **dataclasses.asdict(links)}
    write_whole(Path(path), json.dumps(plain, indent=1) + "\n")


def read_links(path: str | os.PathLike[str]) -> MeasuredLinks:
    """Return the links that `write_links` has written.

    Raises:
        ConfigurationError: there is no such file, or it is none of these.
    """
    name = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"{name} cannot be read ({error.strerror}). `itwinai benchmark links -o {name}` writes it."
        ) from None
    with reading(f"{name} is not what `itwinai benchmark links` writes"):
        return links_from_plain(versioned(text, VERSION, name, "Measure the links again."))


def links_from_plain(plain: Mapping[str, Any]) -> MeasuredLinks:
    """Return the links of which `dataclasses.asdict` has made words of JSON."""
    within = tuple(_fitted(one) for one in plain["within"])
    between = plain["between"]
    return MeasuredLinks(**{**plain, "within": within, "between": between and _fitted(between)})


def _fitted(plain: Mapping[str, Any]) -> FittedLink:
    timings = tuple(Timing(**timing) for timing in plain["timings"])
    return FittedLink(plain["workers"], Link(**plain["link"]), timings)

"""Links as `itwinai benchmark links` measures them: fitted to the times of all-reduces, and kept in a JSON file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from itwinai.benchmark.simulate.collectives import ring
from itwinai.benchmark.simulate.topology import Link, Topology
from itwinai.errors import ConfigurationError
from itwinai.io.atomic import write_whole
from itwinai.io.versioned_json import reading, versioned

VERSION = 1
"""Of the file format."""


@dataclass(frozen=True)
class Timing:
    """The median time of an all-reduce: ``size`` bytes from each worker take ``seconds``."""

    size: int
    seconds: float


@dataclass(frozen=True)
class FittedLink:
    """A link and the timings it was fitted to.

    Attributes:
        workers: that took part in the all-reduces.
        link: latency and bandwidth.
        timings: ascending by size.
    """

    workers: int
    link: Link
    timings: tuple[Timing, ...]

    def predicted(self, timing: Timing) -> float:
        """Return the seconds that the fitted link predicts for an all-reduce."""
        return ring(timing.size, self.workers, self.link).total

    @property
    def errors(self) -> tuple[float, ...]:
        """Relative error of the fit by timing; positive if it predicts more than was measured."""
        return tuple(self.predicted(timing) / timing.seconds - 1 for timing in self.timings)


def fit_link(workers: int, timings: Sequence[Timing]) -> FittedLink:
    """Fit latency and bandwidth to the time of a ring: ``2 (N - 1) latency + 2 (N - 1) / N * size / bandwidth``.

    It is linear in latency and 1 / bandwidth. Least squares of the relative errors, so that small messages count as
    much as large ones. A latency below 0 becomes 0.

    Args:
        workers: that took part in the all-reduces.
        timings: of at least two sizes.

    Raises:
        ConfigurationError: large all-reduces were no slower than small ones, or there are too few timings.
    """
    steps = 2 * (workers - 1)
    ordered = tuple(sorted(timings, key=lambda timing: timing.size))
    if workers < 2 or len({timing.size for timing in ordered}) < 2:
        raise ConfigurationError("Fitting a link needs all-reduces of at least two workers and two sizes.")
    # Each row is (messages, bytes that a worker sends) / seconds; times (latency, 1 / bandwidth) it should be 1.
    rows = np.array([(steps / one.seconds, steps / workers * one.size / one.seconds) for one in ordered])
    scale = np.linalg.norm(rows, axis=0)  # bytes are millions of times larger than messages
    latency, inverse = np.linalg.lstsq(rows / scale, np.ones(len(rows)))[0] / scale
    if latency < 0:
        latency, inverse = 0.0, rows[:, 1].sum() / scale[1] ** 2
    if inverse <= 0:
        raise ConfigurationError(
            "Large all-reduces took no more time than small ones, so the bandwidth cannot be fitted. Other programs "
            "probably kept this machine busy: measure again."
        )
    return FittedLink(workers, Link(float(latency), float(1 / inverse)), ordered)


@dataclass(frozen=True)
class MeasuredLinks:
    """The links of a machine.

    Attributes:
        backend: of torch.distributed.
        device: where the bytes were: ``cpu`` or ``cuda``.
        cores: that the workers of a node could use together.
        workers_per_node: workers on the first node.
        within: links within a node, by number of workers, ascending.
        between: link between nodes while all their workers send; None with one node. Its number of workers is the
            number of nodes.
    """

    backend: str
    device: str
    cores: float
    workers_per_node: int
    within: tuple[FittedLink, ...]
    between: FittedLink | None = None

    def topology(self, workers_per_node: int | None = None) -> Topology:
        """Return the topology with up to ``workers_per_node`` workers on a node, by default as many as were measured.

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
                f"These links were measured with one worker per node, but {most} are to share a node. Measure them "
                "with two or more workers on a node."
            )
        return Topology.flat(between)


def write_links(links: MeasuredLinks, path: str | os.PathLike[str]) -> None:
    """Write links as JSON, in seconds and bytes per second; an existing file is replaced as a whole."""
    write_whole(Path(path), json.dumps({"version": VERSION, **dataclasses.asdict(links)}, indent=1) + "\n")


def read_links(path: str | os.PathLike[str]) -> MeasuredLinks:
    """Return the links of a file that `write_links` wrote.

    Raises:
        ConfigurationError: the file cannot be read, or has no links in it.
    """
    name = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"{name} cannot be read ({error.strerror}). `itwinai benchmark links -o {name}` writes it."
        ) from None
    with reading(f"{name} is not what `itwinai benchmark links` writes"):
        plain = versioned(text, VERSION, name, "Measure the links again.")
        within, between = tuple(map(_fitted, plain["within"])), plain["between"]
        return MeasuredLinks(**{**plain, "within": within, "between": between and _fitted(between)})


def _fitted(plain: Mapping[str, Any]) -> FittedLink:
    timings = tuple(Timing(**timing) for timing in plain["timings"])
    return FittedLink(plain["workers"], Link(**plain["link"]), timings)

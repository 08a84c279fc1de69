"""Latency and bandwidth of a link, from how long all-reduces of several sizes take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from itwinai.benchmark.simulate.collectives import ring
from itwinai.benchmark.simulate.links import Link
from itwinai.errors import ConfigurationError


@dataclass(frozen=True)
class Timing:
    """An all-reduce.

    Attributes:
        size: bytes that each worker contributes.
        seconds: that it takes, as a median.
    """

    size: int
    seconds: float


@dataclass(frozen=True)
class FittedLink:
    """A link, and what it was fitted to.

    Attributes:
        workers: how many took part in the all-reduces.
        link: latency and bandwidth.
        timings: ascending by size.
    """

    workers: int
    link: Link
    timings: tuple[Timing, ...]

    def predicted(self, timing: Timing) -> float:
        """Return the seconds that the fitted link gives for an all-reduce."""
        return ring(timing.size, self.workers, self.link).total

    @property
    def errors(self) -> tuple[float, ...]:
        """How much more than measured the fitted link gives, as a share of it, by timing."""
        return tuple(self.predicted(timing) / timing.seconds - 1 for timing in self.timings)

    @property
    def median_error(self) -> float:
        """Median size of the errors."""
        return median(map(abs, self.errors))

    @property
    def largest_error(self) -> float:
        """Size of the largest error."""
        return max(map(abs, self.errors))


def fit_link(workers: int, timings: Sequence[Timing]) -> FittedLink:
    """Fit the formula of the ring, ``2 (N - 1) latency + 2 (N - 1) / N * size / bandwidth``.

    It is linear in latency and 1 / bandwidth: the squares of the relative errors are least, so that small messages
    count as much as large ones. If the best latency is below 0, it is 0.

    Args:
        workers: how many took part in the all-reduces.
        timings: of at least two sizes.

    Raises:
        ConfigurationError: large all-reduces took no more time than small ones, or there are too few of them.
    """
    steps = 2 * (workers - 1)
    ordered = tuple(sorted(timings, key=lambda timing: timing.size))
    if workers < 2 or len({timing.size for timing in ordered}) < 2:
        raise ConfigurationError("A link is fitted to all-reduces of at least two workers and two sizes.")
    # Each row is (steps, bytes that a worker sends) / seconds, and shall be 1 when multiplied with the solution.
    rows = [(steps / one.seconds, steps / workers * one.size / one.seconds) for one in ordered]
    aa, bb, ab = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (1, 1), (0, 1)))
    a, b = (sum(row[i] for row in rows) for i in (0, 1))
    determinant = aa * bb - ab * ab
    latency, inverse = (bb * a - ab * b) / determinant, (aa * b - ab * a) / determinant
    if latency < 0:
        latency, inverse = 0.0, b / bb
    if inverse <= 0:
        raise ConfigurationError(
            "Large all-reduces took no more time than small ones, so that no bandwidth can be told. Something else "
            "must have kept this machine busy: measure again."
        )
    return FittedLink(workers, Link(latency, 1 / inverse), ordered)

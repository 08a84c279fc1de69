"""What is kept of quantities that are sampled for hours: mean, peak, and a course that does not grow."""

from __future__ import annotations

import threading
from dataclasses import dataclass

POINTS = 512
"""Most points of a course: more than a picture can show."""


@dataclass(frozen=True)
class Quantity:
    """What is known of one quantity at the end.

    Attributes:
        mean: over time.
        peak: the highest sample.
        samples: how many there were.
        seconds: the time that they cover.
        course: seconds since the start, and value; each of them the mean over a stretch of a long run.
    """

    mean: float
    peak: float
    samples: int
    seconds: float
    course: tuple[tuple[float, float], ...]


class Downsampler:
    """Points over time, of which neighbors are joined when there are too many.

    Args:
        limit: most points, an even number.
    """

    def __init__(self, limit: int = POINTS) -> None:
        self._limit = limit
        self._points: list[tuple[float, float]] = []
        self._joined = 1  # samples in each point
        self._open: list[tuple[float, float]] = []

    def add(self, at: float, value: float) -> None:
        """Add a sample."""
        self._open.append((at, value))
        if len(self._open) < self._joined:
            return
        self._points.append(_middle(self._open))
        self._open = []
        if len(self._points) > self._limit:
            pairs = zip(self._points[::2], self._points[1::2], strict=False)
            rest = self._points[len(self._points) // 2 * 2 :]
            self._points = [_middle([first, second]) for first, second in pairs]
            self._joined *= 2
            self._open = rest  # half of the next point

    def points(self) -> tuple[tuple[float, float], ...]:
        """Return the points, in their order."""
        return (*self._points, *([_middle(self._open)] if self._open else []))


def _middle(points: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(at for at, _ in points) / len(points), sum(value for _, value in points) / len(points)


class _Kept:
    """What is kept of one quantity."""

    def __init__(self, began: float) -> None:
        self.last_at = began
        self.samples = 0
        self.weight = self.weighted = 0.0
        self.peak = -float("inf")
        self.last = 0.0
        self.course = Downsampler()
        self.recent_weight = self.recent_weighted = 0.0
        self.recent = False

    def add(self, value: float, at: float, began: float) -> None:
        # A sample stands for the time since the one before.
        weight = max(at - self.last_at, 0.0)
        self.last_at, self.last = at, value
        self.samples += 1
        self.weight += weight
        self.weighted += weight * value
        self.peak = max(self.peak, value)
        self.course.add(at - began, value)
        self.recent_weight += weight
        self.recent_weighted += weight * value
        self.recent = True

    def mean(self) -> float:
        return self.weighted / self.weight if self.weight > 0 else self.last

    def take_recent(self) -> float:
        mean = self.recent_weighted / self.recent_weight if self.recent_weight > 0 else self.last
        self.recent_weight = self.recent_weighted = 0.0
        self.recent = False
        return mean


class Recorder:
    """Stores samples; other threads than the one that adds may read them.

    Args:
        began: when sampling began, by the monotonic clock.

    Attributes:
        fresh: whether there are samples since `take_means` was called.
    """

    def __init__(self, began: float) -> None:
        self.began = began
        self.fresh = False
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()

    def add(self, quantity: str, value: float, at: float) -> None:
        """Take a sample."""
        with self._lock:
            kept = self._kept.get(quantity)
            if kept is None:
                kept = self._kept[quantity] = _Kept(self.began)
            kept.add(value, at, self.began)

    def take_means(self) -> dict[str, float]:
        """Return the means since the last call, of the quantities that have been sampled since."""
        with self._lock:
            self.fresh = False
            return {name: kept.take_recent() for name, kept in self._kept.items() if kept.recent}

    def quantities(self) -> dict[str, Quantity]:
        """Return the series of every sampled quantity."""
        with self._lock:
            return {
                name: Quantity(kept.mean(), kept.peak, kept.samples, kept.weight, kept.course.points())
                for name, kept in self._kept.items()
            }

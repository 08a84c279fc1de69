"""Keep in memory what is logged, for the curves of a summary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

KEPT = 2000
"""Most points of a curve. When there are more, every second one is left out, and from then on every second value."""


@dataclass
class Curve:
    """The values of a metric.

    Attributes:
        steps: the step of each point.
        values: the value of each point.
        last: the last value, also if it is not a point.
        lowest: the lowest value, and its step.
        highest: the highest value, and its step.
    """

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    last: float = math.nan
    lowest: tuple[float, int] = (math.inf, 0)
    highest: tuple[float, int] = (-math.inf, 0)
    _stride: int = 1
    _seen: int = 0

    def add(self, step: int, value: float) -> None:
        """Add a value."""
        self.last = value
        self.lowest = min(self.lowest, (value, step))
        self.highest = max(self.highest, (value, step))
        if self._seen % self._stride == 0:
            self.steps.append(step)
            self.values.append(value)
            if len(self.steps) > KEPT:
                self.steps, self.values = self.steps[::2], self.values[::2]
                self._stride *= 2
        self._seen += 1


class Recorder(Logger):
    """A logger that keeps the values of rank 0 in memory, a bounded number of points of each."""

    def __init__(self) -> None:
        super().__init__()
        self.curves: dict[str, Curve] = {}

    @property
    def name(self) -> str:
        """The name, for those who ask all loggers."""
        return "summary"

    @property
    def version(self) -> str:
        """No version: it keeps no files."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run has its configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep values."""
        for name, value in metrics.items():
            if name != "epoch":
                self.curves.setdefault(name, Curve()).add(step or 0, float(value))

"""How the values of an objective are laid out: so that the good ones can be told apart, whatever the worst are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from itwinai.reporting.plotting import axis_limits, mark_round_numbers
from itwinai.reporting.search.ranking import sign_of
from itwinai.trials.records import Mode, Objective

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG_SPAN: dict[Mode, float] = {"min": 10.0, "max": 100.0}
"""Largest over smallest value from which on the axis is logarithmic: earlier for what shall be low, where that sets the
good values apart, than for what shall be high, where it draws them together."""

FAR = 1.5
"""How far beyond nine tenths of the values others are still shown, in lengths of these nine tenths."""


@dataclass(frozen=True)
class Spread:
    """An axis of values.

    Attributes:
        log: whether it is logarithmic.
        low: its lower end.
        high: its upper end.
        hidden: how many values lie beyond the ends: those of trials that went astray.
    """

    log: bool
    low: float
    high: float
    hidden: int

    def apply(self, axes: Axes, vertical: bool = True) -> None:
        """Set the axis of a picture."""
        low, high = axis_limits((self.low, self.high), log=self.log)
        scale = "log" if self.log else "linear"
        if vertical:
            axes.set(yscale=scale, ylim=(low, high))
        else:
            axes.set(xscale=scale, xlim=(low, high))
        if self.log:
            mark_round_numbers(axes.yaxis if vertical else axes.xaxis, low, high)

    def place(self, value: float) -> float:
        """Return where a value stands, from 0 to 1; those beyond the ends stand at the ends."""
        if self.high <= self.low:
            return 0.5
        at = min(max(value, self.low), self.high)
        if self.log:
            return math.log(at / self.low) / math.log(self.high / self.low)
        return (at - self.low) / (self.high - self.low)


def spread_of(values: Sequence[float], objective: Objective) -> Spread:
    """Return an axis for values.

    It holds all from the best on, but for those that are worse than nine tenths of all by far: one trial that diverged
    to 1e6 would leave nothing to see of the others.

    Args:
        values: finite values, at least one.
        objective: whose they are.
    """
    sign = sign_of(objective)
    costs = sorted(sign * value for value in values)
    most = sign * costs[math.ceil(0.9 * len(costs)) - 1]
    low, high = sorted((sign * costs[0], most))
    log = min(values) > 0 and high / low >= LOG_SPAN[objective.mode]

    def at(value: float) -> float:
        return sign * (math.log(value) if log else value)

    limit = at(most) + FAR * (at(most) - at(sign * costs[0]))
    shown = [value for value in values if at(value) <= limit] if low < high else list(values)
    return Spread(log, min(shown), max(shown), len(values) - len(shown))

"""Where the values of parameters and objectives stand on an axis."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

from itwinai.reporting.formatting import is_number, key_of, value_text
from itwinai.reporting.plotting import axis_limits, label_text, mark_round_numbers, round_numbers
from itwinai.reporting.search.ranking import Standing, sign_of
from itwinai.trials.records import Mode, Objective, Range

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 6
"""Most different numbers that are taken for choices, where it is unknown what they were drawn from."""

PARAMETER_LOG_SPAN = 50.0
"""Largest over smallest number from which on they are taken for drawn by their logarithm, where that is unknown: two
decades, and draws fall short of their bounds."""

OBJECTIVE_LOG_SPAN: dict[Mode, float] = {"min": 10.0, "max": 100.0}
"""Largest over smallest value from which on the axis is logarithmic: earlier for what is minimized, where that sets the
good values apart, than for what is maximized, where it draws them together."""

FAR = 1.5
"""How far beyond nine tenths of the values others are still shown, in lengths of these nine tenths."""


@dataclass(frozen=True)
class Axis:
    """An axis of values.

    Attributes:
        kind: ``linear`` and ``log`` for numbers, ``choice`` for everything else.
        low: where numbers begin.
        high: where they end.
        whole: whether all are whole numbers.
        choices: the labels of the choices, by what `key_of` returns for them, in order.
        bounded: whether ``low`` and ``high`` are the bounds of what was drawn from, and not just what was drawn.
        is_ordered: whether the choices are numbers, in order.
        hidden: how many values lie beyond the ends.
    """

    kind: Literal["linear", "log", "choice"]
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    choices: dict[str, str] = field(default_factory=dict)
    bounded: bool = False
    is_ordered: bool = False
    hidden: int = 0

    @property
    def labels(self) -> list[str]:
        """The choices, as people read them."""
        return list(self.choices.values())

    def index(self, value: Any) -> int:
        """Return which choice a value is."""
        return list(self.choices).index(key_of(value))

    def place(self, value: Any) -> float:
        """Return where a value stands, from 0 to 1; those beyond the ends stand at the ends."""
        if self.kind == "choice":
            return self._place_of_choice(self.index(value))
        if self.high <= self.low:
            return 0.5
        at = min(max(value, self.low), self.high)
        if self.kind == "log":
            return math.log(at / self.low) / math.log(self.high / self.low)
        return (at - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """Return places from 0 to 1 and their labels."""
        if self.kind == "choice":
            step = max(math.ceil(len(self.choices) / (2 * most)), 1)
            return [(self._place_of_choice(at), text) for at, text in enumerate(self.labels) if not at % step]
        if self.high <= self.low:
            return [(0.5, value_text(self.low))]
        values = round_numbers(self.low, self.high, self.kind == "log", most)
        inner = [value for value in values if 0.07 < self.place(value) < 0.93]
        return [(self.place(value), value_text(value)) for value in (self.low, *inner, self.high)]

    def set_on(self, axes: Axes, which: Literal["x", "y"]) -> None:
        """Give an axis of a figure its scale, limits and labels."""
        axis = axes.xaxis if which == "x" else axes.yaxis
        if self.kind == "choice":
            at = range(0, len(self.choices), math.ceil(len(self.choices) / 12))
            crowded = sum(len(self.labels[place]) for place in at) > 48
            names = [label_text(self.labels[place], 14, "end") for place in at]
            axis.set_ticks(list(at), names, rotation=30 if crowded else 0, ha="right" if crowded else "center")
            axes.set(**{f"{which}lim": (-0.5, len(self.choices) - 0.5)})
            return
        low, high = axis_limits((self.low, self.high), log=self.kind == "log")
        axes.set(**{f"{which}scale": self.kind, f"{which}lim": (low, high)})
        if self.kind == "log":
            mark_round_numbers(axis, low, high)

    def _place_of_choice(self, index: int) -> float:
        last = len(self.choices) - 1
        return index / last if last else 0.5


def objective_axis(values: Sequence[float], objective: Objective) -> Axis:
    """Return an axis on which good values can be distinguished, however bad the worst are.

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
    log = min(values) > 0 and high / low >= OBJECTIVE_LOG_SPAN[objective.mode]

    def at(value: float) -> float:
        return sign * (math.log(value) if log else value)

    limit = at(most) + FAR * (at(most) - at(sign * costs[0]))
    shown = [value for value in values if at(value) <= limit] if low < high else list(values)
    return Axis("log" if log else "linear", min(shown), max(shown), hidden=len(values) - len(shown))


def parameter_axis(values: Sequence[Any], drawn_from: Range | None = None) -> Axis:
    """Return the axis for values of a parameter.

    Args:
        values: those that trials have.
        drawn_from: what they were drawn from; where that is unknown the values decide: few different ones are choices,
            numbers that spread over decades have a logarithmic axis.
    """
    numbers = [value for value in values if is_number(value) and math.isfinite(value)]
    chosen = list(drawn_from.choices) if drawn_from is not None else []
    if chosen or len(numbers) < len(values) or not numbers or (drawn_from is None and _are_few(numbers)):
        return _choice_axis([*chosen, *values], in_order=bool(chosen))
    low, high = min(numbers), max(numbers)
    whole = all(isinstance(value, Integral) for value in numbers)
    if drawn_from is None:
        return Axis("log" if _spreads(numbers) else "linear", low, high, whole)
    bounded = drawn_from.low is not None and drawn_from.high is not None
    low = low if drawn_from.low is None else min(low, drawn_from.low)
    high = high if drawn_from.high is None else max(high, drawn_from.high)
    return Axis("log" if drawn_from.log and low > 0 else "linear", low, high, whole, bounded=bounded)


def parameter_axes(standing: Standing) -> dict[str, Axis]:
    """Return the axes of the parameters that can differ between trials."""
    found = {}
    for path in standing.names:
        values = [trial.parameters[path] for trial in standing.record.trials if path in trial.parameters]
        axis = parameter_axis(values, standing.record.ranges.get(path))
        reached = any(path in trial.parameters for trial in standing.ranked)
        if reached and (axis.high > axis.low or len(axis.choices) > 1):
            found[path] = axis
    return found


def _are_few(numbers: Sequence[float]) -> bool:
    different = len(set(numbers))
    return different <= FEW and len(numbers) >= 3 * different


def _spreads(numbers: Sequence[float]) -> bool:
    """Return whether numbers look as if drawn by their logarithm: over decades, and not nearly all in the last."""
    low, high = min(numbers), max(numbers)
    if low <= 0 or high / low < PARAMETER_LOG_SPAN:
        return False
    middle = math.sqrt(low) * math.sqrt(high)
    return sum(value < middle for value in numbers) >= 0.2 * len(numbers)


def _choice_axis(values: Sequence[Any], in_order: bool) -> Axis:
    by_key = {key_of(value): value for value in values}
    numbers = all(map(is_number, by_key.values()))
    if numbers:
        keys = sorted(by_key, key=lambda key: (math.isnan(by_key[key]), by_key[key]))
    else:
        keys = list(by_key) if in_order else sorted(by_key)
    labels = {key: value_text(by_key[key]) for key in keys}
    # 0.12341 and 0.12342 have the same four digits, and the text "1" looks like the number.
    often = Counter(labels.values())
    choices = {key: key if often[label] > 1 else label for key, label in labels.items()}
    return Axis("choice", choices=choices, is_ordered=numbers)

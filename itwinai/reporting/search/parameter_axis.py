"""How the values of a parameter are laid out on an axis."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

from itwinai.reporting.formatting import is_number, key_of, value_text
from itwinai.reporting.plotting import round_numbers
from itwinai.reporting.search.ranking import Standing
from itwinai.trials.records import Range

FEW = 6
"""Most different numbers that are taken for choices, where it is not known what they were drawn from."""

LOG_SPAN = 50.0
"""Largest over smallest number from which on they are taken for drawn by their logarithm, where that is not known: two
decades, and draws fall short of their bounds."""


@dataclass(frozen=True)
class Scale:
    """The axis of a parameter.

    Attributes:
        kind: ``linear`` and ``log`` for numbers, ``choice`` for everything else.
        low: where numbers begin.
        high: where they end.
        whole: whether all are whole numbers.
        choices: the labels of the choices, by what `key_of` returns for them, in order.
        bounded: whether ``low`` and ``high`` are the bounds of what was drawn from, and not just what was drawn.
        is_ordered: whether the choices are numbers, in order.
    """

    kind: Literal["linear", "log", "choice"]
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    choices: dict[str, str] | None = None
    bounded: bool = False
    is_ordered: bool = False

    @property
    def labels(self) -> list[str]:
        """The choices, as people read them."""
        return list((self.choices or {}).values())

    def index(self, value: Any) -> int:
        """Return which choice a value is."""
        return list(self.choices or {}).index(key_of(value))

    def place(self, value: Any) -> float:
        """Return where a value stands, from 0 to 1."""
        if self.kind == "choice":
            last = len(self.choices or {}) - 1
            return self.index(value) / last if last else 0.5
        low, high, at = self._on_axis(self.low), self._on_axis(self.high), self._on_axis(value)
        return (at - low) / (high - low) if high > low else 0.5

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """Return places from 0 to 1 and their labels."""
        if self.kind == "choice":
            step = math.ceil(len(self.labels) / (2 * most))
            return [
                (self.place_of(index), label) for index, label in enumerate(self.labels) if not index % max(step, 1)
            ]
        if self.high <= self.low:
            return [(0.5, value_text(self.low))]
        values = round_numbers(self.low, self.high, self.kind == "log", most)
        inner = [value for value in values if 0.07 < self.place(value) < 0.93]
        return [(self.place(value), value_text(value)) for value in (self.low, *inner, self.high)]

    def place_of(self, index: int) -> float:
        """Return where a choice stands, from 0 to 1."""
        last = len(self.labels) - 1
        return index / last if last else 0.5

    def _on_axis(self, value: float) -> float:
        return math.log10(value) if self.kind == "log" else float(value)


def scale_of(values: Sequence[Any], drawn_from: Range | None = None) -> Scale:
    """Return the axis for values of a parameter.

    Args:
        values: those that trials have.
        drawn_from: what they were drawn from; where that is not known the values are looked at: few different ones are
            choices, numbers that spread over decades have a logarithmic axis.
    """
    numbers = [value for value in values if is_number(value) and math.isfinite(value)]
    chosen = list(drawn_from.choices) if drawn_from is not None else []
    if chosen or len(numbers) < len(values) or not numbers or (drawn_from is None and _are_few(numbers)):
        return _choice_scale([*chosen, *values], in_order=bool(chosen))
    low, high = min(numbers), max(numbers)
    whole = all(isinstance(value, Integral) for value in numbers)
    if drawn_from is None:
        return Scale("log" if _spreads(numbers) else "linear", low, high, whole)
    bounded = drawn_from.low is not None and drawn_from.high is not None
    low = low if drawn_from.low is None else min(low, drawn_from.low)
    high = high if drawn_from.high is None else max(high, drawn_from.high)
    return Scale("log" if drawn_from.log and low > 0 else "linear", low, high, whole, bounded=bounded)


def scales_of(standing: Standing) -> dict[str, Scale]:
    """Return the axes of the parameters that can differ between trials."""
    scales = {}
    for path in standing.names:
        values = [trial.parameters[path] for trial in standing.record.trials if path in trial.parameters]
        scale = scale_of(values, standing.record.ranges.get(path))
        reached = any(path in trial.parameters for trial in standing.ranked)
        if reached and (scale.high > scale.low or len(scale.labels) > 1):
            scales[path] = scale
    return scales


def _are_few(numbers: Sequence[float]) -> bool:
    different = len(set(numbers))
    return different <= FEW and len(numbers) >= 3 * different


def _spreads(numbers: Sequence[float]) -> bool:
    """Tell whether numbers look as if drawn by their logarithm: over decades, and not nearly all in the last."""
    low, high = min(numbers), max(numbers)
    if low <= 0 or high / low < LOG_SPAN:
        return False
    middle = math.sqrt(low) * math.sqrt(high)
    return sum(value < middle for value in numbers) >= 0.2 * len(numbers)


def _choice_scale(values: Sequence[Any], in_order: bool) -> Scale:
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
    return Scale("choice", choices=choices, is_ordered=numbers)

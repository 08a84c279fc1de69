"""Round numbers on an axis."""

from __future__ import annotations

import math

FEW_DECADES = 2.5
"""Decades up to which 2 and 5 are marked on a logarithmic axis, and not only powers of ten."""


def round_numbers(low: float, high: float, log: bool, most: int = 6) -> list[float]:
    """Return round numbers between two, both of them included, in rising order.

    Args:
        low: where the axis begins.
        high: where it ends; above ``low``.
        log: whether the axis is logarithmic.
        most: about how many of them.
    """
    if log and high / low >= 4:
        return _powers(low, high, most)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((size * power for size in (1, 2, 5) if size * power >= rough), 10 * power)
    found = (count * step for count in range(math.ceil(low / step), math.floor(high / step) + 1))
    # 3 * 0.1 is 0.30000000000000004.
    return [float(f"{number:.12g}") for number in found]


def _powers(low: float, high: float, most: int) -> list[float]:
    decades = math.log10(high / low)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1, 2, 5) if decades <= FEW_DECADES else (1,)
    every = max(math.ceil(decades / most), 1)
    found = (float(f"{digit}e{power}") for power in range(first, last + 1) if power % every == 0 for digit in digits)
    return [number for number in found if low <= number <= high]

"""How long workers wait for the slowest of them."""

from __future__ import annotations

import math
from functools import lru_cache

_REACH = 12.0
_STEP = 0.01


@lru_cache
def expected_maximum(number: int) -> float:
    """Return the expectation of the largest of some values from a standard normal distribution.

    It is the integral of ``1 - F(x)^N`` from -12 to 12, less 12, with F the distribution function, by the trapezoidal
    rule: exact to ten digits, because the integrand is smooth and flat at both ends. (Blom's approximation is 4 % off
    for two values.)

    Args:
        number: how many values.
    """
    if number < 2:
        return 0.0
    points = (-_REACH + index * _STEP for index in range(1, round(2 * _REACH / _STEP)))
    inside = sum(-math.expm1(number * _log_of_share_below(x)) for x in points)
    return (inside + 0.5) * _STEP - _REACH  # the integrand is 1 at the lower end and 0 at the upper one


def waiting_time(seconds: float, variation: float, workers: int, batches: int = 1) -> float:
    """Return for how long a batch waits for the slowest worker, as an expectation.

    The times of workers and batches are taken to be normal and independent, so that those of several batches between
    two waits even out by the square root of their number.

    Args:
        seconds: mean time of a batch.
        variation: standard deviation of that time by its mean.
        workers: how many there are.
        batches: from one wait to the next.
    """
    return seconds * variation * expected_maximum(workers) / math.sqrt(batches)


def _log_of_share_below(x: float) -> float:
    """Return the logarithm of the standard normal distribution function, accurate at both ends."""
    if x < 0:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    return math.log1p(-math.erfc(x / math.sqrt(2)) / 2)

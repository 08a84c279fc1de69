"""Means, ratios and differences of a few repeats, with confidence intervals and p values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, variance
from types import ModuleType

from itwinai.errors import ConfigurationError, require

CONFIDENCE = 0.95
"""Share of the experiments whose interval contains the true value."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % confidence interval.

    Attributes:
        mean: the mean.
        low: lower end of the interval; None if the spread is unknown.
        high: upper end of the interval; None with ``low``.
        n: number of values; of the smaller side of a ratio.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    def times(self, factor: float) -> Estimate:
        """Return it multiplied by a positive factor."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return Estimate(self.mean * factor, low, high, self.n)

    def not_negative(self) -> Estimate:
        """Return it for a quantity that cannot be negative: its interval begins at 0 or above."""
        return self if self.low is None or not self.low < 0 else Estimate(self.mean, 0.0, self.high, self.n)


def mean_of(values: Sequence[float]) -> Estimate:
    """Return the mean of repeats with Student's interval (Student, "The Probable Error of a Mean", Biometrika 1908).

    Raises:
        ConfigurationError: there are no values.
    """
    if not values:
        raise ConfigurationError("There is no mean of no values.")
    middle = float(mean(values))
    if len(values) < 2:
        return Estimate(middle, None, None, len(values))
    if not all(map(math.isfinite, values)):
        return Estimate(middle, math.nan, math.nan, len(values))
    half = t_quantile(len(values) - 1) * math.sqrt(variance(values) / len(values))
    return Estimate(middle, middle - half, middle + half, len(values))


def ratio_of(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """Return the ratio of two geometric means, with Welch's interval of the difference of the logarithms.

    Logarithms, because the noise of timings is relative, and because the ratio of A to B is then exactly the inverse of
    that of B to A. Welch, because two cells need not be equally noisy (Welch, "The generalization of 'Student's'
    problem when several different population variances are involved", Biometrika 1947).

    Args:
        above: values of the numerator, one of each repeat.
        below: values of the denominator.

    Returns:
        The ratio; without an interval if either side has a single value.

    Raises:
        ConfigurationError: a side has no values, or values that are not positive.
    """
    first, second = _logarithms(above), _logarithms(below)
    shift, n = mean(first) - mean(second), min(len(first), len(second))
    if n < 2:
        return Estimate(math.exp(shift), None, None, n)
    error, freedom = _welch(first, second)
    half = t_quantile(freedom) * error if error else 0.0
    return Estimate(math.exp(shift), math.exp(shift - half), math.exp(shift + half), n)


def difference(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the two-sided p value of Welch's test on logarithms; None if either side has fewer than two values.

    Raises:
        ConfigurationError: a side has no values, or values that are not positive.
    """
    first, second = _logarithms(a), _logarithms(b)
    if min(len(first), len(second)) < 2:
        return None
    shift = abs(mean(first) - mean(second))
    error, freedom = _welch(first, second)
    if not error:
        return 0.0 if shift else 1.0
    return float(2 * _distributions().stdtr(freedom, -shift / error))


def differences(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[float | None]:
    """Return `difference` of each pair, corrected by `holm` for all that is known."""
    p_values = [difference(a, b) for a, b in pairs]
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(adjusted) for p in p_values]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for the number of tests, in the same order.

    The smallest of m is multiplied by m, the next one by m - 1, and so on, and none becomes smaller than one before it
    (Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 1979).
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def t_quantile(freedom: float) -> float:
    """Return how many standard errors an interval reaches to either side, by the degrees of freedom."""
    return float(_distributions().stdtrit(freedom, (1 + CONFIDENCE) / 2))


def _distributions() -> ModuleType:
    require("scipy", "Install it with `pip install 'itwinai[benchmark]'`.", "The report of a benchmark")
    import scipy.special  # scipy.stats calls the same functions, and takes a second to import

    return scipy.special


def _logarithms(values: Sequence[float]) -> list[float]:
    if not values or not all(0 < value < math.inf for value in values):
        raise ConfigurationError(
            f"A ratio needs positive values, at least one; got {list(values)}. Leave out runs that measured nothing."
        )
    return [math.log(value) for value in values]


def _welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return the standard error of the difference of two means, and its degrees of freedom (Satterthwaite, 1946)."""
    parts = [(variance(values) / len(values), len(values) - 1) for values in (first, second)]
    square = sum(part for part, _ in parts)
    if not square:
        return 0.0, math.inf
    # By shares of the whole: squares of tiny variances would underflow.
    return math.sqrt(square), 1 / sum((part / square) ** 2 / freedom for part, freedom in parts)

"""Fits laws to the times of cells, many resampled experiments at once, and weighs which law is the best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.law_candidates import Candidate, terms

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPARE = 4
"""Runs that AICc needs beyond the parameters of the largest law: with fewer, its correction outweighs all else."""

EXACT = 1e-9
"""Relative deviation that is taken for rounding, so that of several exact laws the simplest is chosen."""

TIE = 1e-12
"""Relative difference of two sums of squares that is rounding."""


@dataclass(frozen=True)
class CellTimes:
    """Times of the steps of cells with different numbers of workers.

    All sums of squares and variances are of relative deviations, without a unit.

    Attributes:
        workers: their numbers.
        means: seconds of a step, by cell.
        repeats: number of runs, by cell.
        within: sum of the squared deviations of the runs from the means of their cells.
    """

    workers: tuple[int, ...]
    means: NDArray[np.float64]
    repeats: NDArray[np.float64]
    within: float

    @classmethod
    def of(cls, cells: Sequence[CellSummary]) -> CellTimes:
        """Return the times of cells that have runs."""
        times = [one.step_times for one in cells]
        means = [fmean(one) for one in times]
        within = sum((time / mean - 1) ** 2 for one, mean in zip(times, means, strict=True) for time in one)
        repeats = [float(len(one)) for one in times]
        return cls(tuple(one.cell.workers for one in cells), np.array(means), np.array(repeats), within)

    @property
    def runs(self) -> int:
        """Number of runs of all cells."""
        return int(self.repeats.sum())

    @property
    def within_freedom(self) -> int:
        """Degrees of freedom of ``within``."""
        return self.runs - len(self.workers)

    def noise(self, squares: float, parameters: int) -> tuple[float, int]:
        """Return the variance of one run, and its degrees of freedom.

        The repeats tell it, and so does the deviation of the cells from a law: both together, unless the cells deviate
        by more than the repeats let expect. Then only these count, for there is something that repeats do not show.

        Args:
            squares: weighted sum of the squared deviations of the means from a law.
            parameters: number of those that were fitted.
        """
        freedom = len(self.workers) - parameters
        if not self.within_freedom or squares / freedom > self.within / self.within_freedom:
            return squares / freedom, freedom
        return (self.within + squares) / (self.within_freedom + freedom), self.within_freedom + freedom


def fitted(
    laws: Sequence[Candidate], times: CellTimes, means: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit each law to each experiment, by least squares with factors that are not negative.

    Args:
        laws: the laws.
        times: what was measured; deviations are relative to its means, and weighted with its repeats.
        means: seconds of a step, by experiment and cell.

    Returns:
        The factors of all terms, by law, experiment and term; and the weighted sums of the squared relative deviations,
        by law and experiment.
    """
    weights = np.sqrt(times.repeats) / times.means
    design, wanted = terms(times.workers) * weights[:, None], means * weights
    fits = [_not_negative(design, wanted, law.terms) for law in laws]
    for law, (factors, _) in zip(laws, fits, strict=True):
        # No step takes no time, though some draws are best fitted so, and a speed-up is a quotient.
        np.maximum(factors[:, law.terms[0]], EXACT * times.means.min(), out=factors[:, law.terms[0]])
    return np.stack([factors for factors, _ in fits]), np.stack([squares for _, squares in fits])


def criteria(
    laws: Sequence[Candidate], times: CellTimes, squares: NDArray[np.float64], within: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how good the laws are, the lowest being the best: AICc if there are enough runs for it.

    Args:
        laws: the laws.
        times: what was measured.
        squares: as `fitted` returns them, by law and experiment.
        within: sum of the squared deviations within cells, by experiment.

    Returns:
        By law and experiment.
    """
    parameters = np.array([[len(law.terms)] for law in laws])
    if not enough_runs(laws, times):
        freedom = len(times.workers) - parameters
        return math.log(2) * parameters + np.log(squares / freedom + EXACT**2)
    estimated = parameters + 1  # the variance is estimated too
    penalty = 2 * estimated + 2 * estimated * (estimated + 1) / (times.runs - estimated - 1)
    return times.runs * np.log((squares + within) / times.runs + EXACT**2) + penalty


def enough_runs(laws: Sequence[Candidate], times: CellTimes) -> bool:
    """Tell whether AICc can choose among these laws; else each parameter more has to halve the variance."""
    return times.runs >= max(len(law.terms) for law in laws) + SPARE


def _not_negative(
    design: NDArray[np.float64], wanted: NDArray[np.float64], columns: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Solve for all experiments at once.

    The solution is the best of those with some of the terms whose factors are all positive. With three terms these are
    seven at most, which are matrix products: far faster than a loop over the experiments.
    """
    factors, lowest = np.zeros((len(wanted), design.shape[1])), np.full(len(wanted), np.inf)
    for size in range(1, len(columns) + 1):
        for some in itertools.combinations(columns, size):
            part = design[:, some]
            solution = wanted @ np.linalg.pinv(part).T
            squares = ((wanted - solution @ part.T) ** 2).sum(axis=1)
            better = (solution >= 0).all(axis=1) & (squares < lowest * (1 - TIE))
            factors[better] = 0.0
            factors[np.ix_(better, some)] = solution[better]
            lowest[better] = squares[better]
    return factors, lowest

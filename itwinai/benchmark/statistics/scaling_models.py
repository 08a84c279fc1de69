"""Scaling laws: Amdahl's, and latency and bandwidth of a ring; fitted by least squares to many experiments at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from itwinai.benchmark.records import Scaling
from itwinai.benchmark.statistics.summary import CellSummary

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARAMETERS: Mapping[str, str] = {
    "work": "seconds of a step with one worker",
    "one_worker": "seconds of a step with one worker",
    "serial_share": "share of a step with one worker that more workers do not shorten",
    "latency": "seconds that each further worker adds to a step",
    "transfer": "seconds in which a worker sends the volume of all gradients once",
    "gustafson_serial_share": "share of a step that is serial by Gustafson's law",
}
"""Meaning and unit of the parameters of all models."""

SPARE = 4
"""Runs that AICc needs beyond the parameters of the largest model: with fewer, its correction outweighs all else."""

EXACT = 1e-9
"""Relative deviation that counts as rounding, so that the simplest of several exact models is chosen."""


def terms(workers: Sequence[int] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the terms of a step time, an array of shape ``(len(workers), 4)``: ``1/N, 1, N - 1, 2 (N - 1) / N``.

    The last two are a ring all-reduce, in which each of N workers sends 2 (N - 1) messages of one N-th of the
    gradients: their latency grows with N, their volume hardly (Patarasuk and Yuan, "Bandwidth optimal all-reduce
    algorithms for clusters of workstations", Journal of Parallel and Distributed Computing 2009).
    """
    number = np.asarray(workers, dtype=float)
    return np.stack([1 / number, np.ones_like(number), number - 1, 2 * (number - 1) / number], axis=-1)


@dataclass(frozen=True)
class ScalingModel:
    """A model of the step time t by the number of workers N: a sum of terms with factors that are not negative.

    Attributes:
        name: as people call it.
        formula: with the names of its parameters.
        columns: of `terms`, by parameter; first the one without which a step takes no time.
    """

    name: str
    formula: str
    columns: Mapping[str, int]

    def parameters(self, factors: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return the values of its parameters, from the factors of all terms along the last axis."""
        values = {name: factors[..., column] for name, column in self.columns.items()}
        if "serial_share" in values:
            values["one_worker"] = values["one_worker"] + values["serial_share"]
            values["serial_share"] = values["serial_share"] / values["one_worker"]
        return values


def models_for(scaling: Scaling, counts: int) -> list[ScalingModel]:
    """Return the models with fewer parameters than ``counts`` measured numbers of workers, the simplest first.

    With strong scaling none has both serial work and the volume of a ring: they grow alike with the number of workers,
    2 (N - 1) / N = 2 - 2 / N, so that no measurement tells them apart.
    """
    latency, transfer = "latency (N - 1)", "transfer 2 (N - 1) / N"
    if scaling == "strong":
        work, alone = "t = work / N", {"work": 0}
        shares = {"one_worker": 0, "serial_share": 1}
        second = ScalingModel("Amdahl's law", "t = one_worker (serial_share + (1 - serial_share) / N)", shares)
    else:
        work, alone = "t = work", {"work": 1}
        second = ScalingModel("transfer", f"{work} + {transfer}", {**alone, "transfer": 3})
    models = [
        ScalingModel("ideal scaling", work, alone),
        second,
        ScalingModel("latency", f"{work} + {latency}", {**alone, "latency": 2}),
        ScalingModel("ring all-reduce", f"{work} + {latency} + {transfer}", {**alone, "latency": 2, "transfer": 3}),
    ]
    return [model for model in models if len(model.columns) < counts]


def gustafson(workers: Sequence[int], factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the serial share s of Gustafson's law, ``S(N) = N - s (N - 1)``, nearest to a model of weak scaling.

    S is the scaled speed-up, N times the step time of one worker by that of N (Gustafson, "Reevaluating Amdahl's Law",
    Communications of the ACM 1988); nearest by least squares at these numbers of workers.
    """
    number = np.asarray(workers, dtype=float)
    speedup = number * (factors @ terms([1]).T) / (factors @ terms(workers).T)
    lost: NDArray[np.float64] = ((number - speedup) * (number - 1)).sum(axis=-1) / ((number - 1) ** 2).sum()
    return lost


@dataclass(frozen=True)
class CellTimes:
    """Step times of cells with different numbers of workers; squares and variances are of relative deviations.

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

        Repeats and the deviations of the cells from the model both estimate it: together, unless the cells deviate by
        more than the repeats let expect. Then only these count: something does not show in the repeats.

        Args:
            squares: weighted sum of the squared deviations of the means from the model.
            parameters: number that was fitted.
        """
        freedom = len(self.workers) - parameters
        if not self.within_freedom or squares / freedom > self.within / self.within_freedom:
            return squares / freedom, freedom
        return (self.within + squares) / (self.within_freedom + freedom), self.within_freedom + freedom


def fit_models(
    models: Sequence[ScalingModel], times: CellTimes, means: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit each model to each experiment by least squares of the relative deviations, with factors of 0 or more.

    Args:
        models: the models.
        times: what was measured; deviations are relative to its means, and weighted with its repeats.
        means: seconds of a step, by experiment and cell.

    Returns:
        The factors of all terms, by model, experiment and term; and the weighted sums of squares, by model and
        experiment.
    """
    weights = np.sqrt(times.repeats) / times.means
    design, wanted = terms(times.workers) * weights[:, None], means * weights
    fits = [_not_negative(design, wanted, list(model.columns.values())) for model in models]
    for model, (factors, _) in zip(models, fits, strict=True):
        # No step takes no time, though some draws are fitted best so, and a speed-up is a quotient.
        first = next(iter(model.columns.values()))
        factors[:, first] = np.maximum(factors[:, first], EXACT * times.means.min())
    return np.stack([factors for factors, _ in fits]), np.stack([squares for _, squares in fits])


def criteria(
    models: Sequence[ScalingModel], times: CellTimes, squares: NDArray[np.float64], within: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how good the models are, by model and experiment; the lowest is the best: AICc if there are enough runs.

    Args:
        models: the models.
        times: what was measured.
        squares: from `fit_models`.
        within: sum of the squared deviations within cells, by experiment.
    """
    parameters = np.array([[len(model.columns)] for model in models])
    if not enough_runs(models, times):
        freedom = len(times.workers) - parameters
        return math.log(2) * parameters + np.log(squares / freedom + EXACT**2)
    estimated = parameters + 1  # the variance is estimated too
    penalty = 2 * estimated + 2 * estimated * (estimated + 1) / (times.runs - estimated - 1)
    return times.runs * np.log((squares + within) / times.runs + EXACT**2) + penalty


def enough_runs(models: Sequence[ScalingModel], times: CellTimes) -> bool:
    """Return whether AICc can choose among these models; if not, each further parameter has to halve the variance."""
    return times.runs >= max(len(model.columns) for model in models) + SPARE


def _not_negative(
    design: NDArray[np.float64], wanted: NDArray[np.float64], columns: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Solve for all experiments at once: the best of the solutions with some of the terms whose factors are positive.

    With three terms these are at most seven matrix products: far faster than a loop over the experiments.
    """
    factors, lowest = np.zeros((len(wanted), design.shape[1])), np.full(len(wanted), np.inf)
    for size in range(1, len(columns) + 1):
        for some in itertools.combinations(columns, size):
            part = design[:, some]
            solution = wanted @ np.linalg.pinv(part).T
            squares = ((wanted - solution @ part.T) ** 2).sum(axis=1)
            better = (solution >= 0).all(axis=1) & (squares < lowest * (1 - 1e-12))  # less is rounding
            factors[better] = 0.0
            factors[np.ix_(better, some)] = solution[better]
            lowest[better] = squares[better]
    return factors, lowest

"""How the time of a step goes on with more workers than were measured, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from itwinai.benchmark.statistics.estimates import CONFIDENCE, Estimate
from itwinai.benchmark.statistics.law_candidates import PARAMETERS, Candidate, candidates, gustafson, terms
from itwinai.benchmark.statistics.least_squares import CellTimes, criteria, enough_runs, fitted
from itwinai.benchmark.statistics.summary import CellSummary, Series
from itwinai.benchmark.telling.amounts import share_text
from itwinai.errors import ConfigurationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PARAMETERS", "FittedLaw", "NoFit", "fit"]

FEWEST = 3
"""Numbers of workers below which any law with two parameters fits."""

RESAMPLED = 2000
"""Resampled experiments: chance moves the ends of an interval by some hundredths of its width."""

LARGEST = 10.0
"""Logarithm of the largest factor by which a draw differs from what was measured."""

CLOSE = 2.0
"""Difference of AICc up to which two laws are about equally good (Burnham and Anderson, "Model Selection and Multimodel
Inference", 2002)."""


@dataclass(frozen=True)
class NoFit:
    """A line of which there is no law.

    Attributes:
        series: the line.
        reason: why, in a sentence.
    """

    series: Series
    reason: str


@dataclass(frozen=True)
class FittedLaw:
    """A law that a line follows, for numbers of workers that were measured and others.

    The intervals come from a bootstrap: the mean times of all cells are drawn anew many times, with the noise of the
    repeats, or with the deviation of the cells from the law where that is larger; its variance is itself uncertain, so
    that the draws follow Student's t. For each draw the law is chosen and fitted anew, for to choose is what makes an
    extrapolation uncertain (Efron, "Estimation and Accuracy After Model Selection", Journal of the American Statistical
    Association 2014): from 1 to 8 workers to 64, with three repeats of 2 % noise, they hold the truth in 91 to 99 of
    100 experiments, and without a new choice in as few as 6. The law itself has to be one of the candidates, and the
    machine has to go on as it began: what is measured within a node knows nothing of the network between nodes.

    Attributes:
        series: what it was fitted to.
        name: of the law.
        formula: seconds t of a step by the number N of workers, with the names of ``parameters``.
        parameters: by name, with intervals for this law if it is the true one; `PARAMETERS` has their meaning and unit.
            With weak scaling the serial share of Gustafson's law is among them.
        words: what the law says, and why it was chosen.
        workers: numbers of workers that were measured.
        runs: number of runs that it was fitted to.
        deviation: of the measured means from the law: root of the mean square, as a share of the time.
        factors: of all terms.
        drawn: the same of all draws, each with the law that was chosen for it.
    """

    series: Series
    name: str
    formula: str
    parameters: Mapping[str, Estimate]
    words: str
    workers: tuple[int, ...]
    runs: int
    deviation: float
    factors: NDArray[np.float64] = field(repr=False, compare=False)
    drawn: NDArray[np.float64] = field(repr=False, compare=False)

    def step_time(self, workers: int) -> Estimate:
        """Return the seconds of a step.

        Args:
            workers: their number; 1 or more.
        """
        return self._estimate(*self._times(workers))

    def speedup(self, workers: int, baseline: CellSummary | None = None) -> Estimate:
        """Return the speed-up; with weak scaling the scaled one.

        Args:
            workers: their number; 1 or more.
            baseline: a cell that it is to be compared with, as `CellSummary.speedup` is. By default it is compared with
                one worker of this line, as the law has it.

        Raises:
            ConfigurationError: the baseline has failed.
        """
        time, times = self._times(workers)
        share = workers if self.series.scaling == "weak" else 1
        if baseline is None:
            one, ones = self._times(1)
            return self._estimate(share * one / time, share * ones / times)
        if not baseline.runs:
            raise ConfigurationError("The baseline has failed, so that nothing can be compared with it.")
        batch = self._batch() if baseline.throughput is not None else None
        rates = np.log(baseline.rates(by_samples=batch is not None))
        generator = np.random.default_rng(1)
        error = rates.std(ddof=1) / math.sqrt(len(rates)) if len(rates) > 1 else 0.0
        noise = error * generator.standard_t(max(len(rates) - 1, 1), len(times))
        factor = share * (batch or 1) * baseline.cell.workers / math.exp(rates.mean())
        return self._estimate(factor / time, factor * np.exp(noise) / times)

    def throughput(self, workers: int) -> Estimate | None:
        """Return the samples per second of all workers; None if the runs do not tell their number of samples.

        Args:
            workers: their number; 1 or more.
        """
        batch = self._batch()
        if batch is None:
            return None
        samples = batch * (workers if self.series.scaling == "weak" else 1)
        time, times = self._times(workers)
        return self._estimate(samples / time, samples / times)

    def knee(self, max_workers: int) -> int | None:
        """Return the number of workers beyond which more speed costs more than it is worth.

        That is where efficiency by execution time is largest, which is S(N)^2 / N for a speed-up S (Eager, Zahorjan and
        Lazowska, "Speedup Versus Efficiency in Parallel Systems", IEEE Transactions on Computers 1989).

        Args:
            max_workers: up to which it is looked for: the largest number that was measured or is extrapolated to.

        Returns:
            The number; None if it is beyond ``max_workers``.
        """
        numbers = np.arange(1, max_workers + 2, dtype=float)
        speedup = (numbers if self.series.scaling == "weak" else 1) / (terms(numbers) @ self.factors)
        best = int(numbers[np.argmax(speedup**2 / numbers)])
        return best if best <= max_workers else None

    def _times(self, workers: int) -> tuple[float, NDArray[np.float64]]:
        if workers < 1:
            raise ConfigurationError(f"There is no time of a step with {workers} workers. Ask for 1 or more.")
        row = terms([workers])[0]
        return float(self.factors @ row), self.drawn @ row

    def _batch(self) -> float | None:
        """Return the samples of a step: of all workers with strong scaling, of each one with weak scaling."""
        weak = self.series.scaling == "weak"
        batches = [
            None if not run.samples else run.samples / run.steps / (one.cell.workers if weak else 1)
            for one in self.series.cells
            for run in one.measured
        ]
        known = [batch for batch in batches if batch is not None]
        return fmean(known) if len(known) == len(batches) else None

    def _estimate(self, value: float, drawn: NDArray[np.float64]) -> Estimate:
        return _estimate(value, drawn, self.runs)


def fit(series: Series) -> FittedLaw | NoFit:
    """Fit a law to the times of the steps of a line, one that is as simple as the noise allows.

    The laws are sums of terms with factors that are not negative; they are fitted by least squares of the relative
    deviations, for the noise of timings is relative. Which one is taken is decided by AICc (Hurvich and Tsai,
    "Regression and Time Series Model Selection in Small Samples", Biometrika 1989) over all runs; where there are too
    few runs for that, each parameter more has to halve the variance of what deviates.

    Args:
        series: the line. Cells that have failed are left out.

    Returns:
        The law; or why there is none: fewer than three numbers of workers were measured.
    """
    cells = [one for one in series.cells if one.runs]
    if len(cells) < FEWEST:
        return NoFit(series, _too_few(series, cells))
    times, laws = CellTimes.of(cells), candidates(series.scaling, len(cells))
    factors, squares = fitted(laws, times, times.means[None])
    values = criteria(laws, times, squares, np.array([times.within]))[:, 0]
    best = int(values.argmin())
    resampled, within = _resampled(times, *times.noise(float(squares[best, 0]), len(laws[best].terms)))
    drawn, squares_drawn = fitted(laws, times, resampled)
    chosen = criteria(laws, times, squares_drawn, within).argmin(axis=0)
    parameters = _parameters(laws[best], series, times, factors[best, 0], drawn[best])
    deviation = math.sqrt(squares[best, 0] / times.runs)
    return FittedLaw(
        series=series,
        name=laws[best].name,
        formula=laws[best].formula,
        parameters=parameters,
        words=" ".join([laws[best].words(parameters), *_choice(laws, times, values), *_cautions(cells, deviation)]),
        workers=times.workers,
        runs=times.runs,
        deviation=deviation,
        factors=factors[best, 0],
        drawn=drawn[chosen, np.arange(RESAMPLED)],
    )


def _resampled(times: CellTimes, variance: float, freedom: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the means of experiments that might as well have been, and their sums of squares within cells."""
    generator = np.random.default_rng(0)
    scale = np.sqrt(variance * freedom / generator.chisquare(freedom, (RESAMPLED, 1)))
    noise = scale * generator.standard_normal((RESAMPLED, len(times.means))) / np.sqrt(times.repeats)
    # As logarithms, so that no time is negative; limited, for with one degree of freedom t reaches any number.
    means = times.means * np.exp(np.clip(noise, -LARGEST, LARGEST))
    if not times.within_freedom:
        return means, np.zeros(RESAMPLED)
    return means, times.within / times.within_freedom * generator.chisquare(times.within_freedom, RESAMPLED)


def _parameters(
    law: Candidate, series: Series, times: CellTimes, factors: NDArray[np.float64], drawn: NDArray[np.float64]
) -> dict[str, Estimate]:
    values, values_drawn = law.parameters(factors), law.parameters(drawn)
    if series.scaling == "weak":
        values["gustafson_serial_share"] = gustafson(times.workers, factors)
        values_drawn["gustafson_serial_share"] = gustafson(times.workers, drawn)
    return {name: _estimate(float(value), values_drawn[name], times.runs) for name, value in values.items()}


def _estimate(value: float, drawn: NDArray[np.float64], runs: int) -> Estimate:
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value), runs)


def _choice(laws: Sequence[Candidate], times: CellTimes, values: NDArray[np.float64]) -> list[str]:
    """Return why a law was chosen, in sentences."""
    order = [int(index) for index in values.argsort()]
    best, second = laws[order[0]], laws[order[1]]
    runs = f"{times.runs} runs with {len(times.workers)} numbers of workers"
    if not enough_runs(laws, times):
        return [
            f"'{best.name}' was chosen among {len(laws)} laws for {runs}: each parameter more had to halve the "
            "variance of what deviates. With more repeats the choice would be surer."
        ]
    lead = float(values[order[1]] - values[order[0]])
    close = f"; '{second.name}' is about as good" if lead <= CLOSE else ""
    return [
        f"'{best.name}' was chosen among {len(laws)} laws by AICc for {runs}, by {lead:.1f} before '{second.name}'"
        f"{close}."
    ]


def _cautions(cells: Sequence[CellSummary], deviation: float) -> list[str]:
    sentences = [f"The means deviate from it by {share_text(deviation)}."]
    if len(cells) == FEWEST:
        sentences.append("Three numbers of workers are the fewest that allow a guess: more of them would say more.")
    if all(run.nodes == 1 for one in cells for run in one.measured):
        sentences.append("All was measured on one node: how fast the network between nodes is, it does not know.")
    return sentences


def _too_few(series: Series, cells: Sequence[CellSummary]) -> str:
    numbers = ", ".join(str(one.cell.workers) for one in cells) or "none"
    failed = ", ".join(str(one.cell.workers) for one in series.cells if not one.runs)
    return (
        f"It takes {FEWEST} different numbers of workers to tell one law from another, and {series.strategy} was "
        f"measured with {numbers} only{f' (failed: {failed})' if failed else ''}."
    )

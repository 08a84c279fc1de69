"""Extrapolate the step time to more workers than were measured, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from itwinai.benchmark.records import Scaling
from itwinai.benchmark.statistics.confidence_intervals import CONFIDENCE, Estimate
from itwinai.benchmark.statistics.scaling_models import (
    CellTimes,
    ScalingModel,
    criteria,
    enough_runs,
    fit_models,
    gustafson,
    models_for,
    terms,
)
from itwinai.benchmark.statistics.summary import CellSummary, Series
from itwinai.errors import ConfigurationError
from itwinai.reporting.formatting import percent_text, time_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST = 3
"""Numbers of workers below which any model with two parameters fits."""

RESAMPLED = 2000
"""Resampled experiments: chance moves the ends of an interval by some hundredths of its width."""

LARGEST = 10.0
"""Logarithm of the largest factor by which a draw differs from what was measured."""

CLOSE = 2.0
"""Difference of AICc up to which two models are about equally good (Burnham and Anderson, "Model Selection and
Multimodel Inference", 2002)."""


@dataclass(frozen=True)
class NoFit:
    """A line that has no scaling law, and the reason, in a sentence."""

    series: Series
    reason: str


@dataclass(frozen=True)
class FittedLaw:
    """The scaling law of a line.

    The intervals come from a bootstrap: the mean times of all cells are drawn many times, with the noise of the
    repeats, or with the deviation of the cells from the model where that is larger; its variance is itself uncertain,
    so the draws follow Student's t. The model is chosen and fitted again for each draw, because the choice is what
    makes an extrapolation uncertain (Efron, "Estimation and Accuracy After Model Selection", Journal of the American
    Statistical Association 2014): from 1 to 8 workers to 64, with three repeats of 2 % noise, they hold the truth in 91
    to 99 of 100 experiments, and without a new choice in as few as 6. The law has to be one of the models, and the
    machine has to continue as it begins: measurements within a node do not include the network between nodes.

    Attributes:
        series: what it was fitted to.
        name: of the model.
        formula: seconds t of a step by the number N of workers, with the names of ``parameters``.
        parameters: by name, with intervals for this model if it is the true one; `PARAMETERS` has meaning and unit.
            With weak scaling they include the serial share of Gustafson's law.
        words: what the law says, and why it was chosen.
        workers: numbers of workers that were measured.
        runs: number of runs that it was fitted to.
        deviation: of the measured means from the law: root of the mean square, as a share of the time.
        factors: of all terms.
        drawn: the same of all draws, each with the model that was chosen for it.
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
        """Return the seconds of a step with this many workers."""
        return _estimate(*self._times(workers), self.runs)

    def speedup(self, workers: int, baseline: CellSummary | None = None) -> Estimate:
        """Return the speed-up; with weak scaling the scaled one.

        Args:
            workers: their number; 1 or more.
            baseline: cell to compare with, as `CellSummary.speedup` does; by default one worker by this law.

        Raises:
            ConfigurationError: the baseline has failed.
        """
        time, times = self._times(workers)
        share = workers if self.series.scaling == "weak" else 1
        if baseline is None:
            one, ones = self._times(1)
            return _estimate(share * one / time, share * ones / times, self.runs)
        if not baseline.runs:
            raise ConfigurationError("The baseline has failed, so there is no speed-up.")
        batch = self._batch() if baseline.throughput is not None else None
        rates = np.log(baseline.rates(by_samples=batch is not None))
        generator = np.random.default_rng(1)
        error = rates.std(ddof=1) / math.sqrt(len(rates)) if len(rates) > 1 else 0.0
        noise = error * generator.standard_t(max(len(rates) - 1, 1), len(times))
        factor = share * (batch or 1) * baseline.cell.workers / math.exp(rates.mean())
        return _estimate(factor / time, factor * np.exp(noise) / times, self.runs)

    def throughput(self, workers: int) -> Estimate | None:
        """Return the samples per second of all workers; None if the samples of a run are unknown."""
        batch = self._batch()
        if batch is None:
            return None
        samples = batch * (workers if self.series.scaling == "weak" else 1)
        time, times = self._times(workers)
        return _estimate(samples / time, samples / times, self.runs)

    def knee(self, max_workers: int) -> int | None:
        """Return the number of workers beyond which more speed costs more than it is worth; None if beyond the most.

        That is where efficiency by execution time is largest, which is S(N)^2 / N for a speed-up S (Eager, Zahorjan and
        Lazowska, "Speedup Versus Efficiency in Parallel Systems", IEEE Transactions on Computers 1989).

        Args:
            max_workers: the largest number that was measured or is extrapolated to.
        """
        numbers = np.arange(1, max_workers + 2, dtype=float)
        speedup = (numbers if self.series.scaling == "weak" else 1) / (terms(numbers) @ self.factors)
        best = int(numbers[np.argmax(speedup**2 / numbers)])
        return best if best <= max_workers else None

    def _times(self, workers: int) -> tuple[float, NDArray[np.float64]]:
        if workers < 1:
            raise ConfigurationError(f"A step needs at least one worker; got {workers} workers.")
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


def fit(series: Series) -> FittedLaw | NoFit:
    """Fit a scaling law to the step times of a line, as simple as the noise allows.

    AICc (Hurvich and Tsai, "Regression and Time Series Model Selection in Small Samples", Biometrika 1989) over all
    runs chooses the model; with too few runs for that, each further parameter has to halve the variance.

    Args:
        series: the line. Failed cells are left out.

    Returns:
        The law, or why there is none: fewer than three numbers of workers were measured.
    """
    cells = [one for one in series.cells if one.runs]
    if len(cells) < FEWEST:
        return NoFit(series, _too_few(series, cells))
    times, models = CellTimes.of(cells), models_for(series.scaling, len(cells))
    factors, squares = fit_models(models, times, times.means[None])
    values = criteria(models, times, squares, np.array([times.within]))[:, 0]
    best = int(values.argmin())
    model = models[best]
    resampled, within = _resampled(times, *times.noise(float(squares[best, 0]), len(model.columns)))
    drawn, squares_drawn = fit_models(models, times, resampled)
    chosen = criteria(models, times, squares_drawn, within).argmin(axis=0)
    parameters, parameters_drawn = (model.parameters(one) for one in (factors[best, 0], drawn[best]))
    if series.scaling == "weak":
        parameters["gustafson_serial_share"] = gustafson(times.workers, factors[best, 0])
        parameters_drawn["gustafson_serial_share"] = gustafson(times.workers, drawn[best])
    estimates = {
        name: _estimate(float(value), parameters_drawn[name], times.runs) for name, value in parameters.items()
    }
    deviation = math.sqrt(squares[best, 0] / times.runs)
    return FittedLaw(
        series=series,
        name=model.name,
        formula=model.formula,
        parameters=estimates,
        words=" ".join(
            [*_meaning(series.scaling, estimates), *_choice(models, times, values), *_cautions(cells, deviation)]
        ),
        workers=times.workers,
        runs=times.runs,
        deviation=deviation,
        factors=factors[best, 0],
        drawn=drawn[chosen, np.arange(RESAMPLED)],
    )


def _resampled(times: CellTimes, variance: float, freedom: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the means of resampled experiments, and their sums of squares within cells."""
    generator = np.random.default_rng(0)
    scale = np.sqrt(variance * freedom / generator.chisquare(freedom, (RESAMPLED, 1)))
    noise = scale * generator.standard_normal((RESAMPLED, len(times.means))) / np.sqrt(times.repeats)
    # As logarithms, so that no time is negative; limited, because with one degree of freedom t reaches any number.
    means = times.means * np.exp(np.clip(noise, -LARGEST, LARGEST))
    if not times.within_freedom:
        return means, np.zeros(RESAMPLED)
    return means, times.within / times.within_freedom * generator.chisquare(times.within_freedom, RESAMPLED)


def _estimate(value: float, drawn: NDArray[np.float64], runs: int) -> Estimate:
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value), runs)


def _meaning(scaling: Scaling, parameters: Mapping[str, Estimate]) -> list[str]:
    """Return what a law with these parameters says, in sentences."""
    sentences = []
    if "serial_share" in parameters:
        sentences.append(
            f"More workers do not shorten {percent_text(parameters['serial_share'])} of the step of one worker: work "
            "that is not divided, or communication, which strong scaling cannot tell apart."
        )
    if "transfer" in parameters:
        sentences.append(f"Sending gradients takes up to {time_text(parameters['transfer'].times(2))} of a step.")
    if "latency" in parameters:
        latency = time_text(parameters["latency"])
        sentences.append(f"Each further worker adds {latency} to a step: the latency of a ring.")
    if sentences:
        return sentences
    if scaling == "strong":
        return ["The work is divided among the workers, at no cost that stands out from the noise."]
    return ["A step takes equally long with any number of workers, within the noise."]


def _choice(models: Sequence[ScalingModel], times: CellTimes, values: NDArray[np.float64]) -> list[str]:
    """Return why a model was chosen, in sentences."""
    best, second = sorted(zip(values.tolist(), models, strict=True), key=lambda one: one[0])[:2]
    lead = second[0] - best[0]
    runs = f"{times.runs} runs with {len(times.workers)} numbers of workers"
    chosen = f"'{best[1].name}' was chosen among {len(models)} models for {runs}"
    if not enough_runs(models, times):
        return [
            f"{chosen}: each further parameter had to halve the variance.",
            "More repeats make the choice more certain.",
        ]
    close = f"; '{second[1].name}' is about as good" if lead <= CLOSE else ""
    return [f"{chosen}: its AICc is {lead:.1f} lower than that of '{second[1].name}'{close}."]


def _cautions(cells: Sequence[CellSummary], deviation: float) -> list[str]:
    sentences = [f"The means deviate from it by {percent_text(deviation)}."]
    if len(cells) == FEWEST:
        sentences.append("Three numbers of workers are the fewest that allow a guess: measure more of them.")
    if all(run.nodes == 1 for one in cells for run in one.measured):
        sentences.append("All was measured on one node: the law does not include the network between nodes.")
    return sentences


def _too_few(series: Series, cells: Sequence[CellSummary]) -> str:
    numbers = ", ".join(str(one.cell.workers) for one in cells) or "none"
    failed = ", ".join(str(one.cell.workers) for one in series.cells if not one.runs)
    return (
        f"A law needs {FEWEST} different numbers of workers, and {series.strategy} was measured with {numbers} only"
        f"{f' (failed: {failed})' if failed else ''}."
    )

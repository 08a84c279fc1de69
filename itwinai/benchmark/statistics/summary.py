"""A benchmark in numbers: cells, lines of cells, their speed-ups, losses that are wrong, and how many runs are done."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from itwinai.benchmark.records import BenchmarkRecord, Cell, Measurement, Scaling
from itwinai.benchmark.statistics.cell_summary import CellSummary, cell_text
from itwinai.benchmark.statistics.confidence_intervals import Estimate, ratio_of

__all__ = ["CellSummary", "Series", "Summary", "SuspiciousLoss", "cell_text", "summarize", "suspicious_losses"]

Axes = tuple[tuple[str, str], ...]

LOSS_TOLERANCE = 0.01
"""Relative difference of a loss from those of others that is no longer taken for rounding: the same samples, in another
order of summation, differ by far less."""


@dataclass(frozen=True)
class Series:
    """Cells that differ in their number of workers only: one line of a picture.

    Attributes:
        strategy: of all of them.
        scaling: of all of them with more than one worker. The one with one worker belongs to both.
        axes: of all of them.
        cells: by number of workers, also those that have failed.
    """

    strategy: str
    scaling: Scaling
    axes: Axes
    cells: tuple[CellSummary, ...]


@dataclass(frozen=True)
class Summary:
    """A benchmark in numbers.

    Attributes:
        record: what it is made of.
        cells: the strategy of the baseline first, the others by name; those of a strategy by scaling, axes and number
            of workers. The order in which they were run is random.
        series: the same, as lines; a strategy that was run with one worker only has one for each scaling.
        baselines: the cells that others are compared with, at most one for each scaling and combination of axes.
        notes: what is not known, and why, in sentences.
    """

    record: BenchmarkRecord
    cells: tuple[CellSummary, ...]
    series: tuple[Series, ...]
    baselines: tuple[CellSummary, ...]
    notes: tuple[str, ...] = ()

    def of(self, cell: Cell) -> CellSummary | None:
        """Return the summary of a cell; None if it was never run."""
        return next((summary for summary in self.cells if summary.cell == cell), None)

    @property
    def completion(self) -> Completion:
        """How many of the planned runs are done: an interrupted benchmark has fewer."""
        repeats = self.record.repeats
        done = sum(one.tries for one in self.cells)
        # Without a planned number of repeats, failed cells lack what the most repeated cell has.
        most = repeats or max((one.tries for one in self.cells), default=0)
        skipped = sum(max(most - len(one.failed), 0) for one in self.cells if not one.runs)
        return Completion(self.record.asked, done, skipped, repeats)


@dataclass(frozen=True)
class Completion:
    """How many runs of a benchmark are done.

    Attributes:
        planned: number of runs; 0 if unknown.
        done: runs that have ended, successful or not.
        skipped: runs that are not made because their cell has failed before and never succeeded.
        repeats: planned for each cell; 0 if unknown.
    """

    planned: int
    done: int
    skipped: int
    repeats: int

    @property
    def unfinished(self) -> bool:
        """Whether runs are left to make."""
        return self.planned > self.done + self.skipped

    def continues(self, cell: CellSummary) -> bool:
        """Return whether runs of a cell are left to make; if its repeats are unknown, whether any are."""
        return self.unfinished and (not self.repeats or cell.tries < self.repeats)


@dataclass(frozen=True)
class SuspiciousLoss:
    """A cell that trains something else than others: do not trust its speed until that is explained.

    Attributes:
        cell: the cell.
        loss: of its last step, as a mean over its runs.
        reference: loss that it should have.
        compared_with: the cells that say so. If it is the baseline alone, all strategies with that number of workers
            may agree with each other: dropout and batch normalization do not add up to the same over several workers.
    """

    cell: Cell
    loss: float
    reference: float
    compared_with: tuple[Cell, ...]

    @property
    def difference(self) -> float:
        """Difference from the reference, as a share of it: 0.02 for 2 %; infinite or NaN if one of both is."""
        return _relative(self.loss, self.reference)


def summarize(record: BenchmarkRecord) -> Summary:
    """Return a benchmark in numbers.

    Where a repeat of a cell was run again, as `--retry-failed` does, the last one counts.

    Args:
        record: the benchmark.
    """
    plain = _ordered(_by_cell(record), record.baseline)
    baselines: dict[Cell, CellSummary] = {}
    notes: dict[str, None] = {}
    cells = []
    for one in plain:
        baseline = _baseline_of(one.cell, plain, record.baseline)
        if baseline is None or not baseline.runs:
            notes[_no_baseline(one.cell, baseline, record.baseline)] = None
            cells.append(one)
            continue
        speedup = _speedup(one, baseline)
        efficiency = None if speedup is None else speedup.times(1 / one.cell.workers)
        cells.append(replace(one, baseline=baseline.cell, speedup=speedup, efficiency=efficiency))
        baselines[baseline.cell] = baseline
    return Summary(
        record,
        tuple(cells),
        _series(cells),
        tuple(one for one in cells if one.cell in baselines),
        tuple(notes),
    )


def suspicious_losses(summary: Summary) -> list[SuspiciousLoss]:
    """Return the cells whose loss differs from that of the others by more than 1 %: fast, but wrong.

    All strategies see the same samples with the same number of workers, scaling and axes, so that their losses are the
    same but for rounding. With strong scaling that holds for all numbers of workers, and the baseline is compared too.
    The reference is the median, which a single wrong one among three does not move. Those that agree with the median
    still have to agree with the baseline, which itself is trusted. Of two without a baseline
    either may be wrong: both are returned.

    Args:
        summary: the benchmark.
    """
    found: dict[Cell, SuspiciousLoss] = {}
    for group in _comparable(summary):
        losses = {one.cell: one.loss.mean for one in group if one.loss is not None}
        baseline = next((one.cell for one in summary.baselines if one.cell in losses), None)
        for one in _differing(losses, baseline):
            found.setdefault(one.cell, one)
    return list(found.values())


def _by_cell(record: BenchmarkRecord) -> list[CellSummary]:
    newest = {(one.cell, one.repeat): one for one in record.measurements}
    grouped: dict[Cell, list[Measurement]] = {}
    for one in newest.values():
        grouped.setdefault(one.cell, []).append(one)
    summaries = []
    for cell, measurements in grouped.items():
        ordered = sorted(measurements, key=lambda one: one.repeat)
        good = [one for one in ordered if one.status == "measured" and one.measured is not None]
        summaries.append(CellSummary(cell, tuple(good), tuple(one for one in ordered if one not in good)))
    return summaries


def _ordered(cells: Sequence[CellSummary], baseline: str) -> list[CellSummary]:
    def scaling(cell: Cell) -> Scaling:
        """Return the scaling that a cell with one worker stands with: the first that its strategy has."""
        own = [one.cell.scaling for one in cells if one.cell.strategy == cell.strategy and one.cell.workers > 1]
        return min(own, default=cell.scaling) if cell.workers == 1 else cell.scaling

    def place(one: CellSummary) -> tuple[object, ...]:
        cell = one.cell
        values = [(path, _number(value), value) for path, value in cell.axes]
        return cell.strategy != baseline, cell.strategy, scaling(cell), values, cell.workers

    return sorted(cells, key=place)


def _number(value: str) -> float:
    """Return the number that a value is, for 64 to stand before 128; infinity for words, which come last."""
    try:
        number = float(value)
    except ValueError:
        return math.inf
    return math.inf if math.isnan(number) else number


def _baseline_of(cell: Cell, cells: Sequence[CellSummary], strategy: str) -> CellSummary | None:
    """Return the baseline of the same axes with the fewest workers, rather one that was measured and scales alike."""
    alike = [one for one in cells if one.cell.strategy == strategy and one.cell.axes == cell.axes]
    order = [(one.cell.workers, not one.runs, one.cell.scaling != cell.scaling) for one in alike]
    return alike[order.index(min(order))] if alike else None


def _no_baseline(cell: Cell, baseline: CellSummary | None, strategy: str) -> str:
    if baseline is None:
        axes = f" with {', '.join(f'{path}={value}' for path, value in cell.axes)}" if cell.axes else ""
        return f"No speed-up is known{axes}: the baseline, {strategy}, was not run."
    return f"No speed-up is known: the baseline, {cell_text(baseline.cell)}, has failed."


def _speedup(one: CellSummary, baseline: CellSummary) -> Estimate | None:
    if not one.runs:
        return None
    workers = baseline.cell.workers
    if one.cell == baseline.cell:  # by definition, so that nothing is uncertain
        return Estimate(workers, workers, workers, len(one.runs))
    by_samples = one.throughput is not None and baseline.throughput is not None
    return ratio_of(one.rates(by_samples), baseline.rates(by_samples)).times(workers)


def _series(cells: Sequence[CellSummary]) -> tuple[Series, ...]:
    lines: dict[tuple[str, Axes], list[CellSummary]] = {}
    for one in cells:
        lines.setdefault((one.cell.strategy, one.cell.axes), []).append(one)
    series = []
    for (strategy, axes), members in lines.items():
        for scaling in _scalings(members) or _scalings(cells) or [members[0].cell.scaling]:
            # Later ones win: of two with one worker, that of this scaling.
            alike = sorted(members, key=lambda one: one.cell.scaling == scaling)
            line = {one.cell.workers: one for one in alike if one.cell.workers == 1 or one.cell.scaling == scaling}
            series.append(Series(strategy, scaling, axes, tuple(line[workers] for workers in sorted(line))))
    return tuple(series)


def _scalings(cells: Sequence[CellSummary]) -> list[Scaling]:
    """Return the scalings of the cells with several workers: with one worker there is no scaling."""
    return list(dict.fromkeys(one.cell.scaling for one in cells if one.cell.workers > 1))


def _comparable(summary: Summary) -> list[list[CellSummary]]:
    """Return groups of cells that train with the same samples."""
    groups: dict[tuple[int, Scaling, Axes], dict[Cell, CellSummary]] = {}
    for line in summary.series:
        for one in line.cells:
            key = (one.cell.workers, one.cell.scaling if one.cell.workers > 1 else "strong", line.axes)
            groups.setdefault(key, {})[one.cell] = one
    for (_, scaling, axes), members in groups.items():
        for baseline in summary.baselines:
            same = baseline.cell.workers == 1 or baseline.cell.scaling == "strong"
            if scaling == "strong" and baseline.cell.axes == axes and same:
                members.setdefault(baseline.cell, baseline)
    return [list(members.values()) for members in groups.values()]


def _differing(losses: Mapping[Cell, float], baseline: Cell | None) -> Iterator[SuspiciousLoss]:
    middle = _median(list(losses.values())) if len(losses) > 2 else None
    for cell, loss in losses.items():
        others = tuple(other for other in losses if other != cell)
        if cell == baseline or not others:
            continue
        if middle is not None and _differs(loss, middle):
            yield SuspiciousLoss(cell, loss, middle, others)
        elif baseline is not None and _differs(loss, losses[baseline]):
            yield SuspiciousLoss(cell, loss, losses[baseline], (baseline,))
        elif baseline is None and len(others) == 1 and _differs(loss, losses[others[0]]):
            yield SuspiciousLoss(cell, loss, losses[others[0]], others)


def _differs(loss: float, reference: float) -> bool:
    both_nan = math.isnan(loss) and math.isnan(reference)
    return not both_nan and not _relative(loss, reference) <= LOSS_TOLERANCE  # one NaN alone differs


def _median(losses: Sequence[float]) -> float:
    ordered = sorted(losses, key=lambda loss: (math.isnan(loss), loss))  # NaN has no order: it goes last
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _relative(loss: float, reference: float) -> float:
    if loss == reference:
        return 0.0
    return abs(loss - reference) / abs(reference) if reference else math.inf

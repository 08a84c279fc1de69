"""Figures that cannot be what they seem: too efficient, or disturbed by steps that stall or by other programs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from itwinai.benchmark.record_file import RECORDS
from itwinai.benchmark.records import Cell, Measured
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.groups import Speed, naming_of
from itwinai.benchmark.statistics.summary import Axes, Summary
from itwinai.benchmark.telling.amounts import estimate_text, number_text, seconds_text, share_text
from itwinai.reporting.formatting import count_text

IMPLAUSIBLE = 1.5
"""Efficiency above which the baseline is doubted: more cache for each worker gives some percent, but not half as much
again."""

SURELY_IMPLAUSIBLE = 1.2
"""The same for the lower end of the interval."""

STALLING = 2.0
"""Mean step by the median one from which on some steps are said to stall."""

UNSTABLE = 2.0
"""Fastest run of a cell by its slowest one from which on they are not runs of the same thing."""

OTHERS = 0.3
"""Cores that other programs use, as a mean, from which on they are told of: an idle desktop uses less."""


def is_implausible(cell: CellSummary) -> bool:
    """Tell whether a cell is more efficient than workers can be."""
    one = cell.efficiency
    return one is not None and (one.mean > IMPLAUSIBLE or (one.low is not None and one.low > SURELY_IMPLAUSIBLE))


@dataclass(frozen=True)
class Doubt:
    """Something that makes figures doubtful: of what is in doubt nothing is recommended.

    Attributes:
        text: what it is, in sentences.
        cells: whose figures it concerns.
    """

    text: str
    cells: frozenset[Cell]


def doubts(summary: Summary, speed: Speed, doubted: Collection[Cell] = ()) -> list[Doubt]:
    """Return what makes the figures doubtful.

    Args:
        summary: the benchmark.
        speed: what speeds are told in.
        doubted: cells whose loss is wrong, which explains any efficiency.
    """
    found = [
        *_threads(summary),
        *_implausible(summary, speed, doubted),
        *_unstable(summary, speed),
        *_stalling(summary),
    ]
    noted = _others(summary)
    if noted and fmean(noted) > OTHERS:
        text = (
            f"Other programs used {others_text(summary)}: they slow some runs more than others. Measure on a machine "
            "with nothing else to do."
        )
        found.append(Doubt(text, frozenset(one.cell for one in summary.cells)))
    return found


def others_text(summary: Summary) -> str:
    """Return what other programs used of the machine; empty where that was not noted."""
    noted = _others(summary)
    if not noted:
        return ""
    return f"{fmean(noted):.1f} cores on average right before the runs, {max(noted):.1f} at most"


def threads_text(summary: Summary) -> str:
    """Return how many threads workers computed with; empty where that was not noted."""
    by_threads = _cells_by_threads(summary.cells)
    if len(by_threads) == 1:
        (threads,) = by_threads
        return f"{count_text(threads, 'thread')} per worker in all cells"
    naming = naming_of([one.cell for one in summary.cells])
    return "; ".join(
        f"{count_text(threads, 'thread')} per worker in {naming.cells(cells)}" for threads, cells in by_threads.items()
    )


def _cells_by_threads(cells: Sequence[CellSummary]) -> dict[int, list[Cell]]:
    found: dict[int, list[Cell]] = {}
    for one in cells:
        for threads in sorted({run.threads for run in one.measured if run.threads}):
            found.setdefault(threads, []).append(one.cell)
    return found


def _others(summary: Summary) -> list[float]:
    runs = [run for one in summary.cells for run in (*one.runs, *one.failed)]
    return [run.others for run in runs if run.others is not None]


def _threads(summary: Summary) -> Iterator[Doubt]:
    """Yield which cells were computed with different numbers of threads, unless these are what is varied."""
    by_axes: dict[Axes, list[CellSummary]] = {}
    for one in summary.cells:
        by_axes.setdefault(one.cell.axes, []).append(one)
    naming = naming_of([one.cell for one in summary.cells])
    for cells_of_axes in by_axes.values():
        if len(by_threads := _cells_by_threads(cells_of_axes)) > 1:
            told = "; ".join(
                f"{count_text(threads, 'thread')} in {naming.cells(cells)}" for threads, cells in by_threads.items()
            )
            yield Doubt(
                f"Workers computed with different numbers of threads, so their speeds cannot be compared: {told}. "
                "Measure again in a new --folder, where all cells have the same (--threads).",
                frozenset(cell for cells in by_threads.values() for cell in cells),
            )


def _unstable(summary: Summary, speed: Speed) -> Iterator[Doubt]:
    """Yield which cells have runs that are not alike."""
    unlike: dict[Cell, list[float]] = {}
    for one in summary.cells:
        rates = speed.runs(one)
        if len(rates) > 1 and max(rates) >= UNSTABLE * min(rates) > 0:
            unlike[one.cell] = rates
    if unlike:
        naming = naming_of([one.cell for one in summary.cells])
        cell, rates = max(unlike.items(), key=lambda item: max(item[1]) / min(item[1]))
        others = naming.cells([other for other in unlike if other != cell])
        yield Doubt(
            f"Runs of {naming.cells([cell])} differ by a factor of {number_text(max(rates) / min(rates))} "
            f"({number_text(min(rates))} to {number_text(max(rates))} {speed.unit})"
            f"{f'; so do those of {others}, by {UNSTABLE:g} or more' if others else ''}. "
            "Measure on a machine with nothing else to do.",
            frozenset(unlike),
        )


def _implausible(summary: Summary, speed: Speed, doubted: Collection[Cell]) -> Iterator[Doubt]:
    naming = naming_of([one.cell for one in summary.cells])
    by_baseline: dict[Cell, list[CellSummary]] = {}
    for one in summary.cells:
        if one.baseline is not None and one.cell not in doubted and is_implausible(one):
            by_baseline.setdefault(one.baseline, []).append(one)
    for cell, members in by_baseline.items():
        baseline = summary.of(cell)
        if baseline is None:
            continue
        most = max(one.efficiency.mean for one in members if one.efficiency is not None)
        which = naming.cells([one.cell for one in members])
        text = (
            f"An efficiency of {number_text(100 * most)} % ({which}) is not to be believed: more than 100 % is rarely "
            f"real. The baseline, {naming.cells([cell])}, was probably slowed by other programs: "
            f"{_spread(baseline, speed)}. Do not trust the speed-ups, and measure it again: take a new --folder, or "
            f"remove its lines from {RECORDS} and go on with --resume (--retry-failed does not measure it again)."
        )
        yield Doubt(text, frozenset([cell, *(one.cell for one in members)]))


def _spread(cell: CellSummary, speed: Speed) -> str:
    """Return how fast a cell is, and how evenly."""
    told = [f"{estimate_text(speed.of(cell))} {speed.unit}"] if speed.of(cell) is not None else []
    if cell.step_p50 is not None and cell.step_p95 is not None and cell.step_p50.mean > 0:
        told.append(f"p95 of its steps is {number_text(cell.step_p95.mean / cell.step_p50.mean)} times p50")
    rates = speed.runs(cell)
    if len(rates) > 1:
        told.append(
            f"the slowest of {count_text(len(rates), 'run')} is {share_text(1 - min(rates) / max(rates))} slower than "
            "the fastest"
        )
    return ", ".join(told)


def _stalling(summary: Summary) -> Iterator[Doubt]:
    """Yield which cells have steps that take far longer than the median one; a mean is never far below a median."""
    stalling: dict[Cell, list[Measured]] = {}
    for summarized in summary.cells:
        for run in summarized.measured:
            if run.seconds > STALLING * run.step_p50 * run.steps and run.step_p50 > 0:
                stalling.setdefault(summarized.cell, []).append(run)
    if not stalling:
        return
    naming = naming_of([one.cell for one in summary.cells])
    worst = {cell: max(runs, key=lambda one: one.seconds / one.steps / one.step_p50) for cell, runs in stalling.items()}
    cell, one = max(worst.items(), key=lambda item: item[1].seconds / item[1].steps / item[1].step_p50)
    text = (
        f"Steps stall with {naming.cells(list(stalling))}: some take far longer than others, so that samples/s is less "
        f"than p50 says. Worst is {naming.cells([cell])}, with {seconds_text(one.seconds / one.steps)} for a step as a "
        f"mean, but a p50 of {seconds_text(one.step_p50)} and a p95 of {seconds_text(one.step_p95)}. Look for other "
        "programs, or for a disk that data come from."
    )
    yield Doubt(text, frozenset(stalling))

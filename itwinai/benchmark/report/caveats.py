"""Warnings about doubtful figures: too efficient, unstable, stalling, disturbed by other programs, wrong losses."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from itwinai.benchmark.record_file import RECORDS
from itwinai.benchmark.records import Cell, Measured
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.groups import Speed, naming_of
from itwinai.benchmark.statistics.summary import Axes, Summary, SuspiciousLoss
from itwinai.reporting.formatting import count_text, estimate_text, number_text, percent_text, time_text

IMPLAUSIBLE = 1.5
"""Efficiency above which the baseline is doubtful: more cache per worker gains some percent, but not half."""

SURELY_IMPLAUSIBLE = 1.2
"""The same for the lower end of the interval."""

STALLING = 2.0
"""Mean step divided by the median one from which on some steps stall."""

UNSTABLE = 2.0
"""Fastest run of a cell divided by its slowest from which on its runs are not alike."""

OTHERS = 0.3
"""Mean cores used by other programs from which on there is a warning: an idle desktop uses less."""

MAYBE_ROUNDING = 0.1
"""Relative difference of two losses up to which rounding may be the reason: Adam's steps do not shrink with the
gradients, so that those near zero, whose sign rounding decides, move the weights apart."""

SHOWN = 4
"""Most sentences of a kind."""


@dataclass(frozen=True)
class Caveat:
    """What makes the figures of ``cells`` doubtful, so that none of their groups gets a recommendation."""

    text: str
    cells: frozenset[Cell]


def doubtful_figures(summary: Summary, speed: Speed, excluded: Collection[Cell] = ()) -> list[Caveat]:
    """Return the warnings about figures that cannot be trusted.

    Args:
        summary: the benchmark.
        speed: unit of speeds.
        excluded: cells whose loss is wrong, which explains any efficiency.
    """
    return [
        *_threads(summary),
        *_implausible(summary, speed, excluded),
        *_unstable(summary, speed),
        *_stalling(summary),
        *_other_programs(summary),
    ]


def wrong_losses(suspicious: Sequence[SuspiciousLoss], summary: Summary) -> Iterator[str]:
    """Yield warnings about losses that differ from those of others, or are not finite."""
    naming = naming_of([one.cell for one in summary.cells])
    for one in suspicious[:SHOWN]:
        few = len(one.compared_with) == 1
        others = naming.cells(one.compared_with) if few else f"{len(one.compared_with)} others on the same samples"
        consequence = (
            "Its speed is left out below until that is explained."
            if differs_from_its_like(one, summary)
            else "Dropout and batch normalization can be the reason: they are not the same with several workers. "
            "Otherwise do not trust its speed."
        )
        yield (
            f"{naming.cells([one.cell])} ended with a loss of {one.loss:.4g}, and {others} with {one.reference:.4g}: "
            f"{_verdict(one)}. {consequence}"
        )
    if more := suspicious[SHOWN:]:
        yield f"The same holds for {count_text(len(more), 'more cell')}: {naming.cells([one.cell for one in more])}."
    lost = [one.cell for one in summary.cells if one.loss is not None and not math.isfinite(one.loss.mean)]
    if lost and not suspicious:
        yield f"The loss of {naming.cells(lost)} is not finite: the training diverges."


def _verdict(one: SuspiciousLoss) -> str:
    """Return what a loss says of a cell: a small difference may have grown out of rounding."""
    if abs(one.loss - one.reference) <= MAYBE_ROUNDING * abs(one.reference):
        return (
            "it may have trained something else, or rounding has grown over the steps, as it does with Adam; "
            "`itwinai check` compares the weights after a few steps, and tells which"
        )
    return "it trained something else"


def differs_from_its_like(one: SuspiciousLoss, summary: Summary) -> bool:
    """Return whether a loss differs not only from the baseline, as the losses of all cells with several workers may."""
    return one.compared_with not in [(baseline.cell,) for baseline in summary.baselines]


def other_programs_text(summary: Summary) -> str:
    """Return what other programs used of the machine; empty if unknown."""
    noted = _others(summary)
    return f"{fmean(noted):.1f} cores on average right before the runs, {max(noted):.1f} at most" if noted else ""


def threads_text(summary: Summary) -> str:
    """Return the threads of the workers; empty if unknown."""
    by_threads = _cells_by_threads(summary.cells)
    if len(by_threads) == 1:
        return f"{count_text(next(iter(by_threads)), 'thread')} per worker in all cells"
    naming = naming_of([one.cell for one in summary.cells])
    return "; ".join(
        f"{count_text(n, 'thread')} per worker in {naming.cells(cells)}" for n, cells in by_threads.items()
    )


def is_implausible(cell: CellSummary) -> bool:
    """Return whether a cell is more efficient than workers can be."""
    one = cell.efficiency
    return one is not None and (one.mean > IMPLAUSIBLE or (one.low is not None and one.low > SURELY_IMPLAUSIBLE))


def _cells_by_threads(cells: Sequence[CellSummary]) -> dict[int, list[Cell]]:
    found: dict[int, list[Cell]] = {}
    for one in cells:
        for threads in sorted({run.threads for run in one.measured if run.threads}):
            found.setdefault(threads, []).append(one.cell)
    return found


def _others(summary: Summary) -> list[float]:
    runs = [run for one in summary.cells for run in (*one.runs, *one.failed)]
    return [run.others for run in runs if run.others is not None]


def _other_programs(summary: Summary) -> Iterator[Caveat]:
    noted = _others(summary)
    if noted and fmean(noted) > OTHERS:
        yield Caveat(
            f"Other programs used {other_programs_text(summary)}: they slow some runs more than others. Measure on an "
            "idle machine.",
            frozenset(one.cell for one in summary.cells),
        )


def _threads(summary: Summary) -> Iterator[Caveat]:
    """Different numbers of threads, unless these are what is varied."""
    by_axes: dict[Axes, list[CellSummary]] = {}
    for one in summary.cells:
        by_axes.setdefault(one.cell.axes, []).append(one)
    naming = naming_of([one.cell for one in summary.cells])
    for cells_of_axes in by_axes.values():
        if len(by_threads := _cells_by_threads(cells_of_axes)) > 1:
            which = "; ".join(f"{count_text(n, 'thread')} in {naming.cells(cells)}" for n, cells in by_threads.items())
            yield Caveat(
                f"Workers computed with different numbers of threads, so their speeds cannot be compared: {which}. "
                "Measure again in a new --folder, where all cells have the same (--threads).",
                frozenset(cell for cells in by_threads.values() for cell in cells),
            )


def _unstable(summary: Summary, speed: Speed) -> Iterator[Caveat]:
    all_rates = {one.cell: speed.runs(one) for one in summary.cells}
    unlike = {
        cell: rates for cell, rates in all_rates.items() if len(rates) > 1 and max(rates) >= UNSTABLE * min(rates) > 0
    }
    if not unlike:
        return
    naming = naming_of([one.cell for one in summary.cells])
    cell, rates = max(unlike.items(), key=lambda item: max(item[1]) / min(item[1]))
    others = naming.cells([other for other in unlike if other != cell])
    yield Caveat(
        f"Runs of {naming.cells([cell])} differ by a factor of {number_text(max(rates) / min(rates))} "
        f"({number_text(min(rates))} to {number_text(max(rates))} {speed.unit})"
        f"{f'; so do those of {others}, by {UNSTABLE:g} or more' if others else ''}. Measure on an idle machine.",
        frozenset(unlike),
    )


def _implausible(summary: Summary, speed: Speed, excluded: Collection[Cell]) -> Iterator[Caveat]:
    naming = naming_of([one.cell for one in summary.cells])
    by_baseline: dict[Cell, list[CellSummary]] = {}
    for one in summary.cells:
        if one.baseline is not None and one.cell not in excluded and is_implausible(one):
            by_baseline.setdefault(one.baseline, []).append(one)
    for cell, members in by_baseline.items():
        baseline = summary.of(cell)
        assert baseline is not None
        most = max(one.efficiency.mean for one in members if one.efficiency is not None)
        yield Caveat(
            f"An efficiency of {number_text(100 * most)} % ({naming.cells([one.cell for one in members])}) is not "
            f"plausible: more than 100 % is rarely real. Other programs probably slowed the baseline, "
            f"{naming.cells([cell])}: {_spread(baseline, speed)}. Do not trust the speed-ups, and measure it again: "
            f"use a new --folder, or remove its lines from {RECORDS} and use --resume (--retry-failed does not "
            "measure it again).",
            frozenset([cell, *(one.cell for one in members)]),
        )


def _spread(cell: CellSummary, speed: Speed) -> str:
    """Return how fast a cell is, and how evenly."""
    texts = [f"{estimate_text(speed.of(cell))} {speed.unit}"] if speed.of(cell) is not None else []
    if cell.step_p50 is not None and cell.step_p95 is not None and cell.step_p50.mean > 0:
        texts.append(f"p95 of its steps is {number_text(cell.step_p95.mean / cell.step_p50.mean)} times p50")
    rates = speed.runs(cell)
    if len(rates) > 1:
        slower = percent_text(1 - min(rates) / max(rates))
        texts.append(f"the slowest of {count_text(len(rates), 'run')} is {slower} slower than the fastest")
    return ", ".join(texts)


def _stalling(summary: Summary) -> Iterator[Caveat]:
    """Steps that take far longer than the median one; a mean is never far below a median."""
    stalling: dict[Cell, list[Measured]] = {}
    for summarized in summary.cells:
        for run in summarized.measured:
            if run.seconds > STALLING * run.step_p50 * run.steps and run.step_p50 > 0:
                stalling.setdefault(summarized.cell, []).append(run)
    if not stalling:
        return
    naming = naming_of([one.cell for one in summary.cells])
    runs = [(cell, run) for cell, own in stalling.items() for run in own]
    cell, one = max(runs, key=lambda pair: pair[1].seconds / pair[1].steps / pair[1].step_p50)
    yield Caveat(
        f"Steps stall with {naming.cells(list(stalling))}: some take far longer than others, so samples/s is less than "
        f"p50 suggests. The worst is {naming.cells([cell])}: a step takes {time_text(one.seconds / one.steps)} on "
        f"average, with a p50 of {time_text(one.step_p50)} and a p95 of {time_text(one.step_p95)}. Look for other "
        "programs, or a slow disk that data come from.",
        frozenset(stalling),
    )

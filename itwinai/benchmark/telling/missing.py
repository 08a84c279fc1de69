"""What a benchmark could not find out, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from itwinai.benchmark.records import Cell, Measurement
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.groups import Naming, Speed, naming_of
from itwinai.benchmark.statistics.summary import Summary
from itwinai.report.search.names import shortened
from itwinai.report.words import count_text

TOLD = 4
"""Most errors that are told."""


def failed_text(summary: Summary) -> Iterator[str]:
    """Yield which cells have no result, and why; and of which cells some runs have failed.

    Args:
        summary: the benchmark.
    """
    naming = naming_of([one.cell for one in summary.cells])
    failed = [one for one in summary.cells if not one.runs]
    if failed:
        yield f"{len(failed)} of {count_text(len(summary.cells), 'cell')} have no result."
    kinds: dict[tuple[str, str], list[Cell]] = {}
    for one in failed:
        kinds.setdefault((one.failed[-1].status, error_of(one.failed[-1])), []).append(one.cell)
    for (status, error), cells in list(kinds.items())[:TOLD]:
        yield f"{_cells_text(cells, summary, naming)} {status}: {error.rstrip('.')}."
    if len(kinds) > TOLD:
        yield f"{len(kinds) - TOLD} other errors are in the report."
    for one in [one for one in summary.cells if one.runs and one.failed][:TOLD]:
        runs = len(one.runs) + len(one.failed)
        error = error_of(one.failed[-1]).rstrip(".")
        yield f"{naming.cells([one.cell])}: {len(one.failed)} of {count_text(runs, 'run')} failed: {error}."


def error_of(measurement: Measurement, most: int = 160) -> str:
    """Return the error of a run in one line.

    Args:
        measurement: the run.
        most: characters of it.
    """
    lines = measurement.error.strip().splitlines()
    return shortened(lines[0], most) if lines else "no error is known"


def missing_text(summary: Summary, speed: Speed) -> Iterator[str]:
    """Yield what could not be measured, and why, without full stops.

    Args:
        summary: the benchmark.
        speed: what speeds are told in.
    """
    measured = [one for one in summary.cells if one.runs]
    if not measured:
        return
    if not speed.by_samples:
        yield "samples per second: the runs do not tell their number of samples, and batches are counted instead"
    once = [one for one in measured if len(one.runs) == 1]
    if once:
        which = "each cell has" if len(once) == len(measured) else f"{count_text(len(once), 'cell')} of them have"
        yield f"how far chance moves the figures: {which} one run only. Take --repeats 3 or more"
    reasons = (one.no_joules.rstrip(".") for one in measured if one.joules_per_sample is None)
    energy = "; ".join(reason or "nothing is known of it" for reason in list(dict.fromkeys(reasons))[:2])
    quantities: dict[str, Callable[[CellSummary], object]] = {
        f"energy: {energy}": lambda one: one.joules_per_sample,
        "where a step goes: the loop of these runs does not tell": lambda one: one.breakdown,
        "memory: the system does not tell": lambda one: one.peak_memory,
        "loss: the step returns none, so that nobody knows whether all train the same": lambda one: one.loss,
    }
    for told, of in quantities.items():
        without = [one for one in measured if of(one) is None]
        if without:
            some = f" ({len(without)} of {count_text(len(measured), 'cell')})" if len(without) < len(measured) else ""
            yield f"{told}{some}"


def _cells_text(cells: Sequence[Cell], summary: Summary, naming: Naming) -> str:
    """Return cells in words; the name of a strategy is enough if they are all that it has."""
    whole, others = [], []
    for strategy, own in groupby(cells, lambda cell: cell.strategy):
        some = list(own)
        every = [one.cell for one in summary.cells if one.cell.strategy == strategy]
        if len(some) == len(every) > 1:
            whole.append(f"{strategy} ({'both' if len(every) == 2 else f'all {len(every)}'} cells)")
        else:
            others.append(naming.cells(some))
    return "; ".join([*whole, *others])

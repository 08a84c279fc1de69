"""What a benchmark could not find out, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from itwinai.benchmark.records import Cell, Measurement
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.course import Course, course_of
from itwinai.benchmark.statistics.groups import Naming, Speed, naming_of
from itwinai.benchmark.statistics.summary import Summary
from itwinai.reporting.formatting import count_text

TOLD = 4
"""Most errors that are told."""


def unfinished_text(course: Course) -> Iterator[str]:
    """Yield that an interrupted benchmark is not all, and how to go on with it."""
    if course.unfinished:
        done = "is" if course.made == 1 else "are"
        left_out = f", and {course.left_out} left out, as their cells have failed" if course.left_out else ""
        yield (
            f"{course.made} of {count_text(course.asked, 'run')} {done} done{left_out}; the same command with --resume "
            "makes the others."
        )


def failed_text(summary: Summary) -> Iterator[str]:
    """Yield which cells have no result, and why; and of which cells some runs have failed.

    Args:
        summary: the benchmark.
    """
    naming = naming_of([one.cell for one in summary.cells])
    failed = [one for one in summary.cells if not one.runs]
    if failed:
        have = "has" if len(failed) == 1 else "have"
        yield f"{len(failed)} of {count_text(len(summary.cells), 'cell')} {have} no result."
    kinds: dict[tuple[str, str], list[CellSummary]] = {}
    for one in failed:
        kinds.setdefault((one.failed[-1].status, error_of(one.failed[-1])), []).append(one)
    for (status, error), members in list(kinds.items())[:TOLD]:
        cells = _cells_text([one.cell for one in members], summary, naming)
        yield f"{cells} {status}: {error.rstrip('.')}.{_output_of(members[0].failed[-1], len(members))}"
    if len(kinds) > TOLD:
        yield f"{len(kinds) - TOLD} other errors are in the report."
    for one in [one for one in summary.cells if one.runs and one.failed][:TOLD]:
        runs = len(one.runs) + len(one.failed)
        error = error_of(one.failed[-1]).rstrip(".")
        some = f"{len(one.failed)} of {count_text(runs, 'run')} failed"
        yield f"{naming.cells([one.cell])}: {some}: {error}.{_output_of(one.failed[-1])}"


def error_of(measurement: Measurement) -> str:
    """Return the whole error of a run in one line."""
    return " ".join(measurement.error.split()) or "no error is known"


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
    course = course_of(summary)
    once = [one for one in measured if len(one.runs) == 1 and not course.goes_on(one)]
    if once:
        have = "has" if len(once) == 1 else "have"
        which = "each cell has" if len(once) == len(measured) else f"{count_text(len(once), 'cell')} of them {have}"
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


def _output_of(measurement: Measurement, cells: int = 1) -> str:
    if not measurement.output:
        return ""
    return f" What {'it' if cells == 1 else 'the first of them'} printed is in {measurement.output}."


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

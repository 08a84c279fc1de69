"""A benchmark as lines of a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.course import course_of
from itwinai.benchmark.statistics.estimates import Estimate
from itwinai.benchmark.statistics.groups import Group, Speed, groups_of, speed_of
from itwinai.benchmark.statistics.scaling_law import FittedLaw, NoFit, fit
from itwinai.benchmark.statistics.summary import Summary
from itwinai.benchmark.telling.aligned import aligned
from itwinai.benchmark.telling.amounts import (
    UNKNOWN,
    Unit,
    estimate_text,
    memory_unit,
    number_text,
    share_text,
    time_unit,
)
from itwinai.benchmark.telling.doubts import threads_text
from itwinai.benchmark.telling.missing import error_of, unfinished_text
from itwinai.benchmark.telling.parts import share_of
from itwinai.benchmark.telling.relative import relative_text
from itwinai.benchmark.telling.table import status_of
from itwinai.benchmark.telling.words import in_words
from itwinai.reporting.terminal import WIDTH


def table_text(summary: Summary, laws: Sequence[FittedLaw | NoFit] | None = None) -> str:
    """Return a benchmark for a terminal: a table of its cells, and what was found, in words.

    Cells of different scalings or axes cannot be compared line by line, so that each combination has a table of its
    own. What was not measured is ``-``.

    Args:
        summary: the benchmark.
        laws: what was fitted to its series; by default that is done here.
    """
    speed = speed_of(summary.cells)
    lines = [f"── {summary.record.name} ".ljust(WIDTH, "─")]
    unfinished = list(unfinished_text(course_of(summary)))
    lines += [line for text in unfinished for line in _wrapped(text)]
    for group in groups_of(summary):
        lines += [group.name] if group.name else []
        lines += [*_table(group, speed), *_wrapped(relative_text(summary, group.axes)), ""]
    if threads := threads_text(summary):
        lines[-1:] = [*_wrapped(f"{threads}."), ""]
    laws = [fit(line) for line in summary.series] if laws is None else laws
    for text in in_words(summary, laws)[len(unfinished) :]:
        lines += _wrapped(text, "- ")
    return "\n".join([*lines, "─" * WIDTH])


def _wrapped(text: str, mark: str = "") -> list[str]:
    indent = " " * len(mark)
    return textwrap.wrap(
        text, WIDTH, initial_indent=mark, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def _table(group: Group, speed: Speed) -> list[str]:
    columns: Mapping[str, Callable[[CellSummary], str]] = {
        speed.unit: lambda cell: estimate_text(speed.of(cell)),
        "step p50": lambda cell: _mean(cell.step_p50, time_unit),
        "speed-up": lambda cell: _mean(cell.speedup),
        "eff.": lambda cell: UNKNOWN if cell.efficiency is None else share_text(cell.efficiency.mean),
        "data": lambda cell: _share(cell, "data"),
        "comm.": lambda cell: _share(cell, "communication"),
        "memory": lambda cell: _mean(cell.peak_memory, memory_unit),
        "loss": lambda cell: UNKNOWN if cell.loss is None else f"{cell.loss.mean:.4g}",
    }
    rows = []
    for one in group.cells:
        first = [one.cell.strategy, f"{one.cell.workers:,}"]
        if one.runs:
            rows.append(([*first, *(of(one) for of in columns.values())], ""))
        else:
            rows.append((first, f"{status_of(one)}: {error_of(one.failed[-1])}"))
    return aligned(["strategy", "workers", *columns], rows)


def _mean(estimate: Estimate | None, unit: Callable[[float], Unit] | None = None) -> str:
    """Return a mean without its interval, for which a line has no room."""
    if estimate is None:
        return UNKNOWN
    handy = unit(estimate.mean) if unit is not None else Unit("")
    return f"{number_text(handy.of(estimate.mean))} {handy.name}".rstrip()


def _share(cell: CellSummary, part: str) -> str:
    share = share_of(cell.breakdown, part)
    return UNKNOWN if share is None else share_text(share)

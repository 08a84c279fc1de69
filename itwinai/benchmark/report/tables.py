"""The tables of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from itwinai.benchmark.records import Cell
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.estimates import Estimate
from itwinai.benchmark.statistics.groups import Speed
from itwinai.benchmark.statistics.summary import Summary
from itwinai.benchmark.telling.amounts import (
    UNKNOWN,
    energy_text,
    estimate_text,
    memory_text,
    number_text,
    share_text,
    time_unit,
)
from itwinai.benchmark.telling.missing import error_of
from itwinai.benchmark.telling.table import status_of
from itwinai.reporting.formatting import span_text
from itwinai.reporting.search.formatting import short_names
from itwinai.reporting.search.leaderboard import unbroken
from itwinai.reporting.sections import Table

WIDEST = 24
"""Characters of a figure that stay in one line."""


def setting_columns(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Return the columns that say which cell a row is about, by heading.

    Args:
        cells: one for each row.
    """
    names = short_names(list(dict.fromkeys(path for cell in cells for path, _ in cell.axes)))
    columns = {"strategy": [cell.strategy for cell in cells], "workers": [f"{cell.workers:,}" for cell in cells]}
    if len({cell.scaling for cell in cells if cell.workers > 1}) > 1:
        columns["scaling"] = [cell.scaling if cell.workers > 1 else UNKNOWN for cell in cells]
    for path, name in names.items():
        heading = name if name not in columns else path
        columns[heading] = [dict(cell.axes).get(path, UNKNOWN) for cell in cells]
    return columns


def of_figures(table: Table) -> Table:
    """Return a table whose figures stay in one line each: it may become wider than the page, which scrolls.

    The page breaks a cell anywhere, but a heading between words only. A heading of spaces that do not break is at least
    as wide as the cells below it.
    """
    widths = [max((len(row[place]) for row in table.rows), default=0) for place in range(len(table.columns))]
    columns = [
        name.ljust(min(width, WIDEST), "\u2007").replace(" ", "\u00a0").replace("-", "\u2011")
        for name, width in zip(table.columns, widths, strict=True)
    ]
    return Table(columns, table.rows, table.title)


def cells_table(summary: Summary, speed: Speed) -> Table:
    """Return all cells with the figures that the page has room for: ``table.csv`` has all of them.

    Args:
        summary: the benchmark.
        speed: what speeds are told in.
    """
    figures: dict[str, Callable[[CellSummary], str]] = {
        speed.unit: lambda cell: estimate_text(speed.of(cell)),
        "step p50 / p95": _steps,
        "speed-up": lambda cell: UNKNOWN if cell.speedup is None else number_text(cell.speedup.mean),
        "eff.": lambda cell: UNKNOWN if cell.efficiency is None else share_text(cell.efficiency.mean),
        "memory": lambda cell: memory_text(_mean(cell.peak_memory)),
        "energy/sample": lambda cell: energy_text(_mean(cell.joules_per_sample)),
        "loss": lambda cell: UNKNOWN if cell.loss is None else f"{cell.loss.mean:.6g}",
        "runs": _runs,
    }
    if all(one.joules_per_sample is None for one in summary.cells):
        del figures["energy/sample"]  # the section about energy says why
    settings = setting_columns([one.cell for one in summary.cells])
    rows = [
        [*(column[index] for column in settings.values()), *(of(one) for of in figures.values())]
        for index, one in enumerate(summary.cells)
    ]
    return of_figures(
        Table(
            [*settings, *figures],
            rows,
            "All cells: means, with 95 % intervals of speeds; table.csv has all figures",
        )
    )


def failed_table(summary: Summary) -> Table | None:
    """Return the runs that have not ended well, with their errors and what they have printed; None if all have."""
    failed = [run for one in summary.cells for run in one.failed]
    if not failed:
        return None
    settings = setting_columns([run.cell for run in failed])
    rows = [
        [
            *(column[index] for column in settings.values()),
            f"{run.repeat + 1}",
            run.status,
            span_text(run.seconds),
            error_of(run),
            run.output or UNKNOWN,
        ]
        for index, run in enumerate(failed)
    ]
    columns = [*settings, "repeat", "end", "after", "error", "what it printed"]
    return unbroken(Table(columns, rows, "Failed runs"))


def _mean(estimate: Estimate | None) -> Estimate | None:
    """Return an estimate without its interval, for which there is no room."""
    return None if estimate is None else Estimate(estimate.mean, None, None, estimate.n)


def _steps(cell: CellSummary) -> str:
    """Return both times of a step in one unit: ``12.3 / 14.1 ms``."""
    if cell.step_p50 is None or cell.step_p95 is None:
        return UNKNOWN
    unit = time_unit(cell.step_p95.mean)
    p50, p95 = (number_text(unit.of(one.mean)) for one in (cell.step_p50, cell.step_p95))
    return f"{p50} / {p95} {unit.name}"


def _runs(cell: CellSummary) -> str:
    status = status_of(cell)
    if status == "measured":
        return f"{len(cell.runs)}"
    return f"{len(cell.runs)} of {len(cell.runs) + len(cell.failed)}" if cell.runs else status

"""The cells of a benchmark as a table: of a terminal, of the page, and as CSV."""

from __future__ import annotations

import csv
import io
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from itwinai.benchmark.records import Cell
from itwinai.benchmark.report.caveats import threads_text
from itwinai.benchmark.report.findings import error_of, findings_of, relative_text
from itwinai.benchmark.statistics.cell_summary import CellSummary, cell_text
from itwinai.benchmark.statistics.confidence_intervals import Estimate
from itwinai.benchmark.statistics.groups import Group, Speed, groups_of, speed_of
from itwinai.benchmark.statistics.scaling_law import FittedLaw, NoFit, fit
from itwinai.benchmark.statistics.summary import Summary
from itwinai.io.atomic import write_whole
from itwinai.reporting.formatting import (
    UNKNOWN,
    bytes_text,
    energy_text,
    estimate_text,
    number_text,
    percent_text,
    short_names,
    span_text,
    time_text,
    time_unit,
)
from itwinai.reporting.sections import Table
from itwinai.reporting.tables import table_text
from itwinai.reporting.terminal import WIDTH

FIGURES: Mapping[str, Callable[[CellSummary], Estimate | None]] = {
    "samples_per_second": lambda cell: cell.throughput,
    "steps_per_second": lambda cell: cell.steps_per_second,
    "step_seconds": lambda cell: cell.step_time,
    "step_p50_seconds": lambda cell: cell.step_p50,
    "step_p95_seconds": lambda cell: cell.step_p95,
    "speedup": lambda cell: cell.speedup,
    "efficiency": lambda cell: cell.efficiency,
    "peak_memory_bytes": lambda cell: cell.peak_memory,
    "imbalance": lambda cell: cell.imbalance,
    "joules_per_sample": lambda cell: cell.joules_per_sample,
    "launch_seconds": lambda cell: cell.launch,
    "loss": lambda cell: cell.loss,
}
"""Figures of a cell, by the name of their columns in the CSV, which end in ``_mean``, ``_low`` or ``_high``."""

_PARTS = ("compute", "communication", "data", "other", "hidden", "optimizer")
_PART_NAMES = {"hidden": "hidden_communication", "optimizer": "optimizer_of_compute"}


def benchmark_text(summary: Summary, laws: Sequence[FittedLaw | NoFit] | None = None) -> str:
    """Return a benchmark for a terminal: tables of its cells, and the findings.

    Cells of different scalings or axes cannot be compared line by line, so each combination has a table of its own.

    Args:
        summary: the benchmark.
        laws: of its series; by default they are fitted here.
    """
    speed = speed_of(summary.cells)
    found = findings_of(summary, [fit(line) for line in summary.series] if laws is None else laws)
    lines = [f"── {summary.record.name} ".ljust(WIDTH, "─")]
    lines += [line for text in found.unfinished for line in wrapped(text)]
    for group in groups_of(summary):
        lines += [group.name] if group.name else []
        lines += [table_text(_group_table(group, speed)), *wrapped(relative_text(summary, group.axes)), ""]
    if threads := threads_text(summary):
        lines[-1:] = [*wrapped(f"{threads}."), ""]
    lines += [line for text in found.paragraphs for line in wrapped(text, "- ")]
    return "\n".join([*lines, "─" * WIDTH])


def wrapped(text: str, mark: str = "") -> list[str]:
    """Return the lines of a text that fit a terminal."""
    indent = " " * len(mark)
    return textwrap.wrap(
        text, WIDTH, initial_indent=mark, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def status_of(cell: CellSummary) -> str:
    """Return how the runs of a cell have ended: measured, partly failed, failed or timed out."""
    if cell.runs:
        return "partly failed" if cell.failed else "measured"
    ends = {one.status for one in cell.failed}
    return ends.pop() if len(ends) == 1 else "failed"


def _group_table(group: Group, speed: Speed) -> Table:
    figures: Mapping[str, Callable[[CellSummary], str]] = {
        speed.unit: lambda cell: estimate_text(speed.of(cell)),
        "step p50": lambda cell: time_text(_mean(cell.step_p50)),
        "speed-up": lambda cell: _number(cell.speedup),
        "eff.": lambda cell: _percent(_mean(cell.efficiency)),
        "data": lambda cell: _percent(cell.share("data")),
        "comm.": lambda cell: _percent(cell.share("communication")),
        "memory": lambda cell: bytes_text(_mean(cell.peak_memory)),
        "loss": lambda cell: UNKNOWN if cell.loss is None else f"{cell.loss.mean:.4g}",
    }
    rows = []
    for one in group.cells:
        first = [one.cell.strategy, f"{one.cell.workers:,}"]
        if one.runs:
            rows.append([*first, *(of(one) for of in figures.values())])
        else:
            rows.append([*first, f"{status_of(one)}: {error_of(one.failed[-1])}"])
    return Table(["strategy", "workers", *figures], rows)


# ------------------------------------------------------------------------------------------------------ of the page


def setting_columns(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Return the columns that say which cell each row is about, by heading."""
    names = short_names(list(dict.fromkeys(path for cell in cells for path, _ in cell.axes)))
    columns = {"strategy": [cell.strategy for cell in cells], "workers": [f"{cell.workers:,}" for cell in cells]}
    if len({cell.scaling for cell in cells if cell.workers > 1}) > 1:
        columns["scaling"] = [cell.scaling if cell.workers > 1 else UNKNOWN for cell in cells]
    for path, name in names.items():
        heading = name if name not in columns else path
        columns[heading] = [dict(cell.axes).get(path, UNKNOWN) for cell in cells]
    return columns


def cells_table(summary: Summary, speed: Speed) -> Table:
    """Return all cells with the figures that the page has room for: ``table.csv`` has all of them."""
    figures: dict[str, Callable[[CellSummary], str]] = {
        speed.unit: lambda cell: estimate_text(speed.of(cell)),
        "step p50 / p95": _steps,
        "speed-up": lambda cell: _number(cell.speedup),
        "eff.": lambda cell: _percent(_mean(cell.efficiency)),
        "memory": lambda cell: bytes_text(_mean(cell.peak_memory)),
        "energy/sample": lambda cell: energy_text(_mean(cell.joules_per_sample)),
        "loss": lambda cell: UNKNOWN if cell.loss is None else f"{cell.loss.mean:.6g}",
        "runs": _runs,
    }
    if all(one.joules_per_sample is None for one in summary.cells):
        del figures["energy/sample"]  # the findings say why
    settings = setting_columns([one.cell for one in summary.cells])
    rows = [
        [*(column[index] for column in settings.values()), *(of(one) for of in figures.values())]
        for index, one in enumerate(summary.cells)
    ]
    title = "All cells: means, with 95 % intervals of speeds; table.csv has all figures"
    return Table([*settings, *figures], rows, title)


def failed_table(summary: Summary) -> Table | None:
    """Return the failed runs with their errors and the files of their output; None if none failed."""
    failed = [run for one in summary.cells for run in one.failed]
    if not failed:
        return None
    settings = setting_columns([run.cell for run in failed])
    rows = []
    for index, run in enumerate(failed):
        own = [f"{run.repeat + 1}", run.status, span_text(run.seconds), error_of(run), run.output or UNKNOWN]
        rows.append([*(column[index] for column in settings.values()), *own])
    return Table([*settings, "repeat", "end", "after", "error", "output"], rows, "Failed runs")


def _mean(estimate: Estimate | None) -> float | None:
    """Return a mean without its interval, if there is no room for that."""
    return None if estimate is None else estimate.mean


def _number(estimate: Estimate | None) -> str:
    return UNKNOWN if estimate is None else number_text(estimate.mean)


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else percent_text(share)


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
    return f"{len(cell.runs)} of {cell.tries}" if cell.runs else status


# ------------------------------------------------------------------------------------------------------ CSV


def write_table(summary: Summary, path: str | os.PathLike[str]) -> None:
    """Write all cells as CSV, in the order of the summary; an existing file is replaced as a whole.

    The columns are ``strategy``, ``workers``, ``scaling``, one for each axis by its path in the config (``axis:PATH``
    if another column has that name), ``status``, ``runs`` and ``failed_runs``; for each of `FIGURES` its mean and the
    ends of its 95 % interval; the mean seconds of each part of a step, as ``part_compute_seconds``; and more about the
    cell: ``threads`` of each worker, ``other_cores`` that other programs used right before its runs, and others. All is
    in SI units, with all digits; what was not measured is empty, and ``no_joules`` and ``error`` say why.

    Args:
        summary: the benchmark.
        path: of the file; its folder is created if missing.
    """
    axes = list(dict.fromkeys(path for one in summary.cells for path, _ in one.cell.axes))
    rows = [_csv_row(one, axes) for one in summary.cells or [CellSummary(Cell("", 0))]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows if summary.cells)
    write_whole(Path(path), text.getvalue())


def _csv_row(one: CellSummary, axes: Sequence[str]) -> dict[str, object]:
    first = one.measured[0] if one.measured else None
    own: dict[str, object] = {"status": status_of(one), "runs": len(one.runs), "failed_runs": len(one.failed)}
    for name, of in FIGURES.items():
        estimate = of(one)
        own |= {f"{name}_{end}": getattr(estimate, end, None) for end in ("mean", "low", "high")}
    own |= {f"part_{_PART_NAMES.get(part, part)}_seconds": getattr(one.breakdown, part, None) for part in _PARTS}
    own["baseline"] = cell_text(one.baseline) if one.baseline is not None else None
    own["no_joules"] = one.no_joules or None
    own |= {name: getattr(first, name, None) for name in ("nodes", "device", "parameters", "gradient_bytes")}
    own |= {"threads": one.threads or None, "other_cores": one.others}
    own["error"] = " | ".join(dict.fromkeys(run.error for run in one.failed if run.error)) or None
    own["output"] = " | ".join(dict.fromkeys(run.output for run in (*one.runs, *one.failed) if run.output)) or None
    cell = {"strategy": one.cell.strategy, "workers": one.cell.workers, "scaling": one.cell.scaling}
    values = dict(one.cell.axes)
    varied = {f"axis:{path}" if path in cell | own else path: values.get(path) for path in axes}
    return {**cell, **varied, **own}

"""The cells of a benchmark as CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from itwinai.benchmark.statistics.cell_summary import CellSummary, cell_text
from itwinai.benchmark.statistics.estimates import Estimate
from itwinai.benchmark.statistics.summary import Summary
from itwinai.benchmark.telling.parts import PARTS
from itwinai.io.atomic import write_whole

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
"""What a cell has by the name of its columns, each of which ends in ``_mean``, ``_low`` or ``_high``."""

_PARTS = {**{part: part for part in PARTS}, "hidden": "hidden_communication", "optimizer": "optimizer_of_compute"}
_CELL = ("strategy", "workers", "scaling")
_COURSE = ("status", "runs", "failed_runs")
_LAST = ("baseline", "no_joules", "nodes", "device", "parameters", "gradient_bytes", "threads", "other_cores")
_END = ("error", "output")


def write_table(summary: Summary, path: str | os.PathLike[str]) -> None:
    """Write all cells as CSV, in the order of the summary; a file of that name is replaced as a whole.

    The columns are ``strategy``, ``workers``, ``scaling``, one for each axis by its path in the config (``axis:PATH``
    if there is another column of that name), ``status`` (measured, partly failed, failed, timed out), ``runs`` that
    ended well and ``failed_runs``; for each of `FIGURES` its mean and the ends of its 95 % interval; the mean seconds
    of a step that each part takes, as ``part_compute_seconds``; and what else is known of the cell: ``threads`` of each
    worker, and ``other_cores`` that other programs used right before its runs, among others. All is in SI units, with
    all digits; what was not measured is empty, and ``no_joules`` and ``error`` say why.

    Args:
        summary: the benchmark.
        path: of the file; its folder is made if it does not exist.

    Raises:
        OSError: it could not be written; the old file is still there.
    """
    text = io.StringIO()
    axes = list(dict.fromkeys(path for one in summary.cells for path, _ in one.cell.axes))
    csv.writer(text, lineterminator="\n").writerows([_heading(axes), *(_row(one, axes) for one in summary.cells)])
    write_whole(Path(path), text.getvalue())


def status_of(cell: CellSummary) -> str:
    """Return how the runs of a cell have ended, all together."""
    if cell.runs:
        return "partly failed" if cell.failed else "measured"
    ends = {one.status for one in cell.failed}
    return ends.pop() if len(ends) == 1 else "failed"


def _heading(axes: Sequence[str]) -> list[str]:
    figures = [f"{name}_{end}" for name in FIGURES for end in ("mean", "low", "high")]
    parts = [f"part_{name}_seconds" for name in _PARTS.values()]
    own = [*_COURSE, *figures, *parts, *_LAST, *_END]
    return [*_CELL, *(f"axis:{path}" if path in (*_CELL, *own) else path for path in axes), *own]


def _row(one: CellSummary, axes: Sequence[str]) -> list[object]:
    estimates = [of(one) for of in FIGURES.values()]
    ends = [
        end
        for estimate in estimates
        for end in ((None,) * 3 if estimate is None else (estimate.mean, estimate.low, estimate.high))
    ]
    breakdown = one.breakdown
    parts = [None if breakdown is None else getattr(breakdown, part) for part in _PARTS]
    first = one.measured[0] if one.measured else None
    values = dict(one.cell.axes)
    return [
        *(one.cell.strategy, one.cell.workers, one.cell.scaling),
        *(values.get(path) for path in axes),
        *(status_of(one), len(one.runs), len(one.failed)),
        *ends,
        *parts,
        cell_text(one.baseline) if one.baseline is not None else None,
        one.no_joules or None,
        *((first.nodes, first.device, first.parameters, first.gradient_bytes) if first is not None else (None,) * 4),
        one.threads or None,
        one.others,
        " | ".join(dict.fromkeys(run.error for run in one.failed if run.error)) or None,
        " | ".join(dict.fromkeys(run.output for run in (*one.runs, *one.failed) if run.output)) or None,
    ]

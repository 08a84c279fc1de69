"""Predictions as tables: for a terminal, and as CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from itwinai.benchmark.simulate.fit import FittedLink
from itwinai.benchmark.simulate.from_record import Comparison
from itwinai.benchmark.simulate.prediction import Prediction
from itwinai.benchmark.telling.aligned import aligned
from itwinai.benchmark.telling.amounts import UNKNOWN, bytes_text, seconds_text, traffic_text
from itwinai.io.atomic import write_whole

_HEAD = ("workers", "step", "compute", "exposed", "hidden", "waiting", "optimizer")
_NEXT = ("speed-up", "effic.", "samples/s", "memory")


def prediction_table(predictions: Sequence[Prediction]) -> str:
    """Return the predictions of each strategy as aligned lines of at most 100 characters."""
    longest = max(prediction.step for prediction in predictions)
    factor, unit = (1.0, "s") if longest >= 10 else (1e3, "ms") if longest >= 10e-3 else (1e6, "us")
    strategies: dict[str, list[list[str]]] = {}
    for one in predictions:
        times = (one.step, one.compute + one.other, one.exposed, one.hidden, one.waiting, one.optimizer)
        strategies.setdefault(one.exchange.name, []).append(
            [
                f"{one.workers:,}",
                *(_digits(seconds * factor) for seconds in times),
                _digits(one.speedup),
                f"{one.efficiency:.0%}" if one.efficiency >= 0.1 else f"{one.efficiency:.1%}",
                UNKNOWN if one.throughput is None else _digits(one.throughput),
                UNKNOWN if one.memory is None else bytes_text(one.memory.total),
            ]
        )
    tables = [
        [f"{name}, times in {unit}", *aligned([*_HEAD, *_NEXT], [(row, "") for row in rows], numbered=True)]
        for name, rows in strategies.items()
    ]
    return "\n\n".join("\n".join(lines) for lines in tables)


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Return predictions beside what was measured, with the error of each and the reason for what is missing."""
    heading = ("strategy", "workers", "scaling", "settings", "measured", "predicted", "error")
    rows, notes = [], []
    for one in comparisons:
        settings = ", ".join(f"{path.rpartition('.')[2]}={value}" for path, value in one.cell.axes) or UNKNOWN
        if one.error is None or one.predicted is None:
            notes.append(f"- {one.cell.strategy} with {one.cell.workers}: {one.reason}")
        rows.append(
            [
                one.cell.strategy,
                str(one.cell.workers),
                one.cell.scaling,
                settings,
                seconds_text(one.measured),
                UNKNOWN if one.predicted is None else seconds_text(one.predicted),
                UNKNOWN if one.error is None else f"{one.error:+.0%}",
            ]
        )
    return "\n".join([*aligned(heading, [(row, "") for row in rows]), *notes])


def link_table(fitted: FittedLink) -> str:
    """Return the timings of a link beside those of its fit."""
    rows = []
    for timing, error in zip(fitted.timings, fitted.errors, strict=True):
        sent = 2 * (fitted.workers - 1) / fitted.workers * timing.size
        rows.append(
            [
                f"{timing.size:,}",
                seconds_text(timing.seconds),
                seconds_text(fitted.predicted(timing)),
                f"{error:+.0%}",
                f"{traffic_text(sent / timing.seconds)}/s",
            ]
        )
    heading = ("bytes", "measured", "fitted", "error", "bandwidth")
    return "\n".join(aligned(heading, [(row, "") for row in rows], numbered=True))


def write_predictions(predictions: Sequence[Prediction], path: str | os.PathLike[str]) -> None:
    """Write predictions as CSV, with all digits: times in seconds, memory in bytes; what is not known is empty.

    A column ``lost_to_CAUSE`` holds the seconds by which a step is longer than with ideal scaling because of a cause.

    Raises:
        OSError: it could not be written; an old file is still there.
    """
    causes = list(predictions[0].losses)
    times = ("step", "compute", "other", "optimizer", "exposed", "hidden", "waiting")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["strategy", "stage", "workers", "scaling", *times, "speedup", "efficiency", "samples_per_second"]
    writer.writerow([*head, "memory", *(f"lost_to_{cause.replace(' ', '_')}" for cause in causes)])
    for one in predictions:
        writer.writerow(
            [
                one.exchange.name,
                one.exchange.stage,
                one.workers,
                one.scaling,
                *(getattr(one, name) for name in times),
                one.speedup,
                one.efficiency,
                one.throughput,
                None if one.memory is None else one.memory.total,
                *(one.losses[cause] for cause in causes),
            ]
        )
    write_whole(Path(path), text.getvalue())


def _digits(value: float) -> str:
    """Return a number with three digits, and no power of ten."""
    if value == 0:
        return "0"
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"

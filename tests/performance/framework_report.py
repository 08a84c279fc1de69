"""Write the comparison of frameworks as tables and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from itwinai.benchmark.record_file import to_plain
from itwinai.benchmark.records import Cell, Measured, Measurement
from itwinai.benchmark.statistics.confidence_intervals import Estimate, mean_of
from itwinai.reporting.formatting import UNKNOWN, bytes_text, estimate_text, time_text
from tests.performance.framework_cases import MODEL_TITLES, RAW, TITLES
from tests.performance.framework_runs import cell_of, model_of

LOSS_TOLERANCE = 1e-4
"""Largest relative difference of final losses that rounding explains: sums in another order, after many steps."""


@dataclass(frozen=True)
class Sample:
    """One run, as it is reported.

    Attributes:
        measurement: what was measured.
        difference: of the final weights to those of the reference, see `framework_runs.difference`; None for the
            reference itself, and where there is none.
        durations: of the measured steps of rank 0, in seconds.
    """

    measurement: Measurement
    difference: float | None = None
    durations: tuple[float, ...] = ()


def tables(samples: Sequence[Sample]) -> str:
    """Return a table for each model and number of workers, in Markdown."""
    cells = list(dict.fromkeys(sample.measurement.cell for sample in samples))
    parts = []
    for model in MODEL_TITLES:
        for workers in sorted({cell.workers for cell in cells if model_of(cell) == model}):
            number = "1 worker" if workers == 1 else f"{workers} workers"
            group = [name for name in TITLES if cell_of(name, model, workers) in cells]
            rows = [_row(samples, cell_of(name, model, workers)) for name in group]
            parts.append(f"### {MODEL_TITLES[model]}: {number}\n\n{markdown([_HEADING, *rows])}")
    return "\n\n".join(parts)


def verdicts(samples: Sequence[Sample]) -> list[str]:
    """Say for each model how far the final losses and weights are from each other."""
    lines = []
    for model, title in MODEL_TITLES.items():
        measured = [
            sample for sample in samples if model_of(sample.measurement.cell) == model and sample.measurement.measured
        ]
        if len(measured) < 2:
            continue
        spread, weights = loss_spread(measured), [one.difference for one in measured if one.difference is not None]
        text = f"largest relative difference {spread:.0e}"
        agree = f"agree: {text}" if spread <= LOSS_TOLERANCE else f"DIFFER: {text}, allowed is {LOSS_TOLERANCE:.0e}"
        lines.append(f"{title.split(',')[0]}: the final losses of all {len(measured)} runs {agree}.")
        if weights:
            lines[-1] += f" Their weights differ by {max(weights):.0e} at most."
    return lines


def loss_spread(samples: Sequence[Sample]) -> float:
    """Return the largest difference of the final losses of one model, relative to the smallest of them."""
    losses = [one.measurement.measured.loss for one in samples if one.measurement.measured is not None]
    known = [loss for loss in losses if loss is not None]
    if not known or not all(map(math.isfinite, known)):
        return math.inf
    return (max(known) - min(known)) / min(map(abs, known))


def sound(samples: Sequence[Sample]) -> bool:
    """Tell whether no run has failed and the final losses of each model agree."""
    by_model = [[one for one in samples if model_of(one.measurement.cell) == model] for model in MODEL_TITLES]
    return all(one.measurement.measured for one in samples) and all(
        loss_spread(group) <= LOSS_TOLERANCE for group in by_model if group
    )


def failures(samples: Sequence[Sample]) -> list[str]:
    """Return what has failed, and why, and where its output is."""
    return [
        f"{_name(one.measurement.cell)}, repeat {one.measurement.repeat + 1}: {one.measurement.error}; its output: "
        f"{one.measurement.output}"
        for one in samples
        if one.measurement.error
    ]


def write(samples: Sequence[Sample], facts: Mapping[str, str], folder: Path) -> list[Path]:
    """Write ``frameworks.md`` and ``frameworks.json``, which has all samples.

    Args:
        samples: what was measured.
        facts: about the machine, the versions, and how much was measured.
        folder: is made if it does not exist.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    said = "\n".join(verdicts(samples))
    markdown, document = folder / "frameworks.md", folder / "frameworks.json"
    markdown.write_text(f"# Frameworks\n\n{listed}\n\n{tables(samples)}\n\n{said}\n")
    plain = [
        {**to_plain(one.measurement), "weight_difference": one.difference, "step_seconds": one.durations}
        for one in samples
    ]
    document.write_text(json.dumps({"facts": facts, "samples": plain}, indent=1, ensure_ascii=False) + "\n")
    return [markdown, document]


_HEADING = (
    "",
    "samples/s",
    "x raw",
    "step, median",
    "step, p95",
    "to first step",
    "memory of a worker",
    "final loss",
    "weights differ by",
)


def _row(samples: Sequence[Sample], cell: Cell) -> list[str]:
    own = _by_repeat(samples, cell)
    title = TITLES[cell.strategy]
    if not own:
        return [f"{title} (failed)", *[UNKNOWN] * (len(_HEADING) - 1)]

    def mean(value: Callable[[Measured], float | None]) -> Estimate | None:
        values = [found for one in own.values() if (found := value(one)) is not None]
        return mean_of(values) if values else None

    losses = [one.loss for one in own.values() if one.loss is not None]
    apart = [one.difference for one in samples if one.measurement.cell == cell and one.difference is not None]
    return [
        title,
        estimate_text(mean(_speed)),
        estimate_text(_ratio_to_raw(samples, cell)),
        time_text(mean(lambda one: one.step_p50)),
        time_text(mean(lambda one: one.step_p95)),
        time_text(mean(lambda one: one.launch)),
        bytes_text(mean(_memory)),
        f"{losses[-1]:.6f}" if losses else UNKNOWN,
        f"{max(apart):.0e}" if apart else UNKNOWN,
    ]


def _by_repeat(samples: Sequence[Sample], cell: Cell) -> dict[int, Measured]:
    return {
        one.measurement.repeat: one.measurement.measured
        for one in samples
        if one.measurement.cell == cell and one.measurement.measured is not None
    }


def _speed(measured: Measured) -> float | None:
    return None if measured.samples is None else measured.samples / measured.seconds


def _memory(measured: Measured) -> float | None:
    known = [size for size in measured.peak_memory if size is not None]
    return max(known) if len(known) == len(measured.peak_memory) else None


def _ratio_to_raw(samples: Sequence[Sample], cell: Cell) -> Estimate | None:
    """Return the speed over that of raw PyTorch: the geometric mean of the ratios within each repeat.

    Within a repeat both have run on the same machine, more or less; from one to the next it may have slowed down.
    """
    own = _by_repeat(samples, cell)
    raw = _by_repeat(samples, cell_of(RAW, model_of(cell), cell.workers))
    shared = sorted(own.keys() & raw.keys())
    if not shared or cell.strategy == RAW:
        return Estimate(1.0, None, None, len(own)) if cell.strategy == RAW else None
    logarithms = mean_of([math.log((_speed(own[one]) or 0) / (_speed(raw[one]) or 0)) for one in shared])
    low, high = (None if end is None else math.exp(end) for end in (logarithms.low, logarithms.high))
    return Estimate(math.exp(logarithms.mean), low, high, logarithms.n)


def _name(cell: Cell) -> str:
    return f"{cell.strategy}, {model_of(cell)}, {cell.workers} worker" + ("s" if cell.workers > 1 else "")


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown whose columns are aligned, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])

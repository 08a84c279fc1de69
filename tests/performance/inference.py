"""Compare prediction with that of other frameworks: ``python -m tests.performance.inference``."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from itwinai.benchmark.records import Cell
from itwinai.benchmark.runner import interleaved
from itwinai.benchmark.statistics.confidence_intervals import Estimate, mean_of
from itwinai.launchers.child_process import ChildProcess
from itwinai.reporting.formatting import UNKNOWN, estimate_text, time_text
from tests.performance.framework_report import markdown
from tests.performance.framework_runs import MARK, RAY_VARIABLES, cell_of, model_of, wait_until_gone
from tests.performance.frameworks import some_of
from tests.performance.inference_cases import (
    BATCH_SIZES,
    ITWINAI_WRITER,
    MODEL_TITLES,
    QUICK,
    RAW,
    TITLES,
    UNDER_TORCHRUN,
    Effort,
)
from tests.performance.report import describe_machine
from tests.performance.workers import TIMEOUT, environment

TOLERANCE = 1e-5
"""Largest difference of a prediction to that of the raw loop, relative to the largest prediction."""


@dataclass(frozen=True)
class Sample:
    """One run.

    Attributes:
        cell: contender, model, number of workers.
        repeat: 0 for the first.
        rate: samples per second, from the first batch until all predictions are on disk.
        start: seconds from the command until its first batch.
        difference: of the predictions to those of the raw loop; infinite if any is missing or in another place.
        error: why the run does not count; empty if it does.
    """

    cell: Cell
    repeat: int
    rate: float = math.nan
    start: float = math.nan
    difference: float = math.nan
    error: str = ""


def main() -> int:
    """Measure, and print the tables.

    Returns:
        The exit code: 1 if a run has failed, or if predictions differ.
    """
    given = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended, and folders are removed
    usual = QUICK if given.quick else Effort()
    effort = replace(usual, repeats=given.repeats or usual.repeats)
    facts = {**describe_machine(), "repeats": str(effort.repeats), "batches": str(effort.batches)}
    print("\n".join(f"{name:<12} {value}" for name, value in facts.items()), flush=True)
    cells = [
        cell_of(name, model, workers)
        for model in given.models
        for workers in given.workers
        for name in given.contenders
    ]
    expected: dict[str, Any] = {}
    samples: list[Sample] = []
    for cell, repeat in interleaved(cells, effort.repeats):
        print(f"repeat {repeat + 1}: {cell.strategy}, {model_of(cell)}, {cell.workers}", end=" ", flush=True)
        samples.append(measure(cell, repeat, effort, expected, given.out / "inference"))
        print(samples[-1].error or f"{samples[-1].rate:,.0f} samples/s", flush=True)
        files = write(samples, facts, given.out)
    print(f"\n{tables(samples)}\n\nwritten:", *files, flush=True)
    return 1 if any(one.error for one in samples) else 0


def measure(cell: Cell, repeat: int, effort: Effort, expected: dict[str, Any], logs: Path) -> Sample:
    """Run a contender once, in fresh processes, and look at what it has predicted.

    Args:
        cell: contender, model and number of workers.
        repeat: 0 for the first.
        effort: how much to measure.
        expected: predictions by model; those of the first run are noted.
        logs: folder for what the run prints.
    """
    model, mark = model_of(cell), uuid.uuid4().hex
    samples = effort.batches[model] * BATCH_SIZES[model]
    output = logs / f"{cell.strategy}-{model}-{cell.workers}-{repeat}.log"
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        command = ["-m", "tests.performance.inference_contenders", cell.strategy, model]
        command += [f"--workers={cell.workers}", f"--samples={samples}", f"--folder={folder}"]
        if cell.strategy in UNDER_TORCHRUN and cell.workers > 1:
            command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={cell.workers}", *command]
        began = time.monotonic()
        env = {**os.environ, **environment(), **RAY_VARIABLES, MARK: mark}
        with ChildProcess([sys.executable, *command], output, env=env) as child:
            if timed_out := not child.wait(TIMEOUT):
                child.end(show_stacks=True)
            left = wait_until_gone(mark)
        if timed_out or child.code or left:
            why = "timed out" if timed_out else f"exit code {child.code}, {left} processes left"
            return Sample(cell, repeat, error=f"{why}; its output: {output}")
        begins = [json.loads(path.read_text()) for path in folder.glob("begin-*.json")]
        ends = [json.loads(path.read_text()) for path in folder.glob("end-*.json")]
        predicted = read(cell, folder)
    if any(threads != 1 for _, threads in begins):
        return Sample(cell, repeat, error="computes with several threads, and the others with one")
    reference = expected.setdefault(model, predicted)
    difference = math.inf
    if predicted.shape == reference.shape:
        difference = float(np.abs(predicted - reference).max() / np.abs(reference).max())
    first = min(moment for moment, _ in begins)
    error = "" if difference <= TOLERANCE else f"predictions differ by {difference:.0e}"
    return Sample(cell, repeat, samples / (max(ends) - first), first - began, difference, error)


def read(cell: Cell, folder: Path) -> Any:
    """Return the predictions that a contender has written, in the order of the samples."""
    import torch

    if cell.strategy == ITWINAI_WRITER:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(folder / "predictions.parquet")
        assert table["index"].to_pylist() == list(range(len(table)))
        column = table["prediction"].combine_chunks()
        return np.asarray(column.flatten()).reshape(len(table), -1)
    if cell.strategy == RAW:
        parts = [torch.load(folder / f"part-{rank}.pt") for rank in range(cell.workers)]
        return torch.stack(parts, dim=1).flatten(0, 1).numpy()
    return torch.load(folder / "predictions.pt").numpy()


def tables(samples: Sequence[Sample]) -> str:
    """Return a table for each model and number of workers, in Markdown."""
    cells = list(dict.fromkeys(one.cell for one in samples))
    parts = []
    for model, title in MODEL_TITLES.items():
        for workers in sorted({cell.workers for cell in cells if model_of(cell) == model}):
            group = [cell for name in TITLES if (cell := cell_of(name, model, workers)) in cells]
            rows = [("", "samples/s", "x raw", "to first batch"), *(_row(samples, cell) for cell in group)]
            parts.append(f"### {title}: {workers} worker{'s' * (workers > 1)}\n\n{markdown(rows)}")
    return "\n\n".join(parts)


def _row(samples: Sequence[Sample], cell: Cell) -> tuple[str, ...]:
    own = {one.repeat: one for one in samples if one.cell == cell and not one.error}
    raw_cell = cell_of(RAW, model_of(cell), cell.workers)
    raw = {one.repeat: one for one in samples if one.cell == raw_cell and not one.error}
    if not own:
        return f"{TITLES[cell.strategy]} (failed)", UNKNOWN, UNKNOWN, UNKNOWN
    shared = sorted(own.keys() & raw.keys())
    ratio = None
    if shared:  # of the repeats, each of which has seen one machine, more or less
        logarithms = mean_of([math.log(own[one].rate / raw[one].rate) for one in shared])
        low, high = (None if end is None else math.exp(end) for end in (logarithms.low, logarithms.high))
        ratio = Estimate(math.exp(logarithms.mean), low, high, logarithms.n)
    rate = mean_of([one.rate for one in own.values()])
    start = mean_of([one.start for one in own.values()])
    own_ratio = "1.00" if cell.strategy == RAW else estimate_text(ratio)
    return TITLES[cell.strategy], estimate_text(rate), own_ratio, time_text(start)


def write(samples: Sequence[Sample], facts: Mapping[str, str], folder: Path) -> list[Path]:
    """Write ``inference.md`` and ``inference.json``, which has all samples."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    page, document = folder / "inference.md", folder / "inference.json"
    page.write_text(f"# Prediction\n\n{listed}\n\n{tables(samples)}\n")
    plain = [
        {"contender": one.cell.strategy, "model": model_of(one.cell), "workers": one.cell.workers}
        | {name: getattr(one, name) for name in ("repeat", "rate", "start", "difference", "error")}
        for one in samples
    ]
    document.write_text(json.dumps({"facts": dict(facts), "samples": plain}, indent=1) + "\n")
    return [page, document]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.performance.inference", description=__doc__)
    parser.add_argument("--repeats", type=int, help="times that everyone is started again (5)")
    parser.add_argument("--quick", action="store_true", help="see whether everything runs; the numbers mean little")
    parser.add_argument("--contenders", type=some_of(TITLES), default=list(TITLES), help=f"some of {','.join(TITLES)}")
    parser.add_argument(
        "--models", type=some_of(MODEL_TITLES), default=list(MODEL_TITLES), help=f"some of {','.join(MODEL_TITLES)}"
    )
    parser.add_argument("--workers", type=lambda text: [int(one) for one in text.split(",")], default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), help="folder (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

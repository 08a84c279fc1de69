"""Run one framework in fresh processes, and read what its workers have written down."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from itwinai.benchmark.records import Cell, Measured, Measurement, Status
from itwinai.launchers.child_process import ChildProcess
from tests.performance.framework_cases import UNDER_TORCHRUN, Effort
from tests.performance.workers import TIMEOUT, environment

Weights = Mapping[str, Any]

MARK = "FRAMEWORK_BENCHMARK_RUN"  # variable by which processes are known that a run has left behind
_GRACE = 30.0  # seconds in which those of Ray have to be gone after the command has ended


@dataclass(frozen=True)
class Outcome:
    """What came of one run.

    Attributes:
        measurement: with the contender as strategy and the model as axis.
        durations: of the measured steps of rank 0, in seconds; empty if the run has failed.
        weights: what was learned; None if the run has failed.
    """

    measurement: Measurement
    durations: tuple[float, ...] = ()
    weights: Weights | None = None


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code, when it began (in seconds since 1970), how long it took, whether it timed out."""

    code: int
    began: float
    seconds: float
    timed_out: bool


def cell_of(contender: str, model: str, workers: int) -> Cell:
    """Return the cell of a contender; the global batch is the same for every number of workers."""
    return Cell(contender, workers, "strong", (("model", model),))


def model_of(cell: Cell) -> str:
    """Return the model of a cell."""
    return dict(cell.axes)["model"]


def run_cell(cell: Cell, repeat: int, effort: Effort, batch_size: int, logs: Path) -> Outcome:
    """Run a contender once, in fresh processes, and wait until all of them have ended.

    Args:
        cell: contender, model and number of workers.
        repeat: 0 for the first.
        effort: how much to measure.
        batch_size: samples of a step, of all workers together.
        logs: folder for what the run prints.
    """
    model, mark = model_of(cell), uuid.uuid4().hex
    output = logs / f"{cell.strategy}-{model}-{cell.workers}-{repeat}.log"
    warmup, steps = effort.warmup[model], effort.steps[model]
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        command = ["-m", "tests.performance.framework_contenders", cell.strategy, model, f"--workers={cell.workers}"]
        command += [f"--warmup={warmup}", f"--steps={steps}", f"--folder={folder}"]
        if cell.strategy in UNDER_TORCHRUN:
            command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={cell.workers}", *command]
        began = time.time()
        env = {**os.environ, **environment(), **RAY_VARIABLES, MARK: mark}
        with ChildProcess([sys.executable, *command, repr(began)], output, env=env) as child:
            timed_out = not child.wait(TIMEOUT)
            if timed_out:
                child.end(show_stacks=True)
            seconds = time.time() - began
            left = wait_until_gone(mark)
        ended = Ended(child.code or 0, began, seconds, timed_out)
        if error := _error(ended, left, folder, cell.workers):
            status: Status = "timed out" if ended.timed_out else "failed"
            return Outcome(Measurement(cell, repeat, status, ended.began, ended.seconds, None, error, str(output)))
        reports = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(cell.workers)]
        measured = _measured(reports, ended.began, steps, batch_size)
        with np.load(folder / "weights.npz") as stored:
            weights = dict(stored)
        durations = tuple(reports[0]["durations"])
        measurement = Measurement(cell, repeat, "measured", ended.began, ended.seconds, measured, "", str(output))
        return Outcome(measurement, durations, weights)


def difference(weights: Weights, reference: Weights) -> float:
    """Return the largest difference of two networks, relative to the largest weight of its tensor."""
    if weights.keys() != reference.keys():
        return float("inf")
    found = [np.abs(weights[name] - one).max() / (np.abs(one).max() or 1.0) for name, one in reference.items()]
    return float(max(found)) if np.all(np.isfinite(found)) else float("inf")


# Ray shall not send statistics about its use while others are measured, and not look for a cluster.
RAY_VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "", "RAY_TRAIN_V2_ENABLED": "1"}


def _measured(reports: Sequence[Mapping[str, Any]], began: float, steps: int, batch_size: int) -> Measured:
    return Measured(
        steps=steps,
        seconds=max(report["seconds"] for report in reports),
        samples=steps * batch_size,
        step_p50=statistics.mean(report["p50"] for report in reports),
        step_p95=statistics.mean(report["p95"] for report in reports),
        breakdown=None,
        busy=(),
        peak_memory=tuple(report["peak_memory"] for report in reports),
        launch=reports[0]["first"] - began,
        loss=statistics.mean(report["loss"] for report in reports),
        joules=None,
        no_joules="not asked for",
        parameters=reports[0]["parameters"],
        gradient_bytes=4 * reports[0]["parameters"],
        device="CPU",
    )


def _error(ended: Ended, left: int, folder: Path, workers: int) -> str:
    """Say why a run does not count; an empty string if it does."""
    if ended.timed_out:
        return f"has not ended after {TIMEOUT:.0f} s"
    if ended.code:
        return f"ended with exit code {ended.code}"
    paths = [folder / f"{rank}.json" for rank in range(workers)]
    if not all(path.exists() for path in paths):
        return "ended without what its workers have measured"
    for rank, path in enumerate(paths):
        report = json.loads(path.read_text())
        if report["threads"] != 1:
            return f"computes with {report['threads']} threads on rank {rank}, and the others with one"
        if report["workers"] != workers:
            return f"has trained with {report['workers']} workers, and not with {workers}"
    if left:
        return f"left {left} processes behind for {_GRACE:.0f} s"
    return ""


def wait_until_gone(mark: str) -> int:
    """Wait until a run's processes have ended, which would slow the next one down; kill those that do not.

    Returns:
        The number of those that were killed.
    """
    deadline = time.monotonic() + _GRACE
    while (left := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return len(left)


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
    return found

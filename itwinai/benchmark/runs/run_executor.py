"""The runs of a benchmark, one after the other, each in fresh processes."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from itwinai.benchmark.record_file import measured_from_plain
from itwinai.benchmark.records import Cell, Measured, Measurement
from itwinai.benchmark.runs.run_worker import ERROR, RESULT, RunRequest, write_request
from itwinai.errors import ItwinaiError
from itwinai.launchers.child_process import ChildProcess

OUTPUT = "output.txt"

FEWEST_FAILURES = 3
"""Cells that fail in the same way before the benchmark stops: this is not chance."""

LOOK = 0.3
"""Seconds for which other programs are observed before each run."""


class HopelessError(ItwinaiError, RuntimeError):
    """The first cells of a benchmark have all failed in the same way."""


@dataclass(frozen=True)
class Launch:
    """How the command of a run is launched.

    Attributes:
        prefix: what stands before it, such as ``srun`` and its flags.
        variables: further variables of its environment.
    """

    prefix: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedRun:
    """A run that is to be made.

    Attributes:
        cell: what is run.
        repeat: 0 for the first.
        request: for the process of the run.
    """

    cell: Cell
    repeat: int
    request: RunRequest


def run_all(
    planned_runs: Sequence[PlannedRun],
    folder: Path,
    limit: float,
    before: Sequence[Measurement] = (),
    launched: Callable[[Cell], AbstractContextManager[Launch]] = lambda cell: nullcontext(Launch()),
    begins: Callable[[Cell, int], None] = lambda cell, repeat: None,
) -> Iterator[Measurement]:
    """Make runs, one after the other; yield each when it has ended.

    A cell that has failed and never succeeded is not run again: a missing package stays missing. If
    cells of several strategies fail in the same way, and none succeeds, it is not the strategy.

    Args:
        planned_runs: the runs, in their sequence.
        folder: of the benchmark.
        limit: seconds after which a run is ended.
        before: what has been measured before.
        launched: how the command of a cell is launched.
        begins: called with cell and repeat of each run, before it.

    Raises:
        HopelessError: the first cells have all failed in the same way.
    """
    failures: list[Measurement] = []
    succeeded = {measurement.cell for measurement in before if measurement.status == "measured"}
    failed = {measurement.cell for measurement in before} - succeeded
    for planned in planned_runs:
        if planned.cell in failed:
            continue
        begins(planned.cell, planned.repeat)
        with launched(planned.cell) as launch:
            measurement = _run(planned, folder, limit, launch)
        if measurement.status == "measured":
            succeeded.add(planned.cell)
        elif planned.cell not in succeeded:
            failed.add(planned.cell)
            failures.append(measurement)
        yield measurement
        if not succeeded and _all_the_same(failures):
            raise HopelessError(
                f"The first {len(failures)} cells have failed in the same way, so the others were not run: "
                f"{failures[-1].error}\nThe output is in {folder / failures[-1].output}. Fix the cause, and continue "
                "with --retry-failed."
            )


def folder_of_run(cell: Cell, repeat: int) -> str:
    """Return the folder of a run, below that of the benchmark."""
    axes = [f"{path.rpartition('.')[2]}={value}" for path, value in cell.axes]
    name = "-".join([cell.strategy, f"{cell.workers}w", cell.scaling, *axes, f"r{repeat + 1}"])
    return f"runs/{re.sub(r'[^A-Za-z0-9_.=+-]+', '_', name)[:120]}"


def _all_the_same(failures: Sequence[Measurement]) -> bool:
    strategies = {measurement.cell.strategy for measurement in failures}
    errors = {measurement.error for measurement in failures}
    return len(failures) >= FEWEST_FAILURES and len(strategies) > 1 and len(errors) == 1


def _others() -> float:
    """Return the number of cores that are in use while this process waits."""
    import psutil

    return float(psutil.cpu_percent(interval=LOOK)) / 100 * (psutil.cpu_count() or 1)


def _run(planned: PlannedRun, folder: Path, limit: float, launch: Launch) -> Measurement:
    own = Path(planned.request.folder)
    for left in (own / RESULT, own / ERROR):
        left.unlink(missing_ok=True)
    request = own / "request.json"
    write_request(planned.request, request)
    others = _others()
    began = time.time()
    worker = [sys.executable, "-m", "itwinai.benchmark.runs.run_worker", str(request), repr(began)]
    try:
        env = {**os.environ, **launch.variables}
        with ChildProcess([*launch.prefix, *worker], own / OUTPUT, env=env) as child:
            in_time = child.wait(limit)
            if not in_time:
                child.end(show_stacks=True)
    finally:
        request.unlink(missing_ok=True)
    measurement = Measurement(
        cell=planned.cell,
        repeat=planned.repeat,
        status="failed",
        began=began,
        seconds=time.time() - began,
        output=str((own / OUTPUT).relative_to(folder)),
        others=others,
    )
    if not in_time:
        error = f"ended after {limit:g} s (--limit); the end of its output shows where it was"
        return replace(measurement, status="timed out", error=error)
    measured = _measured(own / RESULT)
    code = child.code or 0
    if code == 0 and measured is not None:
        return replace(measurement, status="measured", measured=measured)
    return replace(measurement, error=_error(own, code))


def _measured(path: Path) -> Measured | None:
    return measured_from_plain(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _error(own: Path, code: int) -> str:
    """Return what has gone wrong, in a few lines."""
    if (own / ERROR).exists():
        return (own / ERROR).read_text(encoding="utf-8", errors="replace").strip()
    lines = [line for line in (own / OUTPUT).read_text(errors="replace").splitlines() if line.strip()]
    error = next(
        (line for line in reversed(lines) if re.match(r"\s*(\w+\.)*\w*(Error|Exception|error)\b.*:", line)), ""
    )
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how}: {error.strip() or (lines[-1].strip() if lines else 'it printed nothing')}"

"""The runs of a benchmark, one after the other, each in fresh processes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from itwinai.benchmark.record_file import measured_from_plain
from itwinai.benchmark.records import Cell, Measured, Measurement
from itwinai.benchmark.runs import processes
from itwinai.benchmark.runs.cell_process import ERROR, RESULT, Order, write_order

OUTPUT = "output.txt"


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
class Work:
    """A run that is to be made.

    Attributes:
        cell: what is run.
        repeat: 0 for the first.
        order: for the process of the run.
    """

    cell: Cell
    repeat: int
    order: Order


def run_all(
    works: Sequence[Work],
    folder: Path,
    limit: float,
    before: Sequence[Measurement] = (),
    launched: Callable[[Cell], AbstractContextManager[Launch]] = lambda cell: nullcontext(Launch()),
) -> Iterator[Measurement]:
    """Make runs, one after the other; yield each when it has ended.

    A cell that has failed and never succeeded is not run again: what is not installed will not be there next time.

    Args:
        works: the runs, in their order.
        folder: of the benchmark.
        limit: seconds after which a run is ended.
        before: what has been measured before.
        launched: how the command of a cell is launched.
    """
    succeeded = {measurement.cell for measurement in before if measurement.status == "measured"}
    failed = {measurement.cell for measurement in before} - succeeded
    for work in works:
        if work.cell in failed:
            continue
        with launched(work.cell) as launch:
            measurement = _run(work, folder, limit, launch)
        if measurement.status == "measured":
            succeeded.add(work.cell)
        elif work.cell not in succeeded:
            failed.add(work.cell)
        yield measurement


def folder_of_run(cell: Cell, repeat: int) -> str:
    """Return the folder of a run, below that of the benchmark."""
    axes = [f"{path.rpartition('.')[2]}={value}" for path, value in cell.axes]
    name = "-".join([cell.strategy, f"{cell.workers}w", cell.scaling, *axes, f"r{repeat + 1}"])
    return f"runs/{re.sub(r'[^A-Za-z0-9_.=+-]+', '_', name)[:120]}"


def _run(work: Work, folder: Path, limit: float, launch: Launch) -> Measurement:
    own = Path(work.order.folder)
    for left in (own / RESULT, own / ERROR):
        left.unlink(missing_ok=True)
    order = own / "order.json"
    write_order(work.order, order)
    command = [*launch.prefix, sys.executable, "-m", "itwinai.benchmark.runs.cell_process", str(order)]
    try:
        ended = processes.run(command, own / OUTPUT, limit, launch.variables)
    finally:
        order.unlink(missing_ok=True)
    measurement = Measurement(
        cell=work.cell,
        repeat=work.repeat,
        status="failed",
        began=ended.began,
        seconds=ended.seconds,
        output=str((own / OUTPUT).relative_to(folder)),
    )
    if ended.timed_out:
        error = f"it was ended after {limit:g} s (--limit); the end of its output says where it was"
        return replace(measurement, status="timed out", error=error)
    measured = _measured(own / RESULT)
    if ended.code == 0 and measured is not None:
        return replace(measurement, status="measured", measured=measured)
    return replace(measurement, error=_error(own, ended.code))


def _measured(path: Path) -> Measured | None:
    return measured_from_plain(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _error(own: Path, code: int) -> str:
    """Return what has gone wrong, in a few lines."""
    if (own / ERROR).exists():
        return (own / ERROR).read_text(encoding="utf-8", errors="replace").strip()
    lines = [line for line in (own / OUTPUT).read_text(errors="replace").splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if re.match(r"\s*(\w+\.)*\w*(Error|Exception|error)\b.*:", line)), "")
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how}: {told.strip() or (lines[-1].strip() if lines else 'it has printed nothing')}"

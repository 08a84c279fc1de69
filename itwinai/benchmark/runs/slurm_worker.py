"""What a SLURM job of a benchmark does, its runs in turn: ``python -m itwinai.benchmark.runs.slurm_worker RUNS``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from itwinai.benchmark.record_file import append_measurement, read_measurements
from itwinai.benchmark.records import Cell
from itwinai.benchmark.runs.progress import BenchmarkProgress
from itwinai.benchmark.runs.run_config import spread_over_nodes
from itwinai.benchmark.runs.run_executor import Launch, PlannedRun, run_all
from itwinai.benchmark.runs.run_worker import RunRequest
from itwinai.strategies.registry import uses_ray


@dataclass(frozen=True)
class JobRuns:
    """What a job is to do.

    Attributes:
        folder: of the benchmark.
        records: file for what is measured.
        limit: seconds after which a run is ended.
        workers_per_node: most workers of a node; None for all on one.
        planned_runs: the runs.
    """

    folder: str
    records: str
    limit: float
    workers_per_node: int | None
    planned_runs: Sequence[PlannedRun]

    def write(self, path: Path) -> None:
        """Write it for the job to read."""
        path.touch(mode=0o600)  # a config may hold secrets
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> JobRuns:
        """Return what `write` has written."""
        plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        planned_runs = [
            PlannedRun(
                cell=Cell(
                    **{**planned["cell"], "axes": tuple((path, value) for path, value in planned["cell"]["axes"])}
                ),
                repeat=planned["repeat"],
                request=RunRequest(**planned["request"]),
            )
            for planned in plain["planned_runs"]
        ]
        return cls(**{**plain, "planned_runs": planned_runs})


def main(argv: list[str]) -> int:
    """Make the runs of a job.

    Args:
        argv: path of a file that `JobRuns.write` has written.
    """
    job = JobRuns.read(Path(argv[0]))
    records = Path(job.records)

    @contextmanager
    def launched(cell: Cell) -> Iterator[Launch]:
        nodes, on_each = spread_over_nodes(cell.workers, job.workers_per_node)
        if not uses_ray(cell.strategy):
            yield Launch(prefix=tuple(_srun(nodes, on_each)))
        elif nodes == 1:
            yield Launch()
        else:
            from itwinai.launchers.ray_slurm import allocated_nodes, ray_over

            with ray_over(allocated_nodes()) as address:
                yield Launch(variables={"RAY_ADDRESS": address})

    progress = BenchmarkProgress(len(job.planned_runs), Path(job.folder))
    for measurement in run_all(job.planned_runs, Path(job.folder), job.limit, read_measurements(records), launched):
        append_measurement(measurement, records)
        progress.ended(measurement)
    return 0


def _srun(nodes: int, on_each: int) -> list[str]:
    """Return the beginning of a command that starts so many tasks."""
    command = ["srun", f"--nodes={nodes}", f"--ntasks={nodes * on_each}", f"--ntasks-per-node={on_each}"]
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):  # which srun does not take from sbatch any more
        command.append(f"--cpus-per-task={cpus}")
    return [*command, "--kill-on-bad-exit=1", "--unbuffered"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

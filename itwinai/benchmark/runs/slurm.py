"""The runs of a benchmark as SLURM jobs: submitted, waited for, collected."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from itwinai.benchmark.record_file import read_measurements
from itwinai.benchmark.records import Measurement
from itwinai.benchmark.runs.run_config import spread_over_nodes
from itwinai.benchmark.runs.run_executor import PlannedRun
from itwinai.benchmark.runs.slurm_worker import JobRuns
from itwinai.errors import ConfigurationError, SlurmError
from itwinai.reporting.formatting import count_text
from itwinai.slurm.commands import check_programs, joined_state, submit_script, task_records
from itwinai.slurm.job import Job as SlurmJob
from itwinai.slurm.quoting import bash_words, sbatch_line

EVERY = 5.0
"""Seconds between two looks at the jobs: polling more often burdens the scheduler."""

RUNS = "runs.json"
RECORDS = "records.jsonl"
JOB = "job.json"

# Options that are set for each job.
_OWN = ("nodes", "N", "ntasks", "n", "ntasks-per-node", "output", "o", "error", "e", "chdir", "D", "parsable", "wait")


@dataclass(frozen=True)
class SlurmJobs:
    """Makes runs as jobs: one for each number of workers, whose runs share its nodes and follow each other.

    Attributes:
        folder: of the benchmark.
        options: for sbatch, by name, such as ``partition`` or ``time``.
        limit: seconds after which a run is ended.
        workers_per_node: most workers of a node; None for all on one.
        every: seconds between two looks at the jobs.
    """

    folder: Path
    options: Mapping[str, str] = field(default_factory=dict)
    limit: float = 600.0
    workers_per_node: int | None = None
    every: float = EVERY

    def check(self) -> None:
        """Raise an error if there is no SLURM, or an option is not for the user to set.

        Raises:
            ConfigurationError: as above.
        """
        check_programs("sbatch", "squeue", "scancel", needed_for="--slurm")
        for name in self.options:
            if name.lstrip("-") in _OWN:
                raise ConfigurationError(
                    f"--slurm {name}=... is set for each job from --workers and --workers-per-node. Leave it out."
                )

    def left_behind(self) -> list[Job]:
        """Return the jobs that an earlier command has submitted."""
        return [Job.read(path.parent) for path in sorted(self.folder.glob(f"jobs/*/{JOB}"))]

    def submit(self, planned_runs: Sequence[PlannedRun]) -> list[Job]:
        """Submit the jobs for some runs.

        Raises:
            SlurmError: SLURM refuses one; those that were submitted before are cancelled.
        """
        jobs: list[Job] = []
        try:
            for workers in sorted({planned.cell.workers for planned in planned_runs}):
                jobs.append(
                    self._submit(workers, [planned for planned in planned_runs if planned.cell.workers == workers])
                )
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
        return jobs

    def collect(self, jobs: Sequence[Job]) -> Iterator[Measurement]:
        """Wait for jobs, and yield what they have measured, as it comes."""
        taken = dict.fromkeys(jobs, 0)
        while True:
            over = [job for job in jobs if job.is_over()]
            for job in jobs:
                measurements = read_measurements(job.folder / RECORDS)
                yield from measurements[taken[job] :]
                taken[job] = len(measurements)
            for job in over:
                job.forget_runs()
            if len(over) == len(jobs):
                return
            time.sleep(self.every)

    def _submit(self, workers: int, planned_runs: Sequence[PlannedRun]) -> Job:
        jobs = self.folder / "jobs"
        number = len(list(jobs.glob("*"))) + 1
        own = jobs / f"{number:02d}-{workers}-workers"
        own.mkdir(parents=True)
        JobRuns(str(self.folder), str(own / RECORDS), self.limit, self.workers_per_node, planned_runs).write(own / RUNS)
        nodes, on_each = spread_over_nodes(workers, self.workers_per_node)
        options = {
            "job-name": f"itwinai-benchmark-{workers}",
            **{name.lstrip("-"): value for name, value in self.options.items()},
            "nodes": str(nodes),
            "ntasks-per-node": str(on_each),
        }
        script = own / "job.sh"
        command = [sys.executable, "-m", "itwinai.benchmark.runs.slurm_worker", str(own / RUNS)]
        lines = [sbatch_line(name, value or None) for name, value in options.items()]
        script.write_text("\n".join(["#!/bin/bash", *lines, "", f"exec {bash_words(command)}", ""]))
        places = [f"--chdir={os.getcwd()}", f"--output={str(own).replace('%', '%%')}/output.txt"]
        try:
            submitted = submit_script(places, str(script))
        except SlurmError as error:
            raise SlurmError(
                f"SLURM refused the job for {count_text(workers, 'worker')} ({count_text(nodes, 'node')}, "
                f"{on_each} on each): {error}. Options for it are given as --slurm partition=...,account=...,time=..."
            ) from None
        job = Job(submitted, workers, own)
        (own / JOB).write_text(json.dumps({"number": job.number, "workers": workers}))
        return job


@dataclass(frozen=True)
class Job:
    """A job of a benchmark.

    Attributes:
        number: by which SLURM knows it.
        workers: of its runs.
        folder: where its files are.
    """

    number: str
    workers: int
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Return the job whose files are in a folder."""
        plain = json.loads((folder / JOB).read_text())
        return cls(plain["number"], plain["workers"], folder)

    @property
    def _job(self) -> SlurmJob:
        return SlurmJob(self.number, self.folder)

    @property
    def planned_runs(self) -> Sequence[PlannedRun]:
        """What it is to do."""
        return JobRuns.read(self.folder / RUNS).planned_runs

    def has_runs(self) -> bool:
        """Return whether it may still run: all that it has measured has not been collected."""
        return (self.folder / RUNS).exists()

    def forget_runs(self) -> None:
        """Remove what it was to do, as it is over: a config may hold secrets."""
        (self.folder / RUNS).unlink(missing_ok=True)

    def state(self) -> str:
        """Return its state as SLURM names it, or nothing if SLURM has forgotten it."""
        return joined_state([one.state for one in task_records(self.number)])

    def is_over(self) -> bool:
        """Return whether it has ended."""
        return self._job.is_over()

    def cancel(self) -> None:
        """Remove it from the queue, or end it."""
        self._job.cancel()

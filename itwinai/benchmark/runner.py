"""Run a benchmark: from its settings to the files in its folder."""

from __future__ import annotations

import json
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from itwinai.benchmark.record_file import HEAD, RECORDS, append_measurement, read_measurements, read_record, write_head
from itwinai.benchmark.records import SINGLE, BenchmarkRecord, Cell, Measurement
from itwinai.benchmark.runs.machine_info import code_of, machine_facts
from itwinai.benchmark.runs.progress import BenchmarkProgress, plan_text
from itwinai.benchmark.runs.run_config import RunConfigs, most_on_a_node
from itwinai.benchmark.runs.run_executor import PlannedRun, folder_of_run, run_all
from itwinai.benchmark.runs.run_worker import RunRequest
from itwinai.benchmark.runs.slurm import Job, SlurmJobs
from itwinai.benchmark.settings import Settings, cells_of
from itwinai.errors import ConfigurationError, MissingPackageError
from itwinai.launchers.cpu_affinity import available_cores
from itwinai.reporting.formatting import count_text, listed, path_text
from itwinai.run_info.fingerprint import Fingerprint

FINGERPRINT = "fingerprint.json"
TABLE = "table.csv"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the run that a config describes.

    Attributes:
        settings: strategies, numbers of workers, and so on.
        config: the user's, with all defaults, as plain values.
        folder: for all files.
        name: of the benchmark.
        slurm: options for sbatch; None runs on this machine, and Ray's workers on the cluster of ``RAY_ADDRESS``.
        workers_per_node: most workers of a node; None for all on one.
        check: raises an error if a config is wrong; called with each config before anything runs.
    """

    settings: Settings
    config: Mapping[str, Any]
    folder: Path
    name: str
    slurm: Mapping[str, str] | None = None
    workers_per_node: int | None = None
    check: Callable[[Mapping[str, Any], str], None] | None = field(default=None, compare=False)

    def run(self, *, resume: bool = False, retry_failed: bool = False) -> BenchmarkRecord:
        """Run what is missing, and write records, table and report; return all that is known.

        Args:
            resume: continue the benchmark in the folder; strategies, workers and repeats may be added.
            retry_failed: run cells again that have failed.

        Raises:
            ConfigurationError: a setting is wrong, there is a benchmark in the folder already, or the one to resume
                has other settings.
        """
        threads = self.threads(resume)
        planned_runs = self._planned_runs(threads)
        before = self._measured_before(resume, threads)
        done = {(one.cell, one.repeat) for one in before if one.status == "measured" or not retry_failed}
        missing = [planned for planned in planned_runs if (planned.cell, planned.repeat) not in done]
        hopeless = () if retry_failed else before
        record = self._record(before, len(planned_runs), threads)
        most = most_on_a_node(self.settings.workers, self.workers_per_node)
        on_slurm = self.slurm is not None
        self._say(plan_text(self.settings, len(planned_runs), len(missing), self.folder, threads, most, on_slurm))
        progress = BenchmarkProgress(len(missing), self.folder)
        try:
            for measurement in self._measure(missing, hopeless, progress):
                progress.ended(measurement)
                record = replace(record, measurements=(*record.measurements, measurement))
        except KeyboardInterrupt:
            what = "; these are the results so far" if record.measurements else ""
            self._say(f"\nInterrupted. The same command with --resume continues{what}.")
            raise
        finally:
            if record.measurements:
                conclude(record, self.folder)
        return record

    def _measure(
        self, planned_runs: Sequence[PlannedRun], before: Sequence[Measurement], progress: BenchmarkProgress
    ) -> Iterator[Measurement]:
        path = self.folder / RECORDS
        if self.slurm is None:
            yield from _kept(
                run_all(planned_runs, self.folder, self.settings.limit, before, begins=progress.begins), path
            )
            return
        slurm = self._slurm_jobs()
        jobs = [job for job in slurm.left_behind() if job.has_runs()]
        waiting = {(planned.cell, planned.repeat) for job in jobs for planned in job.planned_runs}
        jobs += slurm.submit([planned for planned in planned_runs if (planned.cell, planned.repeat) not in waiting])
        self._say(_submitted(jobs))
        try:
            yield from _kept(slurm.collect(jobs), path)
            self._report_missing(planned_runs, jobs)
        except KeyboardInterrupt:
            numbers = " ".join(job.number for job in jobs if not job.is_over())
            self._say(
                f"The jobs {numbers} continue. The same command with --resume collects what they measure; "
                f"`scancel {numbers}` ends them."
            )
            raise

    def _report_missing(self, planned_runs: Sequence[PlannedRun], jobs: Sequence[Job]) -> None:
        """Say which jobs have ended before all of their runs were made."""
        measured = read_measurements(self.folder / RECORDS)
        done = {(one.cell, one.repeat) for one in measured}
        failed = {one.cell for one in measured if one.status != "measured"}
        for job in jobs:
            left = [
                planned
                for planned in planned_runs
                if planned.cell.workers == job.workers
                and (planned.cell, planned.repeat) not in done
                and planned.cell not in failed
            ]
            if left:
                self._say(
                    f"The job {job.number} has ended ({job.state().lower() or 'forgotten by SLURM'}) before "
                    f"{count_text(len(left), 'run')} of it: see {job.folder / 'output.txt'}. The same command with "
                    "--resume makes them."
                )

    def _slurm_jobs(self) -> SlurmJobs:
        slurm = SlurmJobs(self.folder, self.slurm or {}, self.settings.limit, self.workers_per_node)
        slurm.check()
        return slurm

    def threads(self, resume: bool) -> int:
        """Return the threads of each worker: as many in all cells, so that their speeds can be compared.

        Args:
            resume: whether a benchmark in the folder continues, which keeps its number.
        """
        given = self.settings.threads or self.config["trainer"].get("cpu_threads") or os.environ.get("OMP_NUM_THREADS")
        if given is None and resume and (self.folder / FINGERPRINT).exists():
            given = json.loads((self.folder / FINGERPRINT).read_text()).get("threads")
        if given is not None:
            return int(given)
        if self.slurm is not None:  # of whose nodes nothing is known here; a task has one core unless it asks for more
            return int(self.slurm.get("cpus-per-task", self.slurm.get("c", 1)))
        return max(available_cores() // most_on_a_node(self.settings.workers, self.workers_per_node), 1)

    def _planned_runs(self, threads: int) -> list[PlannedRun]:
        """Return all runs, after checking their configs."""
        if self.slurm is not None:
            self._slurm_jobs()
        _check_names(self.settings.strategies)
        cells = cells_of(self.settings)
        configs = RunConfigs(self.config, self.workers_per_node, self.settings.seed, threads)
        for cell in {cell.axes: cell for cell in cells}.values():  # strategies and workers fit any config
            config = configs.of(cell, str(self.folder))
            if self.check is not None:
                rows = ", ".join(f"{path}={value}" for path, value in cell.axes) or cell.strategy
                self.check(config, f"{rows} is not valid for a run")
        planned_runs = []
        for cell, repeat in interleaved(cells, self.settings.repeats, self.settings.seed):
            folder = str(self.folder / folder_of_run(cell, repeat))
            settings = self.settings
            request = RunRequest(configs.of(cell, folder), folder, settings.steps, settings.warmup, settings.seconds)
            planned_runs.append(PlannedRun(cell, repeat, request))
        return planned_runs

    def _measured_before(self, resume: bool, threads: int) -> tuple[Measurement, ...]:
        """Return what was measured before, after checking that it may be continued."""
        if not (self.folder / HEAD).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
        elif not resume:
            raise ConfigurationError(
                f"There is a benchmark in {self.folder} already. Continue it with --resume, or give another --folder."
            )
        elif any(one.status == "measured" for one in read_measurements(self.folder / RECORDS)):
            self._check_same(threads)
        self._fingerprint(threads).write(self.folder / FINGERPRINT)
        path = self.folder / RECORDS
        for job in SlurmJobs(self.folder).left_behind():  # what they have measured while no command waited
            over = self.slurm is not None and job.is_over()
            deque(_kept(read_measurements(job.folder / RECORDS), path), maxlen=0)
            if over:
                job.forget_runs()
        return read_measurements(path)

    def _fingerprint(self, threads: int) -> Fingerprint:
        """Return what has to be the same for figures to be comparable."""
        settings = self.settings
        same = {"steps": settings.steps, "warmup": settings.warmup, "seconds": settings.seconds, "seed": settings.seed}
        return Fingerprint.of({**same, "threads": threads, "code": code_of(self.config), "config": self.config})

    def _check_same(self, threads: int) -> None:
        changes = self._fingerprint(threads).changes(self.folder / FINGERPRINT)
        if differing := sorted(name.removeprefix("config.") for name in changes):
            raise ConfigurationError(
                f"The benchmark in {self.folder} was measured with other settings: {listed(differing, 6)}. The figures "
                "cannot be compared. Use the same settings with --resume, or another --folder."
            )

    def _record(self, measurements: tuple[Measurement, ...], asked: int, threads: int) -> BenchmarkRecord:
        settings = self.settings
        earlier = read_record(self.folder) if (self.folder / HEAD).exists() else BenchmarkRecord(self.name)
        record = BenchmarkRecord(
            name=self.name,
            settings=_settings_text(settings, self.config, threads),
            facts=earlier.facts or machine_facts(),
            measurements=measurements,
            baseline=settings.baseline,
            extrapolate=settings.extrapolated_workers,
            repeats=settings.repeats,
            asked=asked,
        )
        write_head(record, self.folder)
        return record

    @staticmethod
    def _say(text: str) -> None:
        print(text, flush=True)


def interleaved(cells: Sequence[Cell], repeats: int, seed: int = 0) -> list[tuple[Cell, int]]:
    """Return the runs, each a cell and the number of its repeat: all cells before the next repeat, in random order.

    A machine that gets slower in the course of a benchmark, as it warms up or others begin to use it, then slows down
    all cells alike, and none is favored by what runs before it: the randomized block design of experiments (Fisher,
    1935).

    Args:
        cells: what is run.
        repeats: how often.
        seed: of the orders.
    """
    runs: list[tuple[Cell, int]] = []
    for repeat in range(repeats):
        block = list(cells)
        random.Random(f"{seed}-{repeat}").shuffle(block)
        runs += [(cell, repeat) for cell in block]
    return runs


def conclude(record: BenchmarkRecord, folder: Path) -> None:
    """Write table and report of a benchmark, and print them."""
    from itwinai.benchmark.report.page import write_report
    from itwinai.benchmark.report.tables import benchmark_text, write_table
    from itwinai.benchmark.statistics.summary import summarize

    summary = summarize(record)
    write_table(summary, folder / TABLE)
    report = write_report(record, folder)
    print(benchmark_text(summary))
    places = {"report": report, "pictures": folder / "pictures", "table": folder / TABLE, "records": folder / RECORDS}
    lines = [f"{name:<12}{path_text(path)}" for name, path in places.items() if path.exists()]
    print("\n".join(lines), flush=True)


def _check_names(strategies: Sequence[str]) -> None:
    """Raise an error for a name that no strategy has; what is not installed is for the report."""
    from itwinai.strategies.registry import STRATEGY_NAMES, make_strategy

    for name in strategies:
        if name != SINGLE and name not in STRATEGY_NAMES:
            with suppress(MissingPackageError):
                make_strategy(name)


def _settings_text(settings: Settings, config: Mapping[str, Any], threads: int) -> dict[str, str]:
    """Return the settings for people."""
    rows: dict[str, Any] = {
        "model": config["model"].get("class_path", "") if isinstance(config.get("model"), Mapping) else "",
        "strategies": ", ".join(settings.strategies),
        "workers": ", ".join(map(str, settings.workers)),
        "threads per worker": threads,
        "scaling": ", ".join(settings.scalings),
        **{path: ", ".join(map(str, values)) for path, values in settings.axes.items()},
        "repeats": settings.repeats,
        "warm-up": f"{settings.warmup} steps",
        "measured": f"{settings.steps} steps or more, {settings.seconds:g} s at least",
        "baseline": settings.baseline,
    }
    return {name: str(value) for name, value in rows.items() if value != ""}


def _submitted(jobs: Sequence[Job]) -> str:
    rows = ", ".join(f"{job.number} ({count_text(job.workers, 'worker')})" for job in jobs)
    return f"waiting for the job{'s' * (len(jobs) > 1)} {rows}" if jobs else "no jobs to wait for"


def _kept(measurements: Iterable[Measurement], path: Path) -> Iterator[Measurement]:
    """Add measurements to a file, and yield each that was not in it yet."""
    known = {(one.cell, one.repeat, one.began) for one in read_measurements(path)}
    for one in measurements:
        if (one.cell, one.repeat, one.began) not in known:
            append_measurement(one, path)
            yield one

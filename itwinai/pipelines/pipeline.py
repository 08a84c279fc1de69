"""`Pipeline`: read, planned, run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itwinai.io.atomic import write_whole
from itwinai.pipelines.content_hash import ContentHasher
from itwinai.pipelines.planner import Plan, Planner
from itwinai.pipelines.record import RunFolder, StepRecord, decoded
from itwinai.pipelines.scheduler import Scheduler
from itwinai.pipelines.steps_file import StepsFile, read_steps
from itwinai.run_info.redaction import without_secrets

if TYPE_CHECKING:
    from itwinai.slurm.job import Job

FOLDER = "runs"
"""Folder of the folders of pipelines, below the current one."""

RESOLVED = "resolved-pipeline.yaml"


@dataclass(frozen=True)
class PipelineResult:
    """What has become of a pipeline.

    Attributes:
        outputs: what each step has returned, by name; named outputs as a dict.
        ran: names of the steps that ran.
        cached: names of the steps of which nothing has changed.
        folder: of the outputs.
    """

    outputs: Mapping[str, Any]
    ran: Sequence[str]
    cached: Sequence[str]
    folder: Path


class Pipeline:
    """Steps from a config. A step runs again only if what its result depends on has changed.

    That is its config, the content of its inputs, the code of its package, and the versions of the packages that this
    code imports. Relative paths are relative to the current folder, as for `itwinai fit`.

    Args:
        file: the steps.
        folder: for outputs; by default that of the file, or ``runs/NAME``.
    """

    def __init__(self, file: StepsFile, folder: str | Path | None = None) -> None:
        self.file = file
        self.folder = Path(folder or file.folder or Path(FOLDER, file.name))

    @classmethod
    def from_yaml(
        cls, path: str | Path, overrides: Mapping[str, Any] | None = None, folder: str | Path | None = None
    ) -> Pipeline:
        """Return the pipeline of a file.

        Args:
            path: of the file.
            overrides: values by path: ``{"steps.train.max_epochs": 3}``.
            folder: for outputs; by default that of the file, or ``runs/NAME`` in the current folder.

        Raises:
            ConfigurationError: the file is missing or malformed, or steps refer to steps that do not exist.
        """
        return cls(read_steps(path, overrides), folder)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], folder: str | Path | None = None) -> Pipeline:
        """Return the pipeline of plain values, which are those of a file.

        Raises:
            ConfigurationError: they are malformed, or steps refer to steps that do not exist.
        """
        return cls(read_steps(values), folder)

    def plan(self, steps: Sequence[str] = (), force: Collection[str] = ()) -> Plan:
        """Return which steps would run, and why; nothing runs.

        Args:
            steps: names (``train``) and ranges (``prepare..train``); all if empty.
            force: names of steps that run in any case.

        Raises:
            ConfigurationError: an argument of a step or a value of a config is wrong, or there is no such step.
            PipelineError: a step needs the outputs of one that was not asked for, and has not run.
        """
        planner, plan = self._planned(steps, force)
        planner.hasher.save()
        return plan

    def run(
        self,
        steps: Sequence[str] = (),
        *,
        jobs: int | None = None,
        force: Collection[str] = (),
        say: Callable[[str], None] | None = None,
    ) -> PipelineResult:
        """Run the steps that have changed, each in a process of its own.

        Args:
            steps: names (``train``) and ranges (``prepare..train``); all if empty.
            jobs: how many steps run at a time; by default as many as there are cores.
            force: names of steps that run in any case.
            say: gets each line that is printed; by default ``print``.

        Returns:
            What has become of it.

        Raises:
            ConfigurationError: an argument of a step is wrong, or there is no such step.
            PipelineError: a step has failed; the steps that do not need it have run.
        """
        planner, plan = self._planned(steps, force)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_resolved()
        scheduler = Scheduler(planner, jobs or len(os.sched_getaffinity(0)), say or _print)
        try:
            scheduler.run(plan, planner.file.graph.select(list(force)) if force else ())
        finally:
            planner.hasher.save()
            planner.folder.write_lock(self.file.steps)
        return PipelineResult(self.outputs(), tuple(scheduler.ran), tuple(scheduler.cached), self.folder)

    def outputs(self) -> dict[str, Any]:
        """Return what each step has returned when it last ran, by name; steps that have not run are left out."""
        folder = RunFolder(self.folder.absolute())
        records = {name: StepRecord.read(folder.of(name)) for name in self.file.graph.needs}
        return {name: decoded(record, folder.of(name)) for name, record in records.items() if record is not None}

    def submit(self, steps: Sequence[str] = (), force: Collection[str] = ()) -> dict[str, Job]:
        """Submit a SLURM job for each step that may run, each after those that it needs.

        Args:
            steps: names and ranges; all if empty.
            force: names of steps that run in any case.

        Returns:
            The jobs by step.

        Raises:
            ConfigurationError: an argument of a step or an option of a job is wrong, or this machine has no SLURM.
            SlurmError: SLURM refuses a job; none of them stays in the queue.
        """
        from itwinai.pipelines.slurm_jobs import submit_steps

        planner, plan = self._planned(steps, force)
        planner.hasher.save()
        return submit_steps(planner, plan, force)

    def to_snakemake(self) -> str:
        """Return the same steps as the text of a Snakefile."""
        from itwinai.pipelines.snakemake import snakefile

        return snakefile(self._planner())

    def _planned(self, steps: Sequence[str], force: Collection[str]) -> tuple[Planner, Plan]:
        planner = self._planner()
        plan = planner.plan(steps, force)
        planner.check_configs(plan)
        return planner, plan

    def _planner(self) -> Planner:
        if os.getcwd() not in sys.path:  # as for a script: steps are in files of the current folder
            sys.path.insert(0, os.getcwd())
        folder = RunFolder(self.folder.absolute())
        planner = Planner(self.file, folder, ContentHasher(folder.cache))
        planner.check()
        return planner

    def _write_resolved(self) -> None:
        import yaml

        text = yaml.safe_dump(without_secrets(dict(self.file.plain)), sort_keys=False, width=100)
        write_whole(self.folder / RESOLVED, text)


def _print(line: str) -> None:
    print(line, flush=True)

"""Steps as SLURM jobs, each after those that it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

import yaml

from itwinai.errors import ConfigurationError
from itwinai.launchers.slurm_job import MAX_REQUEUES
from itwinai.pipelines.planner import Plan, Planner
from itwinai.pipelines.steps_file import Step
from itwinai.slurm.job import Job
from itwinai.slurm.script import JobScript
from itwinai.slurm.site import Site, find_site
from itwinai.slurm.site_proposal import propose_site
from itwinai.slurm.submission import new_folder, submit_job


def submit_steps(planner: Planner, plan: Plan, forced: Collection[str] = ()) -> dict[str, Job]:
    """Submit a job for each step of a plan that may run.

    A job decides again when it begins: where the outputs of the steps before it have not changed, it ends at once.

    Args:
        planner: that has made the plan.
        plan: the plan.
        forced: names of steps that run in any case.

    Returns:
        The jobs by step.

    Raises:
        ConfigurationError: an option of a job is wrong, or this machine has no SLURM.
        SlurmError: SLURM refuses a job; none of them stays in the queue.
    """
    chosen = [one.name for one in plan.steps if one.status in ("runs", "may run")]
    site = _site(planner)
    folder = new_folder(f"itwinai-{planner.file.name}", site.scratch).absolute()
    # The file may be edited while jobs wait, and flags have changed it.
    file = folder / "pipeline.yaml"
    scripts = {name: _script(planner, planner.file.steps[name], site, file, name in forced) for name in chosen}
    if scripts:
        folder.mkdir(parents=True)
        file.touch(mode=0o600)  # it may hold secrets
        file.write_text(yaml.safe_dump(dict(planner.file.plain), sort_keys=False, width=100), encoding="utf-8")
    jobs: dict[str, Job] = {}
    try:
        for name, script in scripts.items():
            numbers = [jobs[one].number for one in planner.file.graph.needs[name] if one in jobs]
            jobs[name] = submit_job(_after(script, numbers), folder / name)
    except BaseException:
        for job in jobs.values():
            job.cancel()
        raise
    return jobs


def _site(planner: Planner) -> Site:
    name = planner.file.slurm.get("site")
    beside = planner.file.path.parent if planner.file.path is not None else Path()
    return propose_site() if name == "auto" else find_site(name, beside)


def _script(planner: Planner, step: Step, site: Site, file: Path, is_forced: bool) -> JobScript:
    common = {key: value for key, value in planner.file.slurm.items() if key != "site"}
    options = site.options_for((("slurm:", common), (f"steps.{step.name}.slurm", step.slurm)))
    if options.nodes > 1:
        raise ConfigurationError(
            f"steps.{step.name}: the job of a step has one node, and slurm asks for {options.nodes}. Train over "
            "several nodes with `itwinai slurm fit`, and let the pipeline go on from its checkpoint."
        )
    words = ["run", str(file), step.name, "--folder", str(planner.folder.path), "--jobs", "1"]
    words += ["--force", step.name] if is_forced else []
    requeues = options.max_requeues
    if requeues is None:
        requeues = MAX_REQUEUES if planner.targets[step.name].resumes else 0
    return JobScript(
        name=f"{planner.file.name}-{step.name}",
        kind="single",
        command=["-m", "itwinai.cli.main", *words],
        options=options,
        site=site,
        max_requeues=requeues,
        checks_nodes=False,
    )


def _after(script: JobScript, numbers: Collection[str]) -> JobScript:
    """Return a script of a job that begins when others have ended well, and is removed if one fails."""
    if not numbers:
        return script
    given = script.options.sbatch.get("dependency")
    dependency = ",".join([f"afterok:{':'.join(numbers)}", *([given] if given else [])])
    sbatch = {**script.options.sbatch, "dependency": dependency, "kill-on-invalid-dep": "yes"}
    return dataclasses.replace(script, options=dataclasses.replace(script.options, sbatch=sbatch))

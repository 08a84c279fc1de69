"""Submit jobs: each with a folder for its script, log and results."""

from __future__ import annotations

import datetime
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from itwinai.errors import ConfigurationError, SlurmError
from itwinai.slurm.commands import check_programs, check_script, submit_script
from itwinai.slurm.job import Job
from itwinai.slurm.plan import plan_job
from itwinai.slurm.script import JobScript

SCRIPT, CONFIG = "job.sh", "config.yaml"
FOLDER = "slurm"
"""Folder of the folders of jobs, below the current one, unless the site has a scratch folder."""


def submit(
    config: str | Path | Sequence[str | Path] | Mapping[str, Any],
    command: str = "fit",
    *,
    arguments: Sequence[str] = (),
    strategy: str | None = None,
    site: str | None = None,
    axes: Mapping[str, Sequence[Any]] | None = None,
    folder: str | Path | None = None,
    chain: int = 1,
    checks_nodes: bool = True,
    **options: Any,
) -> Job:
    """Submit a job that runs a command of itwinai.

    Args:
        config: file of `itwinai fit`; several files, of which the later ones win; or plain values.
        command: `fit`, `validate`, `test`, `predict`, `tune` or `benchmark`.
        arguments: further arguments of the command, such as ``--trainer.max_epochs=5``.
        strategy: name of the strategy; by default that of the config.
        site: name of the site, or ``auto``; by default that of the config.
        axes: values by path in the config, such as ``{"model.lr": [0.1, 0.2]}``: the job is an array with a task for
            each combination.
        folder: for script, log and results; by default a new one in ``slurm/``, or in the scratch folder of the site.
        chain: number of jobs that follow each other, each resuming where the one before was interrupted, for sites
            that forbid to queue jobs again.
        checks_nodes: check the nodes before the workers start.
        **options: of the job, over those of the config's section ``slurm:``; see `itwinai.slurm.JobOptions`. sbatch's
            options are given by name (``time="01:00:00"``), the rarer ones as ``sbatch={"nice": 100}``.

    Returns:
        The job; a chain is one.

    Raises:
        ConfigurationError: the config, an option or the site is wrong.
        SlurmError: SLURM refuses the job.
    """
    own: Path | None = Path(folder) if folder is not None else None
    if isinstance(config, Mapping):
        own = own or new_folder(f"itwinai-{command}", None)
        own.mkdir(parents=True, exist_ok=True)
        paths: list[str] = [str(_written(config, own / CONFIG))]
    else:
        listed = [config] if isinstance(config, (str, Path)) else config
        paths = [str(path) for path in listed]
    words = [word for path in paths for word in ("-c", path)] + list(arguments)
    if strategy is not None:
        words += ["--strategy", strategy]
    script = plan_job(
        command,
        words,
        options,
        site=site,
        axes=axes,
        folder=own,
        chain=chain,
        checks_nodes=checks_nodes,
    )
    if caveat := script.caveat():
        warnings.warn(caveat, stacklevel=2)
    return submit_job(script, own)


def submit_job(script: JobScript, folder: Path | None = None) -> Job:
    """Submit a script.

    Args:
        script: the script.
        folder: for script, log and results; by default a new one.

    Returns:
        The job; a chain is one.

    Raises:
        ConfigurationError: there is a job in the folder already, or no SLURM.
        SlurmError: SLURM refuses it; of a chain nothing is left in the queue.
    """
    check_programs("sbatch", "squeue", "scancel", needed_for="To submit a job")
    folder = (folder or new_folder(script.name, script.site.scratch)).absolute()
    path = folder / SCRIPT
    if path.exists():
        raise ConfigurationError(f"There is a job in {folder} already. Give this one another folder (--job-folder).")
    text = script.text()
    options = [_log_option(folder, script.is_array)]
    folder.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o700)  # flags of the command may hold secrets
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    numbers: list[str] = []
    try:
        check_script(str(path), options)
        for place in range(1, script.chain + 1):
            own = [f"--dependency=afternotok:{numbers[-1]}", "--kill-on-invalid-dep=yes"] if numbers else []
            where = [str(folder), f"{folder.name}/{place}"] if script.chain > 1 else [str(folder)]
            numbers.append(submit_script([*options, *own], str(path), where))
    except BaseException as error:
        _withdraw(numbers, path)
        if isinstance(error, SlurmError):
            raise SlurmError(
                f"SLURM refuses the job {script.name} (nodes: {script.options.nodes}, workers on each: "
                f"{script.options.workers_per_node}): {error}. Options of the job are flags and keys "
                "of the section slurm:, such as --partition; `sinfo` lists partitions."
            ) from None
        raise
    indices = indices_of(script)
    job = Job(numbers[0], folder, script.name, indices, None, tuple(numbers[1:]), _labels(script, indices))
    job.write()
    return job


def resume_job(job: Job) -> Job:
    """Submit the script of a job that has ended once more: it goes on with the same run, from its newest checkpoint.

    Args:
        job: the job; of an array the tasks are submitted that have not succeeded.

    Returns:
        The new job, in the same folder.

    Raises:
        ConfigurationError: it waits or runs, or there is nothing left to do.
        SlurmError: SLURM refuses it.
    """
    check_programs("sbatch", "squeue", needed_for="To resume a job")
    if not job.is_over():
        raise ConfigurationError(
            f"The job {job.number} is {job.state.lower()}. It resumes by itself when it is interrupted; end it first "
            f"(itwinai slurm cancel {job.folder}) if it should begin again."
        )
    open_ = [one for one in job.tasks or [job] if one.state != "COMPLETED"]
    if not open_:
        raise ConfigurationError(f"The job {job.number} has completed: there is nothing to resume.")
    options = [_log_option(job.folder, bool(job.indices))]
    if job.indices:
        options.append(f"--array={','.join(str(one.task) for one in open_)}")
    place = [f"{job.folder.name}/1"] if job.followers else []
    number = submit_script(options, str(job.folder / SCRIPT), [str(job.folder), *place])
    resumed = replace(job, number=number, followers=())
    resumed.write()
    return resumed


def _log_option(folder: Path, is_array: bool) -> str:
    # In a folder's own name % begins no pattern.
    return f"--output={str(folder).replace('%', '%%')}/{'output-%a.txt' if is_array else 'output.txt'}"


def new_folder(name: str, parent: str | None) -> Path:
    """Return a folder that does not exist yet.

    Args:
        name: of the job.
        parent: folder of all jobs; by default ``slurm`` in the current one.
    """
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = Path(parent or FOLDER) / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name).removeprefix('itwinai-')}-{now}"
    number, path = 1, base
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def newest_job(parent: Path | None = None) -> Job:
    """Return the job that was submitted last.

    Raises:
        ConfigurationError: there is none.
    """
    parent = parent or Path(FOLDER)
    found = sorted(parent.glob("*/job.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigurationError(f"There is no job in {parent.absolute()}. Give the folder of the job.")
    return Job.read(found[-1].parent)


def indices_of(script: JobScript) -> tuple[int, ...]:
    """Return the indices of the tasks of an array; nothing for another job."""
    text = script.options.sbatch.get("array")
    if text is None:
        return tuple(range(len(script.variants)))
    found: list[int] = []
    for part in text.partition("%")[0].split(","):
        ends, _, step = part.partition(":")
        first, dash, last = ends.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (step and not step.isdecimal()):
            raise ConfigurationError(f"--array {text}: write indices as in 0-3, 1,4,7 or 0-15%4.", argument="array")
        found += range(int(first), int(last if dash else first) + 1, int(step or 1))
    return tuple(dict.fromkeys(found))


def _labels(script: JobScript, indices: Sequence[int]) -> tuple[str, ...]:
    """Return the values of the axes of each task of an array; nothing where it has no axes."""
    if not script.variants:
        return ()
    own = [[word.removeprefix("--") for word in words[:-1]] for words in script.variants]  # the last is its folder
    return tuple(" ".join(own[index]) if index < len(own) else "" for index in indices)


def _written(config: Mapping[str, Any], path: Path) -> Path:
    """Write a config of plain values, which may hold secrets, to a file."""
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False), encoding="utf-8")
    return path


def _withdraw(numbers: Sequence[str], script: Path) -> None:
    """Leave nothing of a job that was refused."""
    for number in numbers:
        Job(number, script.parent).cancel()
    script.unlink(missing_ok=True)
    if not any(script.parent.iterdir()):
        script.parent.rmdir()

"""The SLURM job that this process belongs to, which SLURM may run several times.

Nothing heavy is imported here: `itwinai.slurm.requeue` runs in the batch script, beside the training.
"""

from __future__ import annotations

import os
import subprocess
import sys

MAX_REQUEUES = 10
"""How often a job is queued again by default: a run that never gets further must not use up an allocation."""

SUPERVISED_RUN = "ITWINAI_SLURM_RUN"
"""The environment variable with the name of the run, set by `itwinai.slurm.requeue`, which then requeues the job. The
jobs of a chain have the same name."""

SUPERVISED_TRY = "ITWINAI_SLURM_TRY"
"""The environment variable with the number of jobs that this run has had before, set by `itwinai.slurm.requeue`."""

SUPERVISED_SINCE = "ITWINAI_SLURM_SINCE"
"""The environment variable with the time at which this job began, set by `itwinai.slurm.requeue`."""


def inside_slurm_step() -> bool:
    """Return whether srun has started this process, as a task of a step."""
    return _step().isdigit()


def job_id() -> str:
    """Return what SLURM calls this job: of an array, this task alone.

    ``SLURM_JOB_ID`` is no name for a task: the last one of an array has the number of the whole array.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def restarts() -> int:
    """Return how often SLURM has queued this job again."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdigit() else 0


def run_name() -> str | None:
    """Return a name of this run that it keeps when its job is queued again; None outside of a job that may be."""
    if SUPERVISED_RUN in os.environ:
        return os.environ[SUPERVISED_RUN]
    if not inside_slurm_step() or "SLURM_JOB_ID" not in os.environ:
        return None
    return f"{os.environ.get('SLURM_CLUSTER_NAME', 'slurm')}-{job_id()}.{_step()}"


def earlier_tries() -> int:
    """Return how many jobs this run has had before this one; 0 outside of SLURM and the first time."""
    if SUPERVISED_RUN in os.environ:
        return int(os.environ.get(SUPERVISED_TRY, "0"))
    return restarts() if inside_slurm_step() else 0


def try_name() -> str:
    """Return a name of this try that its processes have in common, where they have something in common."""
    return os.environ.get(SUPERVISED_SINCE) or str(os.getpid())


def requeue_job() -> None:
    """Ask SLURM to queue the job of this process again, unless its batch script does that, or it has been too often."""
    if SUPERVISED_RUN in os.environ:
        return
    job = job_id()
    if restarts() >= MAX_REQUEUES:
        print(
            f"itwinai: the job {job} was queued again {restarts()} times, and is not any more. Submit it again to "
            "resume; `itwinai slurm --max-requeues` allows more.",
            file=sys.stderr,
        )
    elif subprocess.call(["scontrol", "requeue", job]) != 0:
        print(f"itwinai: the job {job} could not be queued again; see above", file=sys.stderr)


def _step() -> str:
    return os.environ.get("SLURM_STEP_ID", os.environ.get("SLURM_STEPID", ""))

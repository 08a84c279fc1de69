"""SLURM: job scripts, site profiles, submission, requeue, and checks before a job trains.

Example:
    >>> from itwinai.slurm import submit
    >>> job = submit("config.yaml", strategy="ddp", nodes=2, gpus_per_node=4, time="02:00:00")
    >>> job.state
    'PENDING'
    >>> job.result().metrics  # waits until it has ended
    {'val_loss': 0.0862}
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itwinai.slurm.job import Job as Job
    from itwinai.slurm.options import JobOptions as JobOptions
    from itwinai.slurm.result import JobResult as JobResult
    from itwinai.slurm.site import Site as Site
    from itwinai.slurm.submission import resume_job as resume_job
    from itwinai.slurm.submission import submit as submit

_WHERE = {
    "Job": "job",
    "JobOptions": "options",
    "JobResult": "result",
    "Site": "site",
    "resume_job": "submission",
    "submit": "submission",
}

__all__ = ["Job", "JobOptions", "JobResult", "Site", "resume_job", "submit"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"itwinai.slurm.{_WHERE[name]}"), name)

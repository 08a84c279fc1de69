"""Let the loggers of a run that resumes in another SLURM job continue the run that they have begun in the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itwinai.compat import lightning_logging
from itwinai.io.atomic import write_whole
from itwinai.launchers import slurm_job
from itwinai.trials.current_session import find_session

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

FOLDER = ".itwinai"
"""Folder, in the trainer's ``default_root_dir``, of the notes about which runs the loggers of a job have opened."""


def continue_runs(trainer: Trainer) -> None:
    """Open the runs of the loggers on rank 0: those of the earlier job where this one resumes it, else new ones.

    A run is one of MLflow or W&B, or the version of a logger that writes to a folder. A checkpoint callback without a
    folder of its own saves in that of the version: it knows its best checkpoints again only in the same one.

    Loggers that were given a run of their own keep it, and so do those of a trial, which the search names. Nothing
    happens outside of SLURM.

    Args:
        trainer: whose loggers these are.
    """
    name = slurm_job.run_name()
    if name is None or trainer.global_rank != 0 or find_session() is not None:
        return
    loggers = [logger for logger in trainer.loggers if lightning_logging.can_continue_run(logger)]
    if not loggers:
        return
    this_try = slurm_job.try_name()
    notes = Path(trainer.default_root_dir, FOLDER, f"{name}.json")
    opened: list[dict[str, Any]] = json.loads(notes.read_text()) if notes.is_file() else []
    if not slurm_job.earlier_tries():  # others are of a job whose number SLURM has used again
        opened = [one for one in opened if one["try"] == this_try]
    for logger in loggers:
        kind = type(logger).__name__
        # In the order in which they were opened: a script may have several trainers.
        left = next((one for one in opened if one["logger"] == kind and one["try"] != this_try), None)
        if left is None:
            opened.append({"logger": kind, "run": lightning_logging.open_run(logger), "try": this_try})
        else:
            left["try"] = this_try
            lightning_logging.continue_run(logger, left["run"])
    write_whole(notes, json.dumps(opened))

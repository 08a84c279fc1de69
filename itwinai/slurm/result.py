"""What a job leaves in its folder: metrics, the best checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itwinai.io.atomic import write_whole
from itwinai.io.versioned_json import document_text

RESULT = "ITWINAI_JOB_RESULT"
"""The environment variable that says to which file a job writes its metrics."""


@dataclass(frozen=True)
class JobResult:
    """What has become of a job.

    Attributes:
        state: as SLURM names it: COMPLETED, FAILED, TIMEOUT, CANCELLED...
        exit_code: of the job script, 128 and more for a signal; None if it has not begun, or was killed before it could
            say so and SLURM has forgotten it.
        metrics: what was logged last; of a search, the best trial's objective.
        best_checkpoint: path of the best checkpoint; None if there is none.
        best_parameters: of a search, those of the best trial.
        reason: of a job that has not succeeded, the error in its log; empty if that says nothing.
    """

    state: str
    exit_code: int | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    best_checkpoint: str | None = None
    best_parameters: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether it has ended as it should."""
        return self.state == "COMPLETED"


def result_file() -> Path | None:
    """Return the file into which the job of this process writes its metrics; None if it has none."""
    path = os.environ.get(RESULT)
    return Path(path) if path else None


def job_folder() -> Path | None:
    """Return the folder of the job of this process; None if it has none."""
    path = result_file()
    return None if path is None else path.parent


def leave_result(
    metrics: Mapping[str, float], best_checkpoint: str | None, best_parameters: Mapping[str, Any] | None = None
) -> None:
    """Write the result of a run where the job of this process wants it; elsewhere do nothing.

    Args:
        metrics: what was logged last.
        best_checkpoint: path of the best checkpoint.
        best_parameters: of a search, those of the best trial.
    """
    path = result_file()
    if path is not None:
        values = {
            "metrics": dict(metrics),
            "best_checkpoint": best_checkpoint,
            "best_parameters": dict(best_parameters or {}),
        }
        write_whole(path, document_text(values))


def leave_exit_code(code: int) -> None:
    """Write the exit code of the job of this process into its folder, if it has one.

    SLURM forgets it minutes after the end.

    Args:
        code: of the job's command.
    """
    path = result_file()
    if path is not None:
        write_whole(exit_code_file(path), f"{code}\n")


def exit_code_file(result: Path) -> Path:
    """Return the file of the exit code beside that of a result."""
    return result.with_name(result.name.replace("result", "exit-code", 1)).with_suffix("")


def read_result(path: Path, state: str, exit_code: int | None) -> JobResult:
    """Return the result of a job whose end is known.

    Args:
        path: of what `leave_result` has written, if it has.
        state: of the job.
        exit_code: of the job script.
    """
    if not path.exists():
        return JobResult(state, exit_code)
    plain = json.loads(path.read_text(encoding="utf-8"))
    metrics = {name: float(value) for name, value in plain["metrics"].items()}
    return JobResult(state, exit_code, metrics, plain["best_checkpoint"], plain["best_parameters"])

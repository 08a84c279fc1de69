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
    """

    state: str
    exit_code: int | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    best_checkpoint: str | None = None
    best_parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        """Whether it has ended as it should."""
        return self.state == "COMPLETED"


def leave_result(
    metrics: Mapping[str, float], best_checkpoint: str | None, best_parameters: Mapping[str, Any] | None = None
) -> None:
    """Write the result of a run where the job of this process wants it; elsewhere do nothing.

    Args:
        metrics: what was logged last.
        best_checkpoint: path of the best checkpoint.
        best_parameters: of a search, those of the best trial.
    """
    path = os.environ.get(RESULT)
    if path:
        values = {
            "metrics": dict(metrics),
            "best_checkpoint": best_checkpoint,
            "best_parameters": dict(best_parameters or {}),
        }
        write_whole(Path(path), document_text(values))


def leave_exit_code(code: int) -> None:
    """Write the exit code of the job of this process into its folder, if it has one.

    SLURM forgets it minutes after the end.

    Args:
        code: of the job's command.
    """
    path = os.environ.get(RESULT)
    if path:
        write_whole(exit_code_file(Path(path)), f"{code}\n")


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

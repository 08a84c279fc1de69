"""What an actor has to know to run trials. It is light: what trains is packed, and unpacked by the trial's process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itwinai.launchers.ray_init import forwarded_variables
from itwinai.strategies.registry import uses_ray

if TYPE_CHECKING:
    from itwinai.trials.session import RemoteSession

MODULES = ("itwinai.tune.trial_worker",)
"""What trials import before they begin."""


def _variables_for_trials() -> dict[str, str]:
    # W&B's service is that of the driver, and each trial has its own.
    return {name: value for name, value in forwarded_variables().items() if name != "WANDB_SERVICE"}


@dataclass(frozen=True)
class Assignment:
    """What a trial's process has to do.

    Attributes:
        body_for: see `TrialSpec`.
        drawn: what the searcher has drawn.
        name: of the trial.
        session: the trial, as a run sees it.
    """

    body_for: bytes
    drawn: Mapping[str, Any]
    name: str
    session: RemoteSession


@dataclass(frozen=True)
class TrialSpec:
    """What an actor has to know to run trials.

    Attributes:
        body_for: pickled function that returns what trains, from what was drawn, the trial's name, its folder
            and the checkpoint to resume from; what trains is a function of the session.
        folder: of the search.
        strategy: of trials for which none is drawn.
        moment: when trials report, for people.
        fork_server_path: socket of the driver's fork server; on other machines there is none.
        sys_path: the driver's import path.
        working_folder: the driver's working folder.
        forwarded: environment variables of the driver for the trials.
    """

    body_for: bytes
    folder: str
    strategy: Any = None
    moment: str = "validation"
    fork_server_path: str | None = None
    sys_path: list[str] = field(default_factory=lambda: list(sys.path))
    working_folder: str = field(default_factory=os.getcwd)
    forwarded: Mapping[str, str] = field(default_factory=_variables_for_trials)

    def apply_to_process(self) -> None:
        """Let this process, an actor, find what the driver finds."""
        sys.path += [path for path in self.sys_path if path not in sys.path]
        if os.path.isdir(self.working_folder):
            os.chdir(self.working_folder)

    def has_ray_workers(self, drawn: Mapping[str, Any]) -> bool:
        """Return whether the workers of a trial are Ray actors."""
        return uses_ray(drawn.get("trainer.strategy", self.strategy))

    def variables(self) -> dict[str, str]:
        """Return the environment variables of a trial's process: those of the actor, and of the driver."""
        return {**os.environ, **self.forwarded}

    def folder_of(self, name: str) -> str:
        """Return the folder of a trial, where Ray stores its files."""
        return f"{self.folder.rstrip('/')}/{name}"

    def output_of(self, name: str) -> str:
        """Return the file that a trial's process writes to what it prints."""
        folder = Path(self.folder_of(name))
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder / "output.log")

    def assignment(self, drawn: Mapping[str, Any], name: str, session: RemoteSession) -> Assignment:
        """Return the assignment of a trial's process."""
        return Assignment(self.body_for, dict(drawn), name, session)

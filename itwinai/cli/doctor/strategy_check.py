"""Trying a strategy in a process of its own, and judging what came out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from itwinai.cli.doctor.child_process import DOCTOR, Child, Outcome
from itwinai.cli.doctor.packages import is_installed
from itwinai.cli.doctor.progress import ProgressLine
from itwinai.cli.doctor.strategy_check_worker import STEPS, Measured
from itwinai.strategies.registry import INSTALL, STRATEGY_NAMES, find_entry

TOLERANCE = 1e-5  # largest difference from the weights of one process, relative to the largest weight of a tensor
CAUSE_LINES = 12

# By these a trainer takes itself for one worker of an outer launcher. The trials have to launch their own workers.
_OUTER_LAUNCHER = re.compile(
    r"(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|NODE_RANK|GROUP_RANK|GROUP_WORLD_SIZE|MASTER_ADDR|MASTER_PORT)"
    r"|(ROLE_|TORCHELASTIC_|OMPI_|PMIX_|PMI_|MPI_LOCAL|JSM_|SLURM_STEP|SLURM_PROCID|SLURM_LOCALID).*"
    r"|HOROVOD_(RANK|SIZE|(LOCAL|CROSS)_(RANK|SIZE)|HOSTNAME|CONTROLLER|CPU_OPERATIONS|GLOO_RENDEZVOUS_\w+|ELASTIC)"
)


@dataclass(frozen=True)
class Trial:
    """One strategy, tried.

    Attributes:
        strategy: its name.
        measured: what it achieved, if it works.
        error: one line that says why it does not work.
        cause: the last lines of what explains the error.
        install: install line of the package that is missing.
    """

    strategy: str
    measured: Measured | None = None
    error: str = ""
    cause: tuple[str, ...] = ()
    install: str = ""

    @property
    def status(self) -> str:
        """Return ``works``, ``fails`` or ``not installed``."""
        return "not installed" if self.install else "fails" if self.error else "works"

    def record(self) -> dict[str, Any]:
        """Return the trial as plain data."""
        record: dict[str, Any] = {"strategy": self.strategy, "status": self.status}
        if self.measured is not None:
            record |= asdict(self.measured)
        if self.error:
            record |= {"error": self.error, "cause": list(self.cause)}
        if self.install:
            record["install"] = self.install
        return record


def missing_package(strategy: str) -> str:
    """Return the install line of the first package that a strategy needs and that is not here, or ''."""
    # That of a plugin is looked up where it is tried: this process imports no plugins.
    entry = find_entry(strategy) if strategy in STRATEGY_NAMES else None
    needed = () if entry is None else entry.packages
    return next((INSTALL[package] for package in needed if not is_installed(package)), "")


def try_strategy(name: str, timeout: float, folder: Path, progress: ProgressLine) -> Trial:
    """Train with a strategy, in a process of its own.

    Args:
        name: the strategy's name.
        timeout: seconds after which the process is ended.
        folder: for files of the process.
        progress: is told that time passes.
    """
    install = missing_package(name)
    if install:
        return Trial(name, install=install)
    with Child([*DOCTOR, "--probe", name], folder, without_launcher(os.environ)) as process:
        outcome = process.outcome(timeout, progress.tick)
    return judge(name, outcome)


def without_launcher(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which a trainer launches its own workers, under any outer launcher.

    Args:
        env: the environment of this process.
    """
    return {name: value for name, value in env.items() if not _OUTER_LAUNCHER.fullmatch(name)}


def judge(name: str, outcome: Outcome) -> Trial:
    """Decide whether a strategy works.

    Args:
        name: the strategy's name.
        outcome: what its process left.
    """
    if outcome.problem:
        error = outcome.record.get("error") or outcome.problem
        return Trial(name, error=error, cause=last_lines(outcome.record.get("traceback") or outcome.log))
    measured = Measured(**outcome.record["measured"])
    if not measured.deviation and not measured.weight_difference <= TOLERANCE:  # NaN is not below it either
        error = (
            f"the weights after {STEPS} steps differ from those of one process by {measured.weight_difference:.1e}, "
            f"relative to the largest; allowed is {TOLERANCE:.0e}"
        )
        return Trial(name, error=error)
    return Trial(name, measured)


def last_lines(text: str, limit: int = CAUSE_LINES, width: int = 200) -> tuple[str, ...]:
    """Return the last lines of a log or a traceback that say something, without the colors of terminals."""
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    # Python underlines the part of a line that failed; without the start of the traceback that only takes room.
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip(" \t^~")]
    return tuple(line if len(line) <= width else f"{line[: width - 3]}..." for line in lines[-limit:])

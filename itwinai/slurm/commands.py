"""SLURM's commands: called, and what they say."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from itwinai.errors import ConfigurationError, SlurmError

OVER = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
    "REVOKED",
)
"""States of jobs that have ended."""

UNKNOWN = "UNKNOWN"
"""State of a job of which SLURM says nothing at the moment: it does not answer."""

FORGOTTEN = ""
"""State of a job that SLURM has forgotten, as it does minutes after the end."""


@dataclass(frozen=True)
class TaskRecord:
    """What SLURM says of a job, or of one or several tasks of an array.

    Attributes:
        state: as SLURM names it.
        exit_code: of the batch script; None while it runs. 128 and more: the number of a signal, as in a shell.
        reason: why it waits.
        restarts: how often it was queued again.
    """

    state: str
    exit_code: int | None
    reason: str = ""
    restarts: int = 0


def check_programs(*names: str, needed_for: str) -> None:
    """Raise an error if this machine lacks some of SLURM's commands.

    Raises:
        ConfigurationError: as above.
    """
    if missing := [name for name in names if shutil.which(name) is None]:
        raise ConfigurationError(
            f"{needed_for} needs {', '.join(missing)}, which this machine lacks. Run the command where you submit jobs."
        )


def ask(*command: str) -> str:
    """Return what a command of SLURM prints.

    Raises:
        ConfigurationError: this machine does not have the command.
        SlurmError: the command fails; the message is SLURM's.
    """
    check_programs(command[0], needed_for="This")
    asked = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if asked.returncode:
        raise SlurmError(f"{command[0]} failed: {asked.stderr.strip() or f'exit code {asked.returncode}'}")
    return asked.stdout


def submit_script(options: Sequence[str], script: str, arguments: Sequence[str] = ()) -> str:
    """Submit a script; return the number of the job.

    Args:
        options: of sbatch, over those in the script.
        script: path of the script.
        arguments: of the script.

    Raises:
        SlurmError: SLURM refuses it.
    """
    command = ["sbatch", "--parsable", *options, script, *arguments]
    asked = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if asked.returncode:
        raise SlurmError(told_by_sbatch(asked.stderr))
    return asked.stdout.strip().partition(";")[0]


def check_script(script: str, options: Sequence[str] = ()) -> None:
    """Let SLURM check a script with its options; nothing is queued.

    Args:
        script: path of the script.
        options: of sbatch, over those in the script.

    Raises:
        SlurmError: SLURM would refuse it.
    """
    asked = subprocess.run(
        ["sbatch", "--test-only", *options, script], capture_output=True, text=True, errors="replace"
    )
    if asked.returncode:
        raise SlurmError(told_by_sbatch(asked.stderr))


def told_by_sbatch(text: str) -> str:
    """Return what sbatch says is wrong, in a line."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in text.splitlines()]
    kept = [
        line for line in lines if line and not line.startswith(("Try ", "Batch job submission failed: Unspecified"))
    ]
    return "; ".join(dict.fromkeys(kept)) or "it says nothing more"


def task_records(number: str) -> list[TaskRecord]:
    """Return what SLURM says of a job: a record, of an array several; none if SLURM has forgotten it.

    Args:
        number: of the job, or ``JOB_TASK`` for a task of an array.
    """
    format_ = "JobArrayID:64,State:32,exit_code:32,RestartCnt:16,Reason:256"
    asked = subprocess.run(
        ["squeue", "-h", "-r", "-t", "all", "-j", number, "-O", format_], capture_output=True, text=True
    )
    if asked.returncode == 0 and asked.stdout.strip():
        return [record for line in asked.stdout.splitlines() if (record := _record(line)) is not None]
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return [TaskRecord(UNKNOWN, None)]  # SLURM does not answer: it may again
    return _accounted(number)


def _record(line: str) -> TaskRecord | None:
    words = line.split()
    if len(words) < 4:
        return None
    state = words[1]
    code = _code(words[2]) if state in OVER else None
    return TaskRecord(state, _known(state, code), " ".join(words[4:]), int(words[3]))


def _code(status: str) -> int | None:
    """Return the exit code of a status as waitpid has it."""
    if not status.isdecimal():
        return None
    signal, code = int(status) & 0x7F, int(status) >> 8
    return 128 + signal if signal else code


def _accounted(number: str) -> list[TaskRecord]:
    """Return what the accounting says, where there is one."""
    if shutil.which("sacct") is None:
        return []
    asked = subprocess.run(
        ["sacct", "-n", "-X", "-P", "-j", number, "-o", "State,ExitCode"], capture_output=True, text=True
    )
    found = []
    for line in asked.stdout.splitlines() if asked.returncode == 0 else ():
        state, _, status = line.partition("|")
        code, _, signal = status.partition(":")
        if code.isdecimal() and signal.isdecimal():
            state = state.split()[0]  # of "CANCELLED by 1000"
            found.append(TaskRecord(state, _known(state, 128 + int(signal) if int(signal) else int(code))))
    return found


def _known(state: str, code: int | None) -> int | None:
    """Return an exit code; None of a job that has ended before it began, for which SLURM has 0."""
    return None if code == 0 and state != "COMPLETED" else code


def joined_state(states: Sequence[str]) -> str:
    """Return the one state of several tasks: that of those that run, else of those that wait, else of the worst."""
    for state in ("RUNNING", "COMPLETING", "PENDING", "REQUEUED", UNKNOWN):
        if state in states:
            return state
    others = [state for state in states if state != "COMPLETED"]
    return others[0] if others else (states[0] if states else FORGOTTEN)

"""Run the command of a SLURM job, and have the job queued again if it was interrupted and can resume.

``python -m itwinai.slurm.requeue [--max-requeues 10] -- COMMAND ...`` is what a batch script ends with.

Why the batch script and not rank 0 of the training: SLURM ends a job as soon as it is queued again, and only here the
command has ended, with its loggers closed and its exit code known. That code tells an interruption from a failure of
your code, for any command (a search, a Ray cluster), and also where the training can say nothing: its node is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import FrameType

from itwinai.io.atomic import write_whole
from itwinai.io.versioned_json import document_text
from itwinai.launchers.slurm_job import MAX_REQUEUES, SUPERVISED_RUN, SUPERVISED_SINCE, SUPERVISED_TRY, job_id, restarts
from itwinai.slurm.result import job_folder, leave_exit_code, result_file

CHAIN = "ITWINAI_CHAIN"
"""The environment variable of the jobs of a chain: ``NAME/NUMBER``, counted from 1."""

_PROBE_TIMEOUT = 30.0  # seconds, for a node to start a task that does nothing
_PROBES_AT_ONCE = 32
_ASKING = 60.0  # seconds, for SLURM's controller to answer
_FAILED_STATES = ("DOWN", "FAIL", "NOT_RESPONDING", "ERROR")


class End(Enum):
    """Why a command has ended."""

    DONE = "it is done"
    TIME_LIMIT = "the time limit"
    PREEMPTION = "a preemption"
    NODE_FAILURE = "a failure of a node"
    CANCELLED = "scancel"
    STOPPED = "SIGTERM, as by srun when a task has failed: its error is in the output above"
    FAILED = "a failure of the command"

    @property
    def resumes(self) -> bool:
        """Whether the run continues in another job."""
        return self in (End.TIME_LIMIT, End.PREEMPTION, End.NODE_FAILURE)


@dataclass(frozen=True)
class JobRecord:
    """What SLURM's controller says about a job.

    Attributes:
        state: such as ``RUNNING``. A job that SLURM ends for whatever reason is ``COMPLETING`` until all of it is gone.
        reason: why, as far as SLURM says it: ``TimeLimit``, ``NodeDown``, or ``None``.
        preempted: whether it has been told to make room for another job.
        restarts: how often it was queued again, this time included.
        nodes: of the job, as SLURM writes lists.
        excluded: nodes that it must not run on, likewise.
    """

    state: str = ""
    reason: str = "None"
    preempted: bool = False
    restarts: int = 0
    nodes: str = ""
    excluded: str = ""

    @classmethod
    def ask(cls, job: str) -> JobRecord:
        """Return what SLURM says about a job now."""
        return cls.parse(_output("scontrol", "show", "job", "--oneliner", job))

    @classmethod
    def parse(cls, text: str) -> JobRecord:
        """Return what a line of ``scontrol show job --oneliner`` says."""
        lines = text.splitlines()
        fields = _fields(lines[-1] if lines else "")
        return cls(
            state=fields.get("JobState", ""),
            reason=fields.get("Reason", "None"),
            preempted=fields.get("PreemptTime", "None") not in ("None", "Unknown"),
            restarts=int(fields.get("Restarts", "0")),
            nodes=_unless_null(fields.get("NodeList", "")),
            excluded=_unless_null(fields.get("ExcNodeList", "")),
        )


def end_of(code: int, signals: Collection[int], record: JobRecord, failed_nodes: Collection[str] = ()) -> End:
    """Tell why a command has ended.

    Args:
        code: its exit code, as a shell has it: 128 plus the signal that has ended it.
        signals: those that SLURM has sent to the batch script.
        record: what SLURM said when the command had ended.
        failed_nodes: nodes of the job that do not answer any more.
    """
    if code == 0:
        return End.DONE
    if failed_nodes or record.state == "NODE_FAIL" or record.reason.startswith("Node"):
        return End.NODE_FAILURE
    # A run may also fail in the seconds between a signal and its stop: then its code is none of a signal.
    interrupted = code - 128 in (signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL)
    if interrupted and (record.preempted or record.state == "PREEMPTED"):
        return End.PREEMPTION
    if interrupted and (record.state == "TIMEOUT" or record.reason == "TimeLimit"):
        return End.TIME_LIMIT
    if record.state in ("CANCELLED", "COMPLETING"):
        return End.CANCELLED
    if interrupted and signal.SIGUSR1 in (*signals, code - 128):
        return End.TIME_LIMIT
    return End.STOPPED if code - 128 == signal.SIGTERM else End.FAILED


def failed_nodes_of(record: JobRecord) -> list[str]:
    """Return the nodes of a job that SLURM calls failed, or on which it cannot start a task within 30 s."""
    if not record.nodes:
        return []
    nodes = _output("scontrol", "show", "hostnames", record.nodes).split()
    shown = _output("scontrol", "show", "node", "--oneliner", record.nodes).splitlines()
    states = {fields.get("NodeName"): fields.get("State", "") for fields in map(_fields, shown)}
    down = [node for node in nodes if is_failed_state(states.get(node, ""))]
    others = [node for node in nodes if node not in down]
    if len(nodes) == 1:
        return down  # this script runs on it
    with ThreadPoolExecutor(_PROBES_AT_ONCE) as probes:
        silent = [node for node, answers in zip(others, probes.map(_answers, others), strict=True) if not answers]
    return down + silent


def is_failed_state(state: str) -> bool:
    """Return whether a state of a node, such as ``DOWN*`` or ``MIXED+DRAIN``, is that of one that does not work."""
    return state.endswith("*") or any(word in state for word in _FAILED_STATES)


def requeue(job: str, exclude: Sequence[str] = (), excluded: str = "") -> bool:
    """Queue a job again, on other nodes than some; return whether SLURM has accepted it.

    Args:
        job: see `job_id`.
        exclude: nodes to leave out from now on.
        excluded: those that the job leaves out already.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which SLURM sends to a job that is queued again, at once
    if subprocess.run(["scontrol", "requeue", job], timeout=_ASKING).returncode != 0:
        return False
    if exclude:  # which SLURM accepts only for a job that waits
        nodes = ",".join([*([excluded] if excluded else []), *exclude])
        # In the second of its end a node would refuse the next try: the credential of this one was revoked then.
        changes = [f"ExcNodeList={nodes}", "StartTime=now+10"]
        if subprocess.run(["scontrol", "update", f"JobId={job}", *changes], timeout=_ASKING).returncode:
            _say(f"{', '.join(exclude)} could not be excluded from the next try; see above")
    return True


def cancel_links_after(job: str) -> list[str]:
    """Cancel the jobs that depend on a job, those that depend on these too; return which."""
    listed = _output("squeue", "--me", "-h", "-t", "PD", "-o", "%i %E").splitlines()
    depends = {line.split()[0]: set(re.findall(r"after\w+:(\d+)", line)) for line in listed if line.strip()}
    found = [job]
    for one in found:
        found += [other for other, on in depends.items() if one in on and other not in found]
    if found[1:]:
        subprocess.run(["scancel", *found[1:]], timeout=_ASKING)
    return found[1:]


class Supervisor:
    """Runs a command, and passes on to it the signals that SLURM sends to the batch script.

    SLURM itself signals the tasks of a step. ``srun`` must not get SIGTERM, upon which it kills its tasks at once.

    Args:
        command: the command and its arguments.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.signals: list[int] = []
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, variables: dict[str, str]) -> int:
        """Run the command, and return its exit code as a shell would.

        Args:
            variables: environment variables for it, added to those of this process.
        """
        passed_on = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._pass_on) for number in passed_on}
        try:
            self._child = subprocess.Popen(self.command, env={**os.environ, **variables})
            code = self._child.wait()
        finally:
            for number, handler in before.items():
                # The time may be up while SLURM is asked why the command has ended.
                signal.signal(number, handler if number != signal.SIGTERM else signal.SIG_IGN)
        return 128 - code if code < 0 else code

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self.signals.append(number)
        is_srun = Path(self.command[0]).name == "srun"
        if self._child is not None and not (is_srun and number == signal.SIGTERM):
            self._child.send_signal(number)


def supervise(command: Sequence[str], max_requeues: int = MAX_REQUEUES) -> int:
    """Run the command of this job, and queue the job again if it was interrupted.

    Args:
        command: the command and its arguments, mostly an ``srun``.
        max_requeues: how often the job may be queued again. A job of a chain is not: the next one resumes.

    Returns:
        The exit code of the job.
    """
    job, tries = job_id(), restarts()
    chain = os.environ.get(CHAIN, "").partition("/")[0]
    run = _begun_run(job, tries)
    variables = {
        SUPERVISED_RUN: run.name,
        SUPERVISED_SINCE: f"{time.time():.3f}",
        SUPERVISED_TRY: str(run.jobs_before + tries),
    }
    if tries > max_requeues:  # SLURM itself does so when a node fails
        _say(f"job {job} was queued again {tries} times; --max-requeues allows {max_requeues}")
        return 1
    supervisor = Supervisor(command)
    code = supervisor.run(variables)
    if code == 0:
        # SLURM would cancel the next job of a chain, and start the one after that, as the next has not ended well.
        if chain:
            cancel_links_after(job)
        return 0
    record = JobRecord.ask(job)
    failed: list[str] = []
    if record.state == "RUNNING" and code - 128 not in (signal.SIGUSR1, signal.SIGTERM):
        failed = failed_nodes_of(record)
    if record.restarts > tries:
        _say(f"job {job} was ended by SLURM, which has queued it again")
        return code
    end = end_of(code, supervisor.signals, record, failed)
    where = f" ({', '.join(failed)})" if failed else ""
    _say(f"job {job} was ended by {end.value}{where}; exit code {code}")
    if chain:
        _end_link(job, end, failed)
    elif end.resumes and tries >= max_requeues:
        folder = job_folder()
        how = (
            f"itwinai slurm resume {shlex.quote(str(folder))}"
            if folder
            else "submit it again, with resume='auto' in the trainer (itwinai fit: --ckpt_path auto)"
        )
        _say(f"it was queued again {tries} times and is not any more. To resume: {how}")
    elif end.resumes and requeue(job, failed, record.excluded):
        without = f" without {', '.join(failed)}" if failed else ""
        _say(f"it is queued again{without} ({tries + 1} of {max_requeues})")
    elif end.resumes:
        _say("it could not be queued again; see above. Where requeueing is forbidden, submit with --chain 5.")
    return code


@dataclass(frozen=True)
class _Run:
    """A run as the jobs that belong to it know it.

    Attributes:
        name: of the run, by which loggers continue in one.
        job: the last that worked on it.
        jobs_before: how many did before that one, each with its restarts.
    """

    name: str
    job: str
    jobs_before: int


def _begun_run(job: str, tries: int) -> _Run:
    """Return the run that this job begins, or goes on with: a job leaves in its folder which run it has worked on.

    Args:
        job: see `job_id`.
        tries: how often it was queued again.
    """
    chain, _, number = os.environ.get(CHAIN, "").partition("/")
    run = _Run(chain or f"{os.environ.get('SLURM_CLUSTER_NAME', 'slurm')}-{job}", job, int(number or 1) - 1)
    result = result_file()
    if result is None:
        return run
    path = result.with_name(result.name.replace("result", "run", 1))
    if path.exists():
        plain = json.loads(path.read_text(encoding="utf-8"))
        before = int(plain["jobs_before"]) + (0 if plain["job"] == job else int(plain["restarts"]) + 1)
        run = _Run(str(plain["run"]), job, before)
    write_whole(path, document_text({"run": run.name, "job": job, "jobs_before": run.jobs_before, "restarts": tries}))
    return run


def _end_link(job: str, end: End, failed: Sequence[str]) -> None:
    """Let the next job of a chain begin, which it does if this one's exit code is not 0, or cancel the rest."""
    if not end.resumes:
        if cancelled := cancel_links_after(job):
            _say(f"the jobs of the chain after it are cancelled: {', '.join(cancelled)}")
        return
    for line in _output("squeue", "--me", "-h", "-t", "PD", "-o", "%i %E").splitlines() if failed else ():
        if f":{job}" in line:
            nodes = ",".join(failed)
            subprocess.run(["scontrol", "update", f"JobId={line.split()[0]}", f"ExcNodeList={nodes}"], timeout=_ASKING)


def _output(*command: str) -> str:
    """Return what a command of SLURM prints; nothing if it fails, or takes too long."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_ASKING).stdout
    except subprocess.TimeoutExpired:
        return ""


def _answers(node: str) -> bool:
    """Return whether SLURM can start a task on a node of this job."""
    step = ["srun", "--overlap", "--quiet", "-N1", "-n1", "-w", node, "true"]
    try:
        return subprocess.run(step, capture_output=True, timeout=_PROBE_TIMEOUT).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _fields(line: str) -> dict[str, str]:
    """Return the values of a line of scontrol, by name."""
    return {name: value for name, _, value in (word.partition("=") for word in line.split())}


def _unless_null(text: str) -> str:
    return "" if text == "(null)" else text


def _say(text: str) -> None:
    print(f"itwinai: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m itwinai.slurm.requeue``.

    Args:
        arguments: those of the command line by default.

    Returns:
        The exit code of the job.
    """
    parser = argparse.ArgumentParser(prog="python -m itwinai.slurm.requeue", description=__doc__)
    parser.add_argument("--max-requeues", type=int, default=MAX_REQUEUES, help="at most; 10 by default")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --")
    parsed = parser.parse_args(arguments)
    command = parsed.command[1:] if parsed.command[:1] == ["--"] else parsed.command
    if not command:
        parser.error("no command is given after --")
    if "SLURM_JOB_ID" not in os.environ:
        parser.error("this is no SLURM job; a batch script of `itwinai slurm` runs it")
    code = supervise(command, parsed.max_requeues)
    leave_exit_code(code)
    return code


if __name__ == "__main__":
    sys.exit(main())

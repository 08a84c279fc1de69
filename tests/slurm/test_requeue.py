"""Jobs of a real SLURM that are interrupted, and resume in the next job or not."""

from __future__ import annotations

import csv
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from itwinai.slurm.options import JobOptions
from itwinai.slurm.requeue import End, JobRecord, end_of, is_failed_state
from itwinai.slurm.script import JobScript
from tests.conftest import REPOSITORY, python, require_programs
from tests.support.cases import relative_difference
from tests.support.requeued import train
from tests.support.slurm import missing_programs, slurm_cluster

PREEMPTION = """
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL PriorityTier=1 GraceTime=60 PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
_RUNNING = JobRecord(state="RUNNING", nodes="n[1-2]")


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run a cluster of three nodes whose commands this process finds; return the folder of its files."""
    require_programs(missing_programs(), "apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_cluster(folder, 3, PREEMPTION) as environment, pytest.MonkeyPatch.context() as patch:
        # All nodes are this machine, and nobody resolves their names.
        variables = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        for name, value in {**environment, **variables}.items():
            patch.setenv(name, value)
        yield folder


class SubmittedJob:
    """A job that runs a command as those of `itwinai slurm` do, or a script of that."""

    def __init__(self, folder: Path, command: list[str] | str, *options: str, max_requeues: int = 10) -> None:
        self.output = folder / "output"
        script = folder / "job.sh"
        if isinstance(command, str):
            script.write_text(command)
        else:
            supervised = python("-m", "itwinai.slurm.requeue", "--max-requeues", str(max_requeues), "--", *command)
            script.write_text(f"#!/bin/bash\nexec {shlex.join(supervised)}\n")
        given = ["--requeue", "--open-mode=append", f"--output={self.output}", *options]
        self.id = _said("sbatch", "--parsable", *given, str(script)).strip()

    @property
    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def field(self, name: str) -> str:
        """Return what SLURM says about the job."""
        found = re.search(rf"\b{name}=(\S+)", _said("scontrol", "show", "job", "--oneliner", self.id))
        return found[1] if found else ""

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            shown = _said("scontrol", "show", "job", self.id)
            assert time.monotonic() < deadline, self.text + shown
            time.sleep(0.2)

    def wait_for_end(self) -> str:
        """Return the state in which the job has ended; that of a node that has failed is none, as it begins again."""
        ended: list[str] = []

        def has_ended() -> bool:
            state = self.field("JobState")
            ended.extend([state] if state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT") else [])
            return bool(ended)

        self.wait_for(has_ended)
        return ended[0]


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("code", "signals", "record", "nodes", "expected"),
    [
        (0, [signal.SIGUSR1], _RUNNING, [], End.DONE),
        (138, [signal.SIGUSR1], _RUNNING, [], End.TIME_LIMIT),
        (138, [], _RUNNING, [], End.TIME_LIMIT),  # --signal without B:, which reaches the tasks alone
        (143, [signal.SIGTERM], JobRecord(state="TIMEOUT"), [], End.TIME_LIMIT),
        (137, [signal.SIGTERM], JobRecord(state="TIMEOUT"), [], End.TIME_LIMIT),
        (143, [], JobRecord(state="RUNNING", preempted=True), [], End.PREEMPTION),
        (137, [signal.SIGTERM], JobRecord(state="PREEMPTED"), [], End.PREEMPTION),
        (143, [signal.SIGTERM], JobRecord(state="CANCELLED"), [], End.CANCELLED),
        (143, [signal.SIGTERM], JobRecord(state="COMPLETING"), [], End.CANCELLED),
        (143, [signal.SIGTERM], JobRecord(state="COMPLETING", reason="TimeLimit"), [], End.TIME_LIMIT),
        (143, [signal.SIGTERM], JobRecord(state="COMPLETING", preempted=True), [], End.PREEMPTION),
        (138, [signal.SIGUSR1], JobRecord(state="CANCELLED"), [], End.CANCELLED),
        (143, [], _RUNNING, [], End.STOPPED),
        (1, [], _RUNNING, [], End.FAILED),
        (1, [signal.SIGUSR1], _RUNNING, [], End.FAILED),  # it failed while it was to stop
        (137, [], _RUNNING, [], End.FAILED),  # out of memory
        (1, [], _RUNNING, ["n2"], End.NODE_FAILURE),
    ],
)
def test_end_of(code: int, signals: list[int], record: JobRecord, nodes: list[str], expected: End) -> None:
    assert end_of(code, signals, record, nodes) is expected


def test_what_scontrol_says() -> None:
    line = (
        "JobId=8 JobName=a b JobState=RUNNING Reason=None Restarts=2 PreemptEligibleTime=Unknown PreemptTime=None "
        "ReqNodeList=(null) ExcNodeList=n1 NodeList=n[2-3] BatchHost=n2"
    )
    assert JobRecord.parse(line) == JobRecord("RUNNING", "None", False, 2, "n[2-3]", "n1")
    assert JobRecord.parse(line.replace("PreemptTime=None", "PreemptTime=2026-12-01T05:33:00")).preempted
    assert JobRecord.parse("") == JobRecord()
    assert [is_failed_state(state) for state in ("ALLOCATED", "MIXED+DRAIN", "DOWN*", "IDLE*", "FAILING")] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_three_limits_and_a_preemption(tmp_path: Path) -> None:
    """The job ends with the weights of a run that was not interrupted, in one run of each logger, with the best of all.

    A limit comes as the signal that SLURM sends before it: a real one takes more than a minute each.
    """
    reference = train(1, tmp_path / "reference", 0, logs=False)
    command = [str(REPOSITORY / "tests/support/requeued.py"), "2", str(tmp_path), "4"]
    sbatch: dict[str, str | None] = {"nodelist": "n1", "partition": "all,low"}
    options = JobOptions(nodes=1, gpus_per_node=0, tasks_per_node=2, sbatch=sbatch)
    script = JobScript("requeued", "srun", command, options, max_requeues=10, checks_nodes=False)
    job = SubmittedJob(tmp_path, script.text())
    for number, act in enumerate(
        (
            ["scancel", "--signal=USR1", "--batch", job.id],  # what --signal=B:USR1@120 does
            ["scancel", "--signal=USR1", job.id],  # what --signal=USR1@120 does: tasks and their loader workers
            ["scancel", "--signal=USR1", "--batch", job.id],
            ["sbatch", "-purgent", "-wn1", "-n4", "--exclusive", "--output=/dev/null", "--wrap=true"],
        )
    ):
        if number == 3:
            _said("scontrol", "update", f"JobId={job.id}", "Partition=low")
        job.wait_for(lambda number=number: all((tmp_path / f"{number}.{rank}.slow").exists() for rank in range(2)))
        _said(*act)
        job.wait_for(lambda number=number: job.field("Restarts") == str(number + 1))
    assert job.wait_for_end() == "COMPLETED", job.text
    assert job.text.count("was ended by the time limit") == 3
    assert "was ended by a preemption" in job.text
    assert "(4 of 10)" in job.text
    assert job.text.count("preempted.ckpt") >= 4
    assert relative_difference(torch.load(tmp_path / "weights.pt"), reference) < 1e-6
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("requeued").experiment_id])
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
    assert sorted(set(steps)) == list(range(4 * 13))
    (version,) = (tmp_path / "lightning_logs").iterdir()
    with (version / "metrics.csv").open() as file:
        logged = [int(row["step"]) for row in csv.DictReader(file) if row["loss"]]
    assert sorted(set(logged)) == list(range(4 * 13))  # a preemption may leave too little time to save
    assert Path((tmp_path / "best").read_text()) == version / "checkpoints" / "epoch=0-step=13.ckpt"
    assert [path.name for path in (version / "checkpoints").glob("epoch=*")] == ["epoch=0-step=13.ckpt"]


def test_failures_and_scancel_are_not_queued_again(tmp_path: Path) -> None:
    (tmp_path / "failed").mkdir()
    failed = SubmittedJob(tmp_path / "failed", ["srun", "-n2", "bash", "-c", "exit 3"], "-N2", "-n2")
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    stopped = f"touch {waiting}/began; trap 'exit 143' TERM; while true; do sleep 0.1; done"
    cancelled = SubmittedJob(waiting, ["srun", "-n1", "bash", "-c", stopped], "-n1")
    cancelled.wait_for((waiting / "began").exists)
    _said("scancel", cancelled.id)
    assert failed.wait_for_end() == "FAILED"
    assert failed.field("ExitCode") == "3:0"
    assert "was ended by a failure of the command; exit code 3" in failed.text
    assert cancelled.wait_for_end() == "CANCELLED"
    cancelled.wait_for(lambda: "was ended by scancel" in cancelled.text)
    assert failed.field("Restarts") == cancelled.field("Restarts") == "0"


def test_bound(tmp_path: Path) -> None:
    """A job that never gets further is queued again as often as allowed; so is a task of an array, alone."""
    limited = ["bash", "-c", "[ $SLURM_ARRAY_TASK_ID = 0 ] || exit 138"]
    job = SubmittedJob(tmp_path, ["srun", "-n1", *limited], "-n1", "--array=0-1", max_requeues=2)

    def states() -> list[str]:
        return re.findall(r"JobState=(\w+)", _said("scontrol", "show", "job", job.id))

    job.wait_for(lambda: sorted(states()) == ["COMPLETED", "FAILED"])
    assert sorted(re.findall(r"Restarts=(\d+)", _said("scontrol", "show", "job", job.id))) == ["0", "2"]
    assert "queued again (1 of 2)" in job.text and "queued again (2 of 2)" in job.text
    assert "it was queued again 2 times and is not any more. To resume: submit it again, with resume='auto'" in job.text


def test_chain(tmp_path: Path) -> None:
    """Where requeueing is forbidden, the next job resumes; once it is done or has failed, the rest is cancelled."""
    for name, codes in {"done": (138, 0), "failed": (138, 1)}.items():
        (tmp_path / name).mkdir()
        code = f"[ $ITWINAI_SLURM_TRY = 0 ] && exit {codes[0]}; exit {codes[1]}"
        links: list[SubmittedJob] = []
        for number in range(1, 5):
            after = [f"--dependency=afternotok:{links[-1].id}", "--kill-on-invalid-dep=yes"] if links else []
            folder = tmp_path / name / str(number)
            folder.mkdir()
            variables = f"--export=ALL,ITWINAI_CHAIN={name}/{number}"
            links.append(
                SubmittedJob(folder, ["srun", "-n1", "bash", "-c", code], "-n1", "--no-requeue", variables, *after)
            )
        states = [link.wait_for_end() for link in links]
        ended = "COMPLETED" if name == "done" else "FAILED"
        assert states == ["FAILED", ended, "CANCELLED", "CANCELLED"]
        assert not links[2].text and not links[3].text, links[1].text


def test_failed_node_is_left_out(tmp_path: Path, slurm: Path) -> None:
    """The other worker fails as its peer is gone; the job is queued again, and the next try runs on other nodes."""
    # The worker on the first node ends with an error when the other is dead, as one of torch does.
    work = (
        f'echo $$ > {tmp_path}/$SLURM_RESTART_COUNT-$SLURMD_NODENAME.pid; [ -n "$SLURM_RESTART_COUNT" ] && exit 0;'
        f" if [ $SLURM_PROCID = 1 ]; then sleep 600; fi; while [ ! -e {tmp_path}/dead ]; do sleep 0.1; done; exit 1"
    )
    command = ["srun", "-n2", "--kill-on-bad-exit=1", "bash", "-c", work]
    job = SubmittedJob(tmp_path, command, "-N2", "-n2", "--ntasks-per-node=1", "--no-kill")
    job.wait_for(lambda: len(list(tmp_path.glob("-n*.pid"))) == 2)
    first, second = _said("scontrol", "show", "hostnames", job.field("NodeList")).split()
    victims = [int((slurm / f"slurmd-{second}.pid").read_text()), int((tmp_path / f"-{second}.pid").read_text())]
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    (tmp_path / "dead").touch()
    job.wait_for(lambda: "it is queued again" in job.text)
    assert f"was ended by a failure of a node ({second})" in job.text
    _said("scontrol", "update", f"NodeName={second}", "State=DOWN", "Reason=test")  # SLURM does so after SlurmdTimeout
    assert job.wait_for_end() == "COMPLETED", job.text
    assert job.field("ExcNodeList") == second
    assert sorted(path.name for path in tmp_path.glob("1-*.pid")) == sorted(
        f"1-{node}.pid" for node in ("n1", "n2", "n3") if node != second
    )

"""Benchmarks as jobs of a real SLURM with two nodes."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from itwinai.benchmark.record_file import RECORDS, read_record
from itwinai.benchmark.records import SINGLE
from tests.benchmark.test_runs import arguments
from tests.conftest import RunCommand, python, require_programs, start_script
from tests.support.slurm import missing_programs, slurm_cluster


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    require_programs(missing_programs(), "apt-get install slurm-wlm munge")
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment, pytest.MonkeyPatch.context() as patch:
        # Both nodes are this machine, and nobody resolves their names.
        variables = {**environment, "MASTER_ADDR": "127.0.0.1"}
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables


def on_slurm(folder: Path, *options: str) -> list[str]:
    cells = ["--strategies", "ddp,ray", "--workers", "2", "--workers-per-node", "1", "--repeats", "1"]
    return arguments(folder, *cells, "--slurm", *options)


@pytest.mark.usefixtures("slurm")
def test_jobs_continue_without_who_has_submitted_them_and_are_collected(
    tmp_path: Path, run_command: RunCommand
) -> None:
    began, folder, output = time.time(), tmp_path / "benchmark", tmp_path / "output.txt"
    process = start_script(on_slurm(folder), output)
    _wait_until(lambda: "waiting for the jobs" in output.read_text(), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    told = output.read_text()
    assert "continue" in told and "--resume" in told and "scancel" in told
    assert len(_queue()) == 2  # a job for each number of workers
    finished = run_command(python(*on_slurm(folder), "--resume"))
    assert finished.code == 0, finished.output + "".join(path.read_text() for path in folder.glob("jobs/*/output.txt"))
    assert len(list(folder.glob("jobs/*"))) == 2  # nothing was submitted again
    measured = {one.cell.strategy: one.measured for one in read_record(folder).measurements}
    assert set(measured) == {SINGLE, "ddp", "ray"}
    for strategy, one in measured.items():
        assert one is not None, strategy
        assert one.nodes == (1 if strategy == SINGLE else 2)
        assert one.loss == pytest.approx(measured[SINGLE].loss, rel=1e-5)
    assert (folder / "report.html").exists()
    assert not list(folder.glob("jobs/*/runs.json"))  # it may hold secrets
    note = Path(tempfile.gettempdir(), "ray", "ray_current_cluster")  # a cluster that has ended would be taken for one
    assert not note.exists() or note.stat().st_mtime < began
    again = run_command(python(*on_slurm(folder), "--resume"))
    assert again.code == 0 and "3 of them done before" in again.output
    assert len((folder / RECORDS).read_text().splitlines()) == 3


@pytest.mark.usefixtures("slurm")
def test_what_slurm_refuses_is_said_in_its_words(tmp_path: Path, run_command: RunCommand) -> None:
    refused = run_command(python(*on_slurm(tmp_path / "benchmark", "partition=nowhere")))
    assert refused.code == 1
    assert "SLURM refused the job for 1 worker" in refused.output and "invalid partition" in refused.output
    own = run_command(python(*on_slurm(tmp_path / "other", "partition=all,nodes=7")))
    assert own.code == 1 and "--slurm nodes=... is set for each job" in own.output
    assert _queue() == []


def _queue() -> list[str]:
    listed = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True)
    return listed.stdout.split()


def _wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)

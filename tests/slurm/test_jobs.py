"""Jobs on a real SLURM of two nodes: submitted, followed, cancelled, and what they leave."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from itwinai.cli.main import main
from itwinai.errors import ConfigurationError, SlurmError
from itwinai.slurm import Job, resume_job, submit
from itwinai.slurm.commands import ask
from tests.conftest import REPOSITORY, RunCommand, python, require_programs
from tests.support.cases import relative_difference
from tests.support.slurm import missing_programs, slurm_cluster

CONFIG = {
    "seed_everything": 1,
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 2,
        "split_batches": True,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "model": {"class_path": "tests.support.tuned.Regression"},
    "data": {"class_path": "tests.support.tuned.Points"},
    "slurm": {"time": "12:00:00"},
}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    require_programs(missing_programs(), "apt-get install slurm-wlm munge")
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment, pytest.MonkeyPatch.context() as patch:
        # Both nodes are this machine, and their names are not resolved.
        variables = {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        for name, value in {**environment, **variables}.items():
            patch.setenv(name, value)
        yield


@pytest.mark.usefixtures("slurm")
def test_two_nodes_with_two_workers_train_as_one_process_does(tmp_path: Path, run_command: RunCommand) -> None:
    config = tmp_path / "the config.yaml"
    config.write_text(json.dumps(CONFIG))
    places = {"nodes": 2, "tasks_per_node": 2, "max_requeues": 0, "checks_nodes": False}
    array = submit(
        config,
        axes={"trainer.strategy": ["ddp", "deepspeed", "horovod"]},
        folder=tmp_path / "array 100%",
        array="0-2%1",
        **places,
    )
    ray = submit(config, strategy="ray", folder=tmp_path / "ray", dependency=f"afterany:{array.number}", **places)
    local = f"--trainer.default_root_dir={tmp_path / 'local'}"
    finished = run_command(python("-m", "itwinai.cli.main", "fit", "-c", str(config), local))
    assert finished.code == 0, finished.output
    (reference,) = (tmp_path / "local").rglob("*.ckpt")
    results = [*array.results(), ray.result()]
    for strategy, result in zip(("ddp", "deepspeed", "horovod", "ray"), results, strict=True):
        assert result.state == "COMPLETED" and result.exit_code == 0, (strategy, array.logs(), ray.logs())
        assert result.metrics.keys() == results[0].metrics.keys() >= {"val_loss", "train_loss"}
        assert result.best_checkpoint is not None
        difference = relative_difference(weights(result.best_checkpoint), weights(str(reference)))
        assert difference < (1e-5 if strategy == "deepspeed" else 1e-6), strategy
    assert array.logs().count("4 workers launched by srun") == 3
    assert "4 workers" in ray.logs()
    assert Job.read(tmp_path / "array 100%") == array  # found again by another command


def weights(checkpoint: str) -> torch.Tensor:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return torch.cat([one.flatten() for name, one in sorted(state.items()) if name.startswith("net")])


@pytest.mark.usefixtures("slurm")
def test_trials_of_an_array_end_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    axes = {"model.fail_at": [-1, 1], "model.lr": [0.05, 0.1]}
    job = submit(CONFIG, axes=axes, max_requeues=0, checks_nodes=False)
    results = job.results()
    assert [result.exit_code for result in results] == [0, 0, 1, 1], job.logs()
    assert [result.state for result in results] == ["COMPLETED", "COMPLETED", "FAILED", "FAILED"]
    assert [result.succeeded for result in results] == [True, True, False, False]
    assert results[0].metrics["val_loss"] != results[1].metrics["val_loss"]
    assert results[2].metrics == {} and results[2].best_checkpoint is None
    assert job.logs().count("ValueError: as the test wants it") == 2
    assert job.state == "FAILED" and job.record().exit_code == 1
    with pytest.raises(ConfigurationError, match="an array of 4 tasks"):
        job.result()
    assert results[3].reason == "ValueError: as the test wants it" and results[0].reason == ""
    assert main(["slurm", "status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = job.folder.relative_to(tmp_path)
    place = lines.index("task 2      model.fail_at=1 model.lr=0.05")
    assert lines[place + 1 : place + 3] == [
        f"{'':<12}failed, exit code 1: ValueError: as the test wants it",
        f"{'':<12}log: {folder}/output-2.txt",
    ]
    assert "task 1      model.fail_at=-1 model.lr=0.1" in lines and sum("val_loss=" in line for line in lines) == 2


@pytest.mark.usefixtures("slurm")
def test_a_failure_is_told_once_and_the_job_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failing = {**CONFIG, "model": {**CONFIG["model"], "init_args": {"fail_at": 1}}}
    folder = tmp_path / "job"
    arguments = [f"--trainer.default_root_dir={tmp_path}"]
    job = submit(failing, arguments=arguments, folder=folder, tasks_per_node=2, max_requeues=0, checks_nodes=False)
    result = job.result()
    assert (result.state, result.reason) == ("FAILED", "ValueError: as the test wants it")
    # The whole traceback once, with its rank below it, and a line for the other worker.
    log = job.logs()
    assert log.count("Traceback") == 1, log
    assert re.search(
        r"^\[rank (\d)\]\n\[rank (?!\1)\d\] likewise: ValueError: as the test wants it$", log, re.MULTILINE
    ), log
    # It is corrected, and goes on where it was.
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("fail_at: 1", "fail_at: -1"))
    assert main(["slurm", "resume", str(folder)]) == 0
    assert "it goes on with the run in" in capsys.readouterr().out
    resumed = Job.read(folder)
    assert resumed.number != job.number and resumed.result().state == "COMPLETED", resumed.logs()
    assert "Restored all states from the checkpoint" in resumed.logs()
    with pytest.raises(ConfigurationError, match="has completed: there is nothing to resume"):
        resume_job(resumed)


@pytest.mark.usefixtures("slurm")
def test_a_job_that_waits_is_followed_and_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(json.dumps(CONFIG))
    command = [sys.executable, "-m", "itwinai.cli.main", "slurm", "-c", "config.yaml", "--begin", "now+1hour"]
    following = subprocess.Popen([*command, "--submit", "--follow"], stdout=subprocess.PIPE, text=True)
    assert following.stdout is not None
    printed = following.stdout.readline() + following.stdout.readline()
    assert "submitted" in printed and "pending, 1. in the queue of its partition: BeginTime" in printed
    following.send_signal(signal.SIGINT)
    rest, _ = following.communicate(timeout=60)
    assert following.returncode == 130
    assert "itwinai slurm follow slurm/fit-" in rest and "itwinai slurm cancel slurm/fit-" in rest
    (folder,) = (tmp_path / "slurm").iterdir()
    job = Job.read(folder)
    assert job.state == "PENDING"  # it runs without the command
    assert main(["slurm", "cancel"]) == 0
    assert job.result().state == "CANCELLED" and job.result().exit_code is None
    assert "is cancelled" in capsys.readouterr().out


@pytest.mark.usefixtures("slurm")
def test_the_jobs_of_a_chain_are_one(tmp_path: Path) -> None:
    folder = tmp_path / "chain"
    chain = submit(CONFIG, folder=folder, chain=3, checks_nodes=False, begin="now+1hour")
    script = (folder / "job.sh").read_text()
    assert "--no-requeue" in script and "--signal=B:USR1@120" in script  # it saves, and the next one resumes
    dependencies = [ask("squeue", "-h", "-j", number, "-o", "%E").strip() for number in chain.followers]
    assert [text.partition("(")[0] for text in dependencies] == [
        f"afternotok:{number}" for number in (chain.number, chain.followers[0])
    ]
    chain.cancel()
    assert chain.result().state == "CANCELLED"
    deadline = time.monotonic() + 60
    while ask("squeue", "-h") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ask("squeue", "-h") == ""


@pytest.mark.usefixtures("slurm")
def test_what_slurm_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps(CONFIG))
    folder = tmp_path / "job"
    for options, told in (({"partition": "nowhere"}, "invalid partition"), ({"sbatch": {"nise": 1}}, "nise=1")):
        with pytest.raises(SlurmError, match=f"SLURM refuses the job itwinai-fit.*{told}"):
            submit(tmp_path / "config.yaml", folder=folder, **options)
    assert not folder.exists() and ask("squeue", "-h") == ""

"""The facts of a run: its code, its versions, where it runs; no secret among them, and no other worker asked."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch import Callback

from itwinai.run_info import run
from itwinai.run_info.git import code_in, folder_of_run
from itwinai.run_info.run import RunFacts, collect_facts
from tests.conftest import RunCommand, python
from tests.support.cases import Regression, loader, make_trainer


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Make a repository with one commit, on the branch ``trunk``."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=trunk")
    (folder / "train.py").write_text("print()\n")
    git(folder, "add", "train.py")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


def facts_of(**options: Any) -> RunFacts:
    """Return the facts of a trainer that was never used."""
    return collect_facts(make_trainer("auto", 1, **options))


# ------------------------------------------------------------------------------------------------------------ code


def test_clean_repository(repository: Path) -> None:
    (repository / "results.csv").write_text("not tracked")
    inside = repository / "deeper"
    inside.mkdir()
    code = code_in(inside)
    assert code is not None
    assert (code.commit, code.branch, code.dirty) == (git(repository, "rev-parse", "HEAD"), "trunk", False)
    assert (Path(code.root), code.remote) == (repository.resolve(), "")


@pytest.mark.parametrize("staged", [False, True])
def test_repository_with_changes(staged: bool, repository: Path) -> None:
    (repository / "train.py").write_text("print(1)\n")
    if staged:
        git(repository, "add", "train.py")
    code = code_in(repository)
    assert code is not None and code.dirty


def test_commit_without_a_branch(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "--quiet", "--detach")
    code = code_in(repository)
    assert code is not None
    assert (code.commit, code.branch, code.dirty) == (commit, "", False)


def test_repository_without_a_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "--initial-branch=trunk")
    code = code_in(tmp_path)
    assert code is not None
    assert (code.commit, code.branch) == ("", "trunk")


def test_no_repository(tmp_path: Path) -> None:
    assert code_in(tmp_path) is None
    assert code_in(tmp_path / "missing") is None


def test_no_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert code_in(repository) is None


@pytest.mark.parametrize(
    ("remote", "shown"),
    [
        ("https://me:glpat-abc@gitlab.org/a/b.git", "https://me:***@gitlab.org/a/b.git"),
        ("https://abcdef@github.com/a/b.git", "https://***@github.com/a/b.git"),
        ("git@github.com:a/b.git", "git@github.com:a/b.git"),
    ],
)
def test_remote_without_its_token(remote: str, shown: str, repository: Path) -> None:
    git(repository, "remote", "add", "origin", remote)
    code = code_in(repository)
    assert code is not None and code.remote == shown


def test_folder_of_the_script_or_the_working_folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(repository / "train.py"), "--lr", "1"])
    assert folder_of_run() == repository.resolve()
    monkeypatch.chdir(repository)
    for program in ("/usr/bin/itwinai", "-c", "gone.py"):
        monkeypatch.setattr(sys, "argv", [program])
        assert folder_of_run() == repository


# ------------------------------------------------------------------------------------------- versions, launch, flat


def test_versions_of_what_is_installed_without_an_import(run_command: RunCommand) -> None:
    found = run.versions()
    assert found["torch"] == version("torch")
    assert found["lightning"] == version("lightning")
    assert found["python"] == ".".join(str(part) for part in sys.version_info[:3])
    code = (
        "import sys; from itwinai.run_info import run; run.PACKAGES = (*run.PACKAGES, 'no-such-package'); "
        "found = run.versions(); assert 'no-such-package' not in found; "
        "print('ray' in found, sorted({'ray', 'deepspeed', 'mlflow', 'wandb'} & set(sys.modules)))"
    )
    ended = run_command(python("-c", code))
    assert ended.code == 0, ended.output
    assert ended.output.split()[-1] == "[]", ended.output


def test_launch_of_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    launch = facts_of().launch
    assert launch.strategy == "single_device"  # lightning's own, as lightning names it
    assert (launch.world_size, launch.nodes, launch.workers_per_node) == (1, 1, 1)
    assert (launch.device, launch.launcher, launch.slurm) == ("cpu", "this process", None)
    assert launch.host


def test_job_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "JOB_ID": "4711",
        "JOB_NAME": "drought",
        "JOB_PARTITION": "booster",
        "JOB_NODELIST": "jwb[01-04]",
        "RESTART_COUNT": "2",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    flat = facts_of().flat()
    assert {name: value for name, value in flat.items() if name.startswith("launch/slurm")} == {
        "launch/slurm/job": "4711",
        "launch/slurm/name": "drought",
        "launch/slurm/partition": "booster",
        "launch/slurm/nodes": "jwb[01-04]",
        "launch/slurm/restarts": 2,
    }


def test_seed_command_and_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert facts_of().seed is None
    L.seed_everything(17, verbose=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "--api-key", "s3cret", "--name", "a b", "--hub.token=s3cret d'e"])
    facts = facts_of(accumulate_grad_batches=3)
    assert (facts.seed, facts.accumulate_grad_batches, facts.precision) == (17, 3, "32-true")
    assert facts.command == "train.py --api-key '***' --name 'a b' '--hub.token=***'"
    started = datetime.fromisoformat(facts.started)
    assert started.tzinfo is not None and abs(started.timestamp() - datetime.now().timestamp()) < 60
    monkeypatch.delenv("PL_GLOBAL_SEED")


def test_flat_names(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(repository / "train.py")])
    facts = facts_of()
    flat = facts.flat()
    assert flat["code/commit"] == git(repository, "rev-parse", "HEAD")
    assert flat["code/dirty"] is False
    assert flat["versions/torch"] == version("torch")
    assert flat["launch/world_size"] == 1
    assert all(isinstance(value, str | int | bool) for value in flat.values())
    assert "code/remote" not in flat  # there is none
    without = dataclasses.replace(facts, code=None, seed=None).flat()
    assert not any(name.startswith(("code", "seed")) for name in without)


class FactsOfEachRank(Callback):
    """Writes the facts that each worker finds by itself; not all workers ask."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_rank == 1:  # a collective operation would wait for the other
            launch = collect_facts(trainer).launch
            text = f"{launch.strategy} {launch.world_size} {launch.workers_per_node} {launch.launcher} {os.getpid()}"
            (self.folder / "facts").write_text(text)


def test_single_rank_of_two_asks_alone(tmp_path: Path) -> None:
    make_trainer("ddp", 2, max_steps=1, callbacks=[FactsOfEachRank(tmp_path)]).fit(Regression(), loader(8))
    strategy, world, per_node, *launcher, pid = (tmp_path / "facts").read_text().split()
    assert (strategy, world, per_node) == ("ddp", "2", "2")
    assert " ".join(launcher).startswith("itwinai (") and int(pid) != os.getpid()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["fit", "-c", "my config.yaml", "--devices", "2"],
            "itwinai fit -c 'my config.yaml' --devices 2 --ckpt_path a.ckpt",
        ),
        (["fit", "--ckpt", "auto", "--ckpt_path=b.ckpt", "--seed", "1"], "itwinai fit --seed 1 --ckpt_path a.ckpt"),
        (["fit", "--trainer.resume", "auto"], "itwinai fit --ckpt_path a.ckpt"),
        (["tune", "-c", "config.yaml"], ""),
    ],
)
def test_command_that_resumes(monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str) -> None:
    monkeypatch.setattr(sys, "argv", ["/venv/bin/itwinai", *words])
    assert run.resume_command("a.ckpt") == expected
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    assert run.resume_command("a.ckpt") == ""

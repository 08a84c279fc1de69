"""A search on a cluster of several nodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from itwinai.slurm import submit
from tests.conftest import REPOSITORY, RunCommand, python, require_programs
from tests.support.slurm import missing_programs, slurm_cluster


def test_workers_of_a_trial_lie_on_several_nodes(tmp_path: Path, run_command: RunCommand) -> None:
    finished = run_command(python("-m", "tests.support.searched_cluster", str(tmp_path)))
    assert finished.code == 0, finished.output
    lines = finished.output.splitlines()
    # Each node has two CPUs, and a trial three workers: they do not fit on one.
    assert "resources   2 nodes, 4 CPUs, 0 GPUs" in lines
    assert any(line.startswith("each trial  3 workers (ray) with 1 CPU each, on any nodes") for line in lines)
    assert any(line.startswith("at once     1 trial") for line in lines)
    trials = json.loads(lines[-1])
    assert list(trials.values()) == [["finished", 2, ""]] * 2


def test_a_slurm_job_searches_on_all_its_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_programs(missing_programs(), "apt-get install slurm-wlm munge")
    config = {
        "seed_everything": 1,
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "logger": False, "strategy": "ray"},
        "model": {"class_path": "tests.support.tuned.Regression"},
        "data": {"class_path": "tests.support.tuned.Points"},
        "tune": {
            "metric": "val_loss",
            "space": {"model.lr": {"grid": [0.1, 0.2]}},
            "storage": str(tmp_path),
            "workers_per_trial": 2,
            "resources_per_worker": {"CPU": 2},  # one trial fits on each node
        },
        "slurm": {"nodes": 2, "cpus_per_task": 4},
    }
    folder = tmp_path / "slurm"
    folder.mkdir()
    with slurm_cluster(folder) as variables:
        for name, value in {**variables, "PYTHONPATH": str(REPOSITORY)}.items():
            monkeypatch.setenv(name, value)
        job = submit(config, "tune", folder=tmp_path / "job", checks_nodes=False)
        result = job.result()
    printed = job.logs()
    assert result.succeeded, printed
    assert "resources   2 nodes, 8 CPUs, 0 GPUs" in printed
    assert "each trial  2 workers (ray) with 2 CPUs each" in printed
    assert "at once     2 trials" in printed
    assert "2 of 2 trials done" in printed
    assert result.best_parameters.keys() == {"model.init_args.lr"} and result.metrics.keys() == {"val_loss"}
    assert Path(str(result.best_checkpoint)).exists()

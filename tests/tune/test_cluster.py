"""A search on a cluster of several nodes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.conftest import RunCommand, python, require_programs
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


def test_a_slurm_job_searches_on_all_its_nodes(tmp_path: Path, run_command: RunCommand) -> None:
    require_programs(missing_programs(), "apt-get install slurm-wlm munge")
    config = {
        "seed_everything": 1,
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "logger": False},
        "model": {"class_path": "tests.support.tuned.Regression"},
        "data": {"class_path": "tests.support.tuned.Points"},
        "tune": {
            "metric": "val_loss",
            "space": {"model.lr": {"grid": [0.1, 0.2]}},
            "storage": str(tmp_path),
            "resources_per_worker": {"CPU": 3},  # one trial fits on each node
        },
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    job = tmp_path / "job.sh"
    job.write_text(f"#!/bin/bash\nexec {sys.executable} -m itwinai.cli.main tune -c {file}\n")
    folder = tmp_path / "slurm"
    folder.mkdir()
    with slurm_cluster(folder) as variables:
        command = ["sbatch", "--wait", "-N2", "--ntasks-per-node=1", "--cpus-per-task=4", "-o", f"{tmp_path}/output"]
        finished = run_command([*command, str(job)], **variables)
    printed = (tmp_path / "output").read_text()
    assert finished.code == 0, printed
    assert "resources   2 nodes, 8 CPUs, 0 GPUs" in printed
    assert "at once     2 trials" in printed
    assert "2 of 2 trials done" in printed

"""A search on a cluster of several nodes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import RunCommand, python


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

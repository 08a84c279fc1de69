"""Which runs the loggers of a job that SLURM queues again continue."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from itwinai.compat.lightning_launching import set_rank_zero
from itwinai.loggers import MLFlowLogger
from itwinai.loggers.continued_runs import continue_runs
from tests.support.cases import make_trainer


@pytest.fixture(autouse=True)
def _rank_zero() -> None:
    set_rank_zero(0)  # an earlier test of this process may have been another rank


def opened(folder: Path, *names: str, **options: Any) -> list[str]:
    """Return the runs that the loggers of trainers open, one after the other."""
    runs = []
    for name in names:
        logger = MLFlowLogger(name, save_dir=str(folder), **options)
        continue_runs(make_trainer("auto", 1, logger=logger, default_root_dir=folder))
        runs.append(logger.run_id)
    return runs


@pytest.mark.usefixtures("no_mlflow_address")
def test_later_tries_continue_the_runs_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(job: str, tries: int) -> None:
        names = {"RUN": job, "TRY": str(tries), "SINCE": str(time.monotonic())}
        for name, value in names.items():
            monkeypatch.setenv(f"ITWINAI_SLURM_{name}", value)

    begin("cluster-7", 0)
    first = opened(tmp_path, "folds", "folds")
    assert len(set(first)) == 2
    begin("cluster-7", 1)
    assert opened(tmp_path, "folds") == first[:1]  # it was interrupted again in its first fold
    begin("cluster-7", 2)
    later = opened(tmp_path, "folds", "folds", "folds")
    assert later[:2] == first and later[2] not in first
    assert opened(tmp_path, "folds", run_id=first[0]) == first[:1]  # the user's own choice
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert {client.get_run(run).info.status for run in later} == {"RUNNING"}

    begin("cluster-8", 0)  # another job
    assert not set(opened(tmp_path, "folds")) & set(later)
    begin("cluster-7", 0)  # another job, under a number that was used before
    assert not set(opened(tmp_path, "folds")) & set(later)


@pytest.mark.usefixtures("no_mlflow_address")
def test_outside_of_slurm_nothing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ITWINAI_SLURM_RUN", raising=False)
    assert len(set(opened(tmp_path, "folds", "folds"))) == 2
    assert not (tmp_path / ".itwinai").exists()

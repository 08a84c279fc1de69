"""Environment variables of the driver reach workers of a Ray that was started without them."""

from __future__ import annotations

import os
from typing import Any

import pytest

from itwinai.launchers.ray import RayLauncher, RayPlacement
from itwinai.tune.trial_spec import TrialSpec
from tests.support.cases import Regression, loader, make_trainer

SET = {
    "ITWINAI_VERBOSE": "1",
    "ITWINAI_FULL_TRACEBACK": "1",
    "MLFLOW_TRACKING_URI": "file:/there",
    "PL_GLOBAL_SEED": "7",
}


class Looks(Regression):
    """Fails in a worker that has not the driver's variables."""

    def on_train_start(self) -> None:
        here = {name: os.environ.get(name) for name in SET}
        if here != SET:
            raise RuntimeError(f"the worker has {here}")


def test_workers_of_a_running_ray_get_them(monkeypatch: pytest.MonkeyPatch, local_ray: None) -> None:
    for name, value in SET.items():
        monkeypatch.setenv(name, value)
    make_trainer("ray", 2, max_epochs=1).fit(Looks(), loader(4))


def test_others_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that had the mark of a script's worker would take its own launches for earlier ones."""
    for name, value in {
        **SET,
        "ITWINAI_SCRIPT_LAUNCH": "1,0",
        "WANDB_SERVICE": "token",
        "OMP_NUM_THREADS": "3",
    }.items():
        monkeypatch.setenv(name, value)
    given: Any = RayLauncher(RayPlacement(), {"CPU": 1}, 2, {"OWN": "1"})._environment()
    assert {**SET, "OWN": "1", "OMP_NUM_THREADS": "3"}.items() <= given.items()
    assert "ITWINAI_SCRIPT_LAUNCH" not in given
    order = TrialSpec(b"", "folder").forwarded
    assert SET.items() <= order.items()
    assert not {"ITWINAI_SCRIPT_LAUNCH", "WANDB_SERVICE", "OMP_NUM_THREADS"} & order.keys()

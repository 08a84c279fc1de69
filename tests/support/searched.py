"""Trials for searches that train nothing, and a search that waits to be killed: ``searched.py FOLDER ADDRESS``."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.result import RESULT_DUPLICATE
from ray.tune.stopper import Stopper

from itwinai.trials.records import Objective
from itwinai.tune.search_recorder import SearchRecorder

# No files of Ray's loggers and no output of its own. Set by who runs these trials, not by who imports this file.
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}

REPORTS = 4
LOSS = Objective("loss", "min")


class Steps(tune.Trainable):
    """Reports four times, does what its kind says, and ends as itwinai's trials do."""

    def setup(self, config: dict[str, Any]) -> None:
        self.done = 0
        self.folder = Path(config["folder"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.done = 0
        return True

    def step(self) -> dict[str, Any]:
        kind = self.config["kind"]
        if self.done == REPORTS and kind != "endless":
            return {**self.result(), "done": True, RESULT_DUPLICATE: True}
        if kind == "together":
            self.wait_for_another()
        if self.done == 2:
            self.in_the_middle(kind)
        self.done += 1
        is_last = kind == "says so" and self.done == REPORTS
        return {
            **self.result(),
            "done": is_last,
            "itwinai": {"checkpoint": f"checkpoint-{self.done}", "finished": is_last},
        }

    def in_the_middle(self, kind: str) -> None:
        mark = self.folder / f"{kind}.was"
        before = mark.exists()
        mark.touch()
        if kind == "fails":
            raise ValueError(f"this trial {kind}\nsecond line")
        if kind == "dies" and not before:
            os._exit(3)
        if kind == "waits" and not before:
            while True:
                time.sleep(0.05)

    def wait_for_another(self) -> None:
        (self.folder / f"{self.config['x']}.began").touch()
        while len(list(self.folder.glob("*.began"))) < 2:
            time.sleep(0.02)

    def result(self) -> dict[str, Any]:
        value = math.nan if self.config["kind"] == "no number" else self.config["x"] + 1 / max(self.done, 1)
        return {"loss": value, "process": os.getpid(), "name": "text", "training_iteration": self.done}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, int]:
        return {"done": self.done}

    def load_checkpoint(self, checkpoint: dict[str, int] | None) -> None:
        assert checkpoint is not None
        self.done = checkpoint["done"]


class StopsAll(Stopper):
    """Ends a search, as its time budget does, when both of its trials have reported twice."""

    def __init__(self) -> None:
        self.reports: dict[str, int] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.reports[trial_id] = result["training_iteration"]
        return False

    def stop_all(self) -> bool:
        return len(self.reports) == 2 and min(self.reports.values()) >= 2


def active(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"model.x": config["x"], "kind": config["kind"]}


def recorder_of(folder: Path, **options: Any) -> SearchRecorder:
    return SearchRecorder("steps", [LOSS], ["model.x", "kind"], str(folder), active, **options)


def space(folder: Path, kinds: list[str], x: Any = 0.0) -> dict[str, Any]:
    return {"kind": tune.grid_search(kinds), "x": x, "folder": str(folder)}


def run_config(folder: Path, recorder: SearchRecorder, save_every: int = 2, **options: Any) -> tune.RunConfig:
    return tune.RunConfig(
        name=folder.name,
        storage_path=str(folder.parent),
        verbose=0,
        callbacks=[recorder],
        failure_config=tune.FailureConfig(max_failures=1),
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=save_every),
        **options,
    )


if __name__ == "__main__":
    import ray

    from tests.conftest import REPOSITORY
    from tests.support.searched import Steps as Trainable  # under this name the workers find it

    folder = Path(sys.argv[1])
    os.environ |= QUIET | {"TUNE_GLOBAL_CHECKPOINT_S": "0"}
    ray.init(sys.argv[2], logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY)}})
    tuner = tune.Tuner(
        Trainable,
        param_space=space(folder, ["ends", "waits", "ends later"]),
        tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
        run_config=run_config(folder, recorder_of(folder)),
    )
    tuner.fit()

"""A trial as Ray Tune sees it: an actor, which starts what trains, and passes on what it reports.

The actor imports neither torch nor Lightning. What trains is forked off a process that has, so that every trial begins
in a clean process at once. A reused actor keeps its fork server for the next trial.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import Any

from ray import tune
from ray.tune.result import DONE, RESULT_DUPLICATE, SHOULD_CHECKPOINT, TRAINING_ITERATION

from itwinai.errors import TrialError
from itwinai.launchers.fork_server import ForkServerClient
from itwinai.launchers.ray_worker_pool import RayWorkerPool
from itwinai.trials.channel import Message
from itwinai.trials.checkpoint_reference import read_reference, write_reference
from itwinai.tune.trial_executor import ProcessExecutor, ThreadExecutor, TrialExecutor
from itwinai.tune.trial_spec import MODULES, TrialSpec

OWN = "itwinai"
"""Key of a result under which stands what is not a metric."""


class TrialTrainable(tune.Trainable):
    """One trial at a time, and with reused actors many, one after the other."""

    def setup(self, config: dict[str, Any], spec: TrialSpec | None = None) -> None:
        """Store the specification of a trial; it starts with the first step, when its checkpoint is known."""
        assert spec is not None
        self.spec = spec
        self.drawn = config
        self.resume: str | None = None
        self.run: TrialExecutor | None = None
        self.fork_server: ForkServerClient | None = None
        self.pool = RayWorkerPool()
        self.latest: Message = {}
        # It tells of every checkpoint.
        logging.getLogger("ray.tune").setLevel(logging.WARNING)
        logging.getLogger("ray.train").setLevel(logging.WARNING)

    def step(self) -> dict[str, Any]:
        """Return the next report of the trial, or its last one again, with ``done``, when it has ended."""
        if self.run is None:
            self.run = self._start()
        try:
            message = self.run.next_report()
        except TrialError:
            self.run = None
            raise
        if message is not None:
            self.latest = message
            return self._result(finished=False)
        self.run.close()
        output, self.run = self.run.output, None
        if not self.latest:
            raise TrialError(
                f"the trial ended without a report: with tune.report_on={self.spec.moment} it reports after each "
                f"{self.spec.moment}, but it ran none",
                "",
                output,
            )
        return {**self._result(finished=True), DONE: True, RESULT_DUPLICATE: True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Store for Ray where the checkpoint of the latest report is; save one if there is none."""
        if not self.latest.get("checkpoint") and self.run is not None:
            message = self.run.saved()
            self.latest = {**self.latest, "checkpoint": message.get("saved", ""), "best": message.get("best", "")}
        write_reference(checkpoint_dir, self.latest.get("checkpoint", ""))

    def load_checkpoint(self, checkpoint: str | dict[str, Any] | None) -> None:
        """Continue from a checkpoint, of this trial or of another whose it takes over."""
        self._end()
        self.resume = (read_reference(checkpoint) if isinstance(checkpoint, str) else None) or None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial, and keep what has been imported."""
        self._end()
        self.drawn = new_config
        self.resume = None
        self.latest = {}
        return True

    def cleanup(self) -> None:
        """End what trains, and what was kept for the next trial."""
        self._end()
        self.pool.close()
        if self.fork_server is not None:
            self.fork_server.close()

    def _start(self) -> TrialExecutor:
        name = self.trial_name
        self.spec.apply_to_process()  # Ray has gone to the folder of the trial
        if self.spec.has_ray_workers(self.drawn):
            return ThreadExecutor(self.spec, self.drawn, name, self.resume, self.pool)
        if self.fork_server is None or not self.fork_server.is_there():
            self.fork_server = _connect(self.spec.fork_server_path)
        return ProcessExecutor(self.spec, self.drawn, name, self.resume, self.fork_server)

    def _end(self) -> None:
        if self.run is not None:
            self.run.stop()
            self.run = None

    def _result(self, finished: bool) -> dict[str, Any]:
        """Return the latest report as Ray wants it."""
        own = {name: self.latest[name] for name in ("checkpoint", "best", "again")}
        return {
            **self.latest["metrics"],
            TRAINING_ITERATION: self.latest["number"],
            SHOULD_CHECKPOINT: bool(self.latest["checkpoint"]),
            OWN: {**own, "finished": finished},
        }


def _connect(path: str | None) -> ForkServerClient:
    """Connect to the driver's fork server, or start one of this actor's own on another machine."""
    if path is not None and os.path.exists(path):
        with suppress(OSError):
            return ForkServerClient.connect(path)
    return ForkServerClient.start(MODULES, {})

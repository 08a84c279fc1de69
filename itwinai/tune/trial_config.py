"""The config of a trial: that of the user, with what was drawn and what makes it a trial."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itwinai.config.paths import with_values
from itwinai.tune.settings import Settings

_CALLBACK = "itwinai.callbacks.TuneReportCallback"

_FOLDERS = ("dirpath", "save_dir", "output_dir")
"""Arguments of callbacks and profilers that say where they write."""


@dataclass(frozen=True)
class BaseConfig:
    """The user's config, and how trials differ from a run of it.

    Attributes:
        config: the whole config, defaults included, without the ``tune`` section.
        settings: of the search.
    """

    config: Mapping[str, Any]
    settings: Settings

    def of_best(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config with which `itwinai fit` repeats a trial at full length.

        Args:
            parameters: what was drawn for the trial, by path.
        """
        config = with_values(self.config, parameters)
        trainer = config["trainer"]
        settings = self.settings
        workers = settings.workers_per_trial
        if "trainer.devices" not in parameters:
            trainer["devices"] = workers
        if "trainer.strategy" not in parameters:
            if settings.strategy is not None:
                trainer["strategy"] = settings.strategy
            elif trainer.get("strategy") in (None, "auto") and workers > 1:
                trainer["strategy"] = "ddp"
        # Sums come out the same only with the same number of threads.
        trainer["cpu_threads"] = trainer.get("cpu_threads") or self.cpu_threads
        seed = config.get("seed_everything")
        if not isinstance(seed, int) or isinstance(seed, bool):  # of True Lightning makes another seed each time
            config["seed_everything"] = settings.seed
        return config

    def of_trial(self, parameters: Mapping[str, Any], folder: str, logger: Any) -> dict[str, Any]:
        """Return the config of a trial.

        Args:
            parameters: what was drawn for it, by path.
            folder: of the trial.
            logger: for ``trainer.logger``.
        """
        config = with_values(self.of_best(parameters), {**self.settings.overrides, **parameters})
        trainer = config["trainer"]
        trainer |= {
            "default_root_dir": folder,
            "logger": logger,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": True,  # reports come with checkpoints, for a resume and for the best trial
        }
        callbacks = copy.deepcopy(trainer.get("callbacks") or [])
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        for one in (*callbacks, trainer.get("profiler")):
            self._move_output(one, folder)
        if not any(str(one.get("class_path", "")).endswith("TuneReportCallback") for one in callbacks):
            callbacks.append(self._reporting())
        trainer["callbacks"] = callbacks
        return config

    @property
    def cpu_threads(self) -> int:
        """Threads of each worker."""
        return max(1, int(self.settings.resources_per_worker.get("CPU", 1)))

    def _move_output(self, entry: Any, folder: str) -> None:
        """Let what a config creates write into a folder that no other trial has."""
        arguments = (entry.get("init_args") or {}) if isinstance(entry, Mapping) else {}
        for name in _FOLDERS:
            if isinstance(given := arguments.get(name), str):
                arguments[name] = folder_of_trial(given, folder, self.settings.name)

    def _reporting(self) -> dict[str, Any]:
        settings = self.settings
        first, *_ = settings.objectives
        return {
            "class_path": _CALLBACK,
            "init_args": {
                "metrics": [objective.metric for objective in settings.objectives],
                "mode": first.mode,
                "on": settings.report_on,
                "everything": True,
                "checkpoint_every": settings.checkpoint_every,
                "keep": None if settings.copies_checkpoints else settings.keep_checkpoints,
            },
        }


def folder_of_trial(given: str, folder: str, search: str) -> str:
    """Return where a trial writes for which a config says where all runs do.

    A relative path is one within the trial's folder; in another place, or at a URL, the trial gets a folder of its own.

    Args:
        given: the path in the config.
        folder: of the trial.
        search: its name.
    """
    if "://" not in given and not Path(given).is_absolute():
        return f"{folder.rstrip('/')}/{given}"
    return "/".join([given.rstrip("/"), search, Path(folder).name])

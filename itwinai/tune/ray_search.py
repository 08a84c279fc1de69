"""A search with everything that Ray Tune is told about it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from itwinai.compat import ray as compat_ray
from itwinai.tune.resources import TrialResources
from itwinai.tune.schedulers import check_together, make_scheduler
from itwinai.tune.search_recorder import SearchRecorder
from itwinai.tune.searchers import make_searcher, param_space
from itwinai.tune.settings import Settings
from itwinai.tune.space import SearchSpace
from itwinai.tune.stopper import SearchStopper
from itwinai.tune.trainable import TrialTrainable
from itwinai.tune.trial_names import trial_name
from itwinai.tune.trial_spec import TrialSpec

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as RayTrial
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import BasicVariantGenerator, Searcher


@dataclass(frozen=True)
class Search:
    """What Ray Tune is asked to do.

    Attributes:
        settings: of the search.
        space: that is searched.
        algorithm: chooses the points.
        num_samples: number of trials that it suggests.
        scheduler: stops trials early; None for none.
    """

    settings: Settings
    space: SearchSpace
    algorithm: BasicVariantGenerator | Searcher
    num_samples: int
    scheduler: TrialScheduler | None

    @classmethod
    def of(
        cls, settings: Settings, space: SearchSpace, start_with: list[Mapping[str, Any]], max_reports: int | None
    ) -> Search:
        """Return the search that settings describe.

        Args:
            settings: of the search.
            space: that is searched.
            start_with: points that are tried first.
            max_reports: how often a trial reports; None if it is not known.

        Raises:
            ConfigurationError: something in the settings does not fit together.
            MissingPackageError: the package of a searcher is not installed.
        """
        is_grid = space.has_grid or settings.enumerates
        wanted = settings.num_samples or (1 if is_grid else _TRIALS)
        algorithm, num_samples = make_searcher(
            settings.search,
            space,
            settings.objectives,
            _ENDLESS if wanted == -1 else wanted,
            settings.seed,
            start_with=start_with,
            max_concurrent=settings.max_concurrent or 0,
        )
        scheduler = make_scheduler(settings.scheduler, space, settings.objectives, max_reports)
        check_together(scheduler, algorithm)
        return cls(settings, space, algorithm, num_samples, scheduler)

    @property
    def namer(self) -> Namer:
        """Gives the trials their numbers and names."""
        from ray.tune.search import BasicVariantGenerator

        return Namer(self.space, 0 if isinstance(self.algorithm, BasicVariantGenerator) else 1)

    def resources(self, strategy: Any, has_ray_workers: bool) -> TrialResources:
        """Return what a trial needs.

        Args:
            strategy: of its workers, for people.
            has_ray_workers: whether these are Ray actors.
        """
        settings = self.settings
        name = strategy if isinstance(strategy, str) and strategy != "auto" else ""
        return TrialResources(settings.workers_per_trial, settings.resources_per_worker, has_ray_workers, name)

    def run(self, spec: TrialSpec, recorder: SearchRecorder, stopper: SearchStopper, resume: bool) -> None:
        """Run the trials; returns when all have ended, or the search was interrupted.

        Args:
            spec: what the actors have to know.
            recorder: what has happened so far.
            stopper: ends trials, and the search, early.
            resume: continue with what an interrupted process has left in the folder.
        """
        settings = self.settings
        single = settings.objectives[0] if len(settings.objectives) == 1 else None
        trainable = tune.with_parameters(TrialTrainable, spec=spec)

        def needs(drawn: dict[str, Any]) -> tune.PlacementGroupFactory:
            strategy = drawn.get("trainer.strategy", spec.strategy)
            return self.resources(strategy, spec.has_ray_workers(drawn)).placement_group_factory()

        with _quiet_tune(), compat_ray.without_counting_callbacks():
            tune.run(
                tune.with_resources(trainable, needs),
                name=settings.name,
                storage_path=str(Path(settings.storage).absolute()),
                config=param_space(self.algorithm, self.space),
                num_samples=self.num_samples,
                metric=single.metric if single else None,
                mode=single.mode if single else None,
                search_alg=self.algorithm,
                scheduler=self.scheduler,
                time_budget_s=settings.seconds,
                stop=stopper,
                max_failures=settings.max_failures,
                # Notes of where checkpoints are; under PBT other trials may take one that is not the newest.
                checkpoint_config=tune.CheckpointConfig(num_to_keep=None if settings.copies_checkpoints else _NOTES),
                reuse_actors=True,
                callbacks=[recorder],
                trial_name_creator=self.namer,
                trial_dirname_creator=self.namer,
                resume=True if resume else None,
                raise_on_failed_trial=False,
                verbose=0,
            )


_TRIALS = 10
_NOTES = 2
_ENDLESS = 1_000_000


@dataclass(frozen=True)
class Namer:
    """Gives trials their numbers and names.

    Attributes:
        space: that is searched.
        first: number that Ray gives to the first trial.
    """

    space: SearchSpace
    first: int

    def number(self, trial: RayTrial) -> int:
        """Return the number of a trial, 0 for the first."""
        return int(str(trial.experiment_tag).partition("_")[0]) - self.first

    def __call__(self, trial: RayTrial) -> str:
        """Return the name of a trial."""
        return trial_name(self.number(trial), self.space.active(trial.config), self.space.paths)


# What Ray reads from the environment: no files of its loggers for each trial, no output of its own, no change of the
# working folder; and how often the state of a search is saved, in seconds.
_VARIABLES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

# Loggers that tell at length what the search tells in a line: that trials fail, that it was interrupted; or that they
# miss the files of Ray's loggers.
_REPEATING = ("ray.tune.execution.tune_controller", "ray.tune.tune", "ray.tune.analysis")


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Let Ray Tune write and print only what the search needs."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update({name: value for name, value in _VARIABLES.items() if before[name] is None})
    loggers = [logging.getLogger(name) for name in _REPEATING]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ray leaves its own
                signal.signal(number, handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)

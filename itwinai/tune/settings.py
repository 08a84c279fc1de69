"""What a search is to do: the ``tune:`` section of a config, or the arguments of `Tuner`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itwinai.errors import ConfigurationError, did_you_mean
from itwinai.trials.records import Objective

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TIME = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|seconds?|min|minutes?|h|hours?|d|days?)\s*")


@dataclass(frozen=True)
class Settings:
    """The settings of a search.

    Attributes:
        space: distributions by path in the config; see `itwinai.tune.space`.
        metric: name of the logged metric to minimize or maximize; several for several objectives.
        mode: ``min`` or ``max``; one for each metric, or one for all.
        name: name of the search, and of its folder.
        num_samples: number of trials, 10 by default; with a grid, the number of passes through it, 1 by default. -1
            starts trials until ``time_budget`` is over.
        time_budget: stop all trials after this time: ``"30min"``, ``"2h"``, or seconds.
        search: the searcher that chooses the points: ``random``, ``grid``, ``optuna``..., or a mapping from the name to
            options.
        scheduler: the scheduler that stops bad trials early: ``asha``, ``pbt``, ``hyperband``, ``median``, or a mapping
            from the name to options. None lets all trials run to their end.
        start_with: points to try first; ``true`` is the config as it is.
        seed: seed of the search, and of trials whose config has no seed.
        workers_per_trial: number of workers of each trial.
        strategy: strategy of the workers of a trial; by default that of the config, or ddp for several workers.
        resources_per_worker: resources of each worker; by default one CPU. A trial with one worker may request a
            fraction of a GPU.
        max_concurrent: maximum number of concurrent trials; by default as many as the cluster has room for.
        max_failures: how often a failed trial resumes from its last checkpoint.
        report_on: when trials report: ``validation``, ``epoch``, or ``"500steps"``.
        checkpoint_every: number of reports from one checkpoint of a trial to the next; 0 for none.
        keep_checkpoints: number of newest checkpoints that a trial keeps, beside the best one.
        early_stopping: end a trial when its metric has not improved in this many reports.
        max_reports: end a trial after this many reports.
        target: end the search when a trial has reached this value.
        overrides: other values in the config, by path, for trials only: ``trainer.max_epochs: 5`` for short ones.
        storage: folder in which the search's folder is created; a path that all nodes reach.
    """

    space: Mapping[str, Any]
    metric: str | Sequence[str]
    mode: str | Sequence[str] = "min"
    name: str = "search"
    num_samples: int | None = None
    time_budget: str | float | None = None
    search: str | Mapping[str, Any] = "random"
    scheduler: str | Mapping[str, Any] | None = None
    start_with: bool | Sequence[Mapping[str, Any]] = False
    seed: int = 42
    workers_per_trial: int = 1
    strategy: str | None = None
    resources_per_worker: Mapping[str, float] = field(default_factory=dict)
    max_concurrent: int | None = None
    max_failures: int = 1
    report_on: str = "validation"
    checkpoint_every: int = 1
    keep_checkpoints: int | None = 2
    early_stopping: int | None = None
    max_reports: int | None = None
    target: float | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    storage: str = "searches"

    def __post_init__(self) -> None:
        if not self.space:
            raise ConfigurationError(
                "The search space is empty. Name what is to be searched over, as in space: "
                "{model.init_args.lr: {loguniform: [1e-5, 1e-1]}}."
            )
        for name in ("workers_per_trial", "max_concurrent", "early_stopping", "max_reports", "keep_checkpoints"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"tune.{name} must be an integer of at least 1; got {value!r}.")
        for name in ("max_failures", "checkpoint_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ConfigurationError(f"tune.{name} must be an integer of at least 0; got {value!r}.")
        if self.num_samples is not None and (
            not isinstance(self.num_samples, int) or (self.num_samples < 1 and self.num_samples != -1)
        ):
            raise ConfigurationError(f"tune.num_samples must be at least 1, or -1; got {self.num_samples!r}.")
        if self.num_samples == -1 and self.time_budget is None:
            raise ConfigurationError("tune.num_samples is -1, which never ends: give a time_budget too, as '2h'.")
        if self.target is not None and len(self.objectives) > 1:
            raise ConfigurationError("tune.target needs a single metric, but there are several.")
        _ = self.objectives, self.seconds

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Settings:
        """Return the settings that a ``tune:`` section has.

        Raises:
            ConfigurationError: an entry is unknown or missing, or its value is invalid.
        """
        names = [one.name for one in dataclasses.fields(cls)]
        for name in mapping:
            if name not in names:
                raise ConfigurationError(
                    f"The section 'tune' has an entry '{name}', which is unknown.{did_you_mean(name, names)} Known are "
                    f"{', '.join(names)}."
                )
        if not mapping:
            needs = " ".join(_WHAT.values())
            raise ConfigurationError(f"There is no section 'tune'. It needs the entries {' and '.join(_WHAT)}. {needs}")
        for name in ("space", "metric"):
            if not mapping.get(name):
                raise ConfigurationError(f"The section 'tune' needs an entry '{name}'. {_WHAT[name]}")
        return cls(**mapping)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The metrics to minimize or maximize."""
        metrics = [self.metric] if isinstance(self.metric, str) else list(self.metric)
        modes = [self.mode] * len(metrics) if isinstance(self.mode, str) else list(self.mode)
        if len(modes) != len(metrics):
            raise ConfigurationError(
                f"tune.mode has {len(modes)} entries for {len(metrics)} metrics; give one for each."
            )
        wrong = [mode for mode in modes if mode not in ("min", "max")]
        if wrong:
            raise ConfigurationError(f"tune.mode has {wrong[0]!r}; choose 'min' or 'max'.")
        if len(set(metrics)) != len(metrics):
            raise ConfigurationError(f"tune.metric contains one twice: {', '.join(metrics)}.")
        return tuple(Objective(metric, mode) for metric, mode in zip(metrics, modes, strict=True))  # type: ignore[arg-type]

    @property
    def seconds(self) -> float | None:
        """The time budget in seconds."""
        if self.time_budget is None or isinstance(self.time_budget, (int, float)):
            return self.time_budget
        found = _TIME.fullmatch(self.time_budget)
        if found is None:
            raise ConfigurationError(
                f"tune.time_budget is {self.time_budget!r}; write '90s', '30min', '2h', or a number of seconds."
            )
        return float(found[1]) * _SECONDS[found[2][0]]

    @property
    def enumerates(self) -> bool:
        """Whether the searcher goes through all combinations."""
        return _name_of(self.search) == "grid"

    @property
    def copies_checkpoints(self) -> bool:
        """Whether trials may resume from any checkpoint of another one, as the scheduler says."""
        return _name_of(self.scheduler) in ("pbt", "pb2")

    @property
    def folder(self) -> str:
        """The search's folder."""
        return str(Path(self.storage).absolute() / self.name)


def _name_of(spec: Any) -> str:
    return str(next(iter(spec))) if isinstance(spec, Mapping) and spec else str(spec)


_WHAT = {
    "space": "'space' says what is searched over: {model.init_args.lr: {loguniform: [1e-5, 1e-1]}}.",
    "metric": "'metric' names the logged metric to minimize, or to maximize with mode: max.",
}

"""End trials, and the search, early for reasons that no scheduler of Ray knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune import Stopper
from ray.tune.result import TRAINING_ITERATION

from itwinai.tune.settings import Settings


class SearchStopper(Stopper):
    """Ends a trial that gets no better or has reported often enough, and a search that has reached its target.

    Args:
        settings: ``early_stopping``, ``max_reports`` and ``target`` count.
        is_hopeless: tells whether the search can have no result; not asked any more when a trial has reported.
    """

    def __init__(self, settings: Settings, is_hopeless: Callable[[], bool]) -> None:
        self.settings = settings
        self.is_hopeless = is_hopeless
        self._best: dict[str, tuple[float, int]] = {}
        self._reached = False
        self._has_reports = False

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Return whether a trial has to end after a report."""
        self._has_reports = True
        number: int = result[TRAINING_ITERATION]
        if self.settings.max_reports is not None and number >= self.settings.max_reports:
            return True
        objective = self.settings.objectives[0]
        value = result.get(objective.metric, math.nan)
        if self.settings.target is not None and not objective.better(self.settings.target, value):
            self._reached = self._reached or math.isfinite(value)
        if self.settings.early_stopping is None:
            return False
        best, since = self._best.get(trial_id, (math.nan, number))
        if objective.better(value, best):
            self._best[trial_id] = value, number
            return False
        self._best.setdefault(trial_id, (best, since))
        return number - since >= self.settings.early_stopping

    def stop_all(self) -> bool:
        """Return whether the search has to end."""
        return self._reached or (not self._has_reports and self.is_hopeless())

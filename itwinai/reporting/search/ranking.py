"""The order of the trials of a search, computed once for everything that shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from itwinai.reporting.formatting import short_names
from itwinai.reporting.plotting import ACTIVE, FAILED, GOOD, PLAIN
from itwinai.trials.records import Objective, SearchRecord, Status, TrialRecord

ORDER: tuple[Status, ...] = ("finished", "stopped", "running", "paused", "waiting", "failed")
"""Order of the trials that have reached nothing, and of the counts of all."""

STATUS_COLORS: dict[Status, str] = {
    "stopped": PLAIN,
    "waiting": ACTIVE,
    "paused": ACTIVE,
    "running": ACTIVE,
    "failed": FAILED,
    "finished": GOOD,
}
"""Colors of the trials; later ones are drawn over earlier ones."""


@dataclass(frozen=True)
class Standing:
    """A search and the order of its trials.

    Attributes:
        record: the search.
        ranked: the trials that have reached something, the best first.
        rest: the others, in the order of `ORDER`.
        values: what the trials have reached, one value per objective, by number.
        fronts: in which front they are, by number: 0 for the Pareto front.
        names: short names of the parameters, by path.
    """

    record: SearchRecord
    ranked: Sequence[TrialRecord]
    rest: Sequence[TrialRecord]
    values: Mapping[int, tuple[float, ...]]
    fronts: Mapping[int, int]
    names: Mapping[str, str]

    @property
    def front(self) -> list[TrialRecord]:
        """The best trial, or with several objectives those that no other dominates."""
        if len(self.record.objectives) == 1:
            return list(self.ranked[:1])
        return [trial for trial in self.ranked if self.fronts[trial.number] == 0]

    def best_of(self, index: int) -> TrialRecord | None:
        """Return the trial that is best in one of the objectives; None if none has reached anything."""
        sign = sign_of(self.record.objectives[index])
        return min(self.ranked, key=lambda trial: sign * self.values[trial.number][index], default=None)


def standing_of(record: SearchRecord) -> Standing:
    """Return the order of the trials of a search."""
    ranked = record.ranked()
    numbers = {trial.number for trial in ranked}
    rest = [trial for trial in record.trials if trial.number not in numbers]
    return Standing(
        record=record,
        ranked=ranked,
        rest=sorted(rest, key=lambda trial: (ORDER.index(trial.status), trial.number)),
        values={trial.number: values for trial in ranked if (values := record.values(trial)) is not None},
        fronts=record.fronts(),
        names=short_names(paths_of(record)),
    )


def paths_of(record: SearchRecord) -> list[str]:
    """Return the paths that were searched over, and those that trials have besides."""
    of_trials = (path for trial in record.trials for path in trial.parameters)
    return list(dict.fromkeys([*record.parameters, *of_trials]))


def counts(trials: Sequence[TrialRecord]) -> str:
    """Return how many trials stand where: ``60 finished, 34 stopped, 6 failed``."""
    found = Counter(trial.status for trial in trials)
    return ", ".join(f"{found[status]} {status}" for status in ORDER if found[status])


def sign_of(objective: Objective) -> float:
    """Return what a value is multiplied with so that lower is better."""
    return 1.0 if objective.mode == "min" else -1.0

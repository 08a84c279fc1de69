"""What to do after a search; each rule speaks only where the records support it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from itwinai.errors import did_you_mean
from itwinai.reporting.formatting import joined, key_of, listed, parameters_text, percent_text, value_text
from itwinai.reporting.recommendation import Recommendation, recommend
from itwinai.reporting.search.axis import Axis
from itwinai.reporting.search.failures import kinds_of_errors
from itwinai.reporting.search.importance import Importances
from itwinai.reporting.search.ranking import Standing
from itwinai.trials.records import Objective, TrialRecord

EDGE = 0.1
"""How near to the end of a range is at its edge, as part of the range."""

CHANCE = 0.002
"""Above this chance that draws without any preference would look the same nothing is said of the edge of a range."""

FEWEST_FOR_EDGE = 20
FEWEST_FOR_IMPORTANCE = 30
FEWEST_REPORTS = 4
"""Trials and reports below which nothing is concluded."""

HARDLY = 0.05
"""Share of the importance below which a parameter can be left alone."""

NAMED = 5
"""Most parameters that a sentence names."""

SEEDS = ("seed", "seed_everything")
"""Last parts of the paths of parameters that make a repeat and not another setting."""


@dataclass(frozen=True)
class _Search:
    """What the rules look at."""

    standing: Standing
    importances: Sequence[Importances]
    parameters: Mapping[str, Axis]


def advice(standing: Standing, importances: Sequence[Importances], parameters: Mapping[str, Axis]) -> list[str]:
    """Return recommendations, each with the numbers behind it.

    Args:
        standing: the search.
        importances: of the parameters, for each objective.
        parameters: the axes of the parameters, by path.
    """
    of_one = (_edges, _still_improving, _noise) if len(standing.record.objectives) == 1 else ()
    return recommend(_Search(standing, importances, parameters), _unreported, _failures, *of_one, _unimportant)


def _unreported(search: _Search) -> Iterator[Recommendation]:
    """Yield what to do where no trial has reported an objective, but others."""
    trials = search.standing.record.trials
    reported = sorted({name for trial in trials for report in trial.reports for name in report.metrics})
    if search.standing.ranked or not reported:
        return
    for objective in search.standing.record.objectives:
        if objective.metric not in reported:
            hint = did_you_mean(objective.metric, reported)
            yield Recommendation(
                f"No trial has reported {objective.metric}", f"Reported were {listed(reported, 20)}.{hint}"
            )
        elif not any(trial.best_report(objective) for trial in trials):
            yield Recommendation(
                f"Every {objective.metric} that was reported is infinite or not a number",
                "Run one training without a search first: the whole range may be wrong.",
            )


def _failures(search: _Search) -> Iterator[Recommendation]:
    ended = [trial for trial in search.standing.record.trials if trial.status in ("finished", "stopped", "failed")]
    failed = [trial for trial in ended if trial.status == "failed"]
    if len(failed) < 2 or len(failed) < 0.1 * len(ended):
        return
    error, count = kinds_of_errors(failed)[0]
    common = "; ".join(_common(search, failed, ended))
    alike = f"all with the same error, {error}" if count == len(failed) else f"{count:,} of them with {error}"
    yield Recommendation(
        f"{len(failed):,} of {len(ended):,} trials failed, {alike.rstrip('.')}"
        + (f". Failed trials only: {common}" if common else ""),
        "A search cannot compare trials that fail: fix the cause, or remove such values from the space.",
    )


def _common(search: _Search, failed: Sequence[TrialRecord], ended: Sequence[TrialRecord]) -> Iterator[str]:
    """Yield the choices with which all trials failed, and at least three did."""
    for path, axis in search.parameters.items():
        if len(axis.choices) < 2:
            continue
        of_all = [key_of(trial.parameters[path]) for trial in ended if path in trial.parameters]
        of_failed = [key_of(trial.parameters[path]) for trial in failed if path in trial.parameters]
        for key, label in axis.choices.items():
            if (count := of_failed.count(key)) >= 3 and count == of_all.count(key) < len(ended):
                yield f"all {count} with {search.standing.names[path]}={label}"


def _edges(search: _Search) -> Iterator[Recommendation]:
    standing = search.standing
    if len(standing.ranked) < FEWEST_FOR_EDGE:
        return
    best = standing.ranked[: max(3, math.ceil(0.1 * len(standing.ranked)))]
    for path, axis in search.parameters.items():
        having = [trial for trial in best if path in trial.parameters]
        if not having or not _has_ends(axis):
            continue
        places = [axis.place(trial.parameters[path]) for trial in having]
        for upper in (False, True):
            at_edge = [(1 - place if upper else place) <= EDGE for place in places]
            count, of = sum(at_edge), len(at_edge)
            if at_edge[0] and 2 * count >= of and _chance(count, of, _edge_share(axis)) <= CHANCE:
                yield _edge(standing.names[path], axis, upper, count, of)


def _has_ends(axis: Axis) -> bool:
    """Return whether more can lie beyond the ends: of numbers, but not of words."""
    if axis.kind != "choice":
        return axis.high > axis.low
    return len(axis.labels) > 2 and axis.is_ordered


def _edge_share(axis: Axis) -> float:
    """Return the share of draws that lie at one edge if all values are drawn alike."""
    if axis.kind == "choice":
        return 1 / len(axis.labels)
    return max(EDGE, 1 / (axis.high - axis.low + 1)) if axis.whole and axis.kind == "linear" else EDGE


def _chance(count: int, of: int, share: float) -> float:
    """Return how likely at least ``count`` of ``of`` are, if each is with a chance of ``share`` (binomial)."""
    return sum(math.comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(count, of + 1))


def _edge(name: str, axis: Axis, upper: bool, count: int, of: int) -> Recommendation:
    ends = (axis.labels[0], axis.labels[-1]) if axis.kind == "choice" else (value_text(axis.low), value_text(axis.high))
    which, end = ("highest", ends[-1]) if upper else ("lowest", ends[0])
    where = f"the {which} choice, {end}" if axis.kind == "choice" else f"the {which} {percent_text(EDGE)} of its range"
    tried = "was searched" if axis.bounded or axis.kind == "choice" else "was tried"
    return Recommendation(
        f"{count} of the best {of} trials have {name} in {where} ({ends[0]} to {ends[-1]} {tried})",
        f"Better values may lie beyond: search {'above' if upper else 'below'} {end} too, if {name} can be there.",
    )


def _still_improving(search: _Search) -> Iterator[Recommendation]:
    standing = search.standing
    (objective,) = standing.record.objectives
    best = standing.best_of(0)
    if best is None or best.status not in ("finished", "stopped"):
        return
    found = _late_gain(best, objective)
    if found is None:
        return
    (before, before_value), (last, last_value) = found
    top = standing.ranked[:5]
    alike = sum(_late_gain(trial, objective) is not None for trial in top)
    others = f". {alike} of the best {len(top)} trials were" if len(top) > 1 else ""
    yield Recommendation(
        f"Trial {best.number}, the best, was still getting better when it ended: {objective.metric} "
        f"{value_text(before_value)} at report {before}, {value_text(last_value)} at report {last}, its last{others}",
        "Train longer, at least the best ones again.",
    )


def _late_gain(trial: TrialRecord, objective: Objective) -> tuple[tuple[int, float], tuple[int, float]] | None:
    """Return the best of the first three quarters and the last report, if that is clearly better and the best."""
    values = [
        (report.number, value)
        for report in trial.reports
        if math.isfinite(value := report.metrics.get(objective.metric, math.nan))
    ]
    if len(values) < FEWEST_REPORTS or trial.best_report(objective) is not trial.reports[-1]:
        return None
    early = values[: math.ceil(0.75 * len(values))]
    before = min(early, key=lambda item: item[1] if objective.mode == "min" else -item[1])
    whole, late = abs(values[0][1] - values[-1][1]), abs(before[1] - values[-1][1])
    return (before, values[-1]) if late > 0.02 * whole else None


def _noise(search: _Search) -> Iterator[Recommendation]:
    """Yield that the best settings differ by no more than repeats of one setting do."""
    standing = search.standing
    (objective,) = standing.record.objectives
    groups: dict[str, list[TrialRecord]] = {}
    for trial in standing.ranked:
        groups.setdefault(key_of(_setting(trial)), []).append(trial)
    repeated = [group for group in groups.values() if len(group) > 1]
    freedom = sum(len(group) - 1 for group in repeated)
    if len(groups) < 2 or freedom < 2:
        return
    value = {trial.number: standing.values[trial.number][0] for trial in standing.ranked}
    means = {key: statistics.fmean(value[trial.number] for trial in group) for key, group in groups.items()}
    squares = sum((value[trial.number] - means[key]) ** 2 for key, group in groups.items() for trial in group)
    noise = math.sqrt(squares / freedom)
    order = sorted(means, key=lambda key: means[key] if objective.mode == "min" else -means[key])
    best, second = order[:2]
    both = math.sqrt(1 / len(groups[best]) + 1 / len(groups[second]))
    between = abs(means[best] - means[second])
    if between < 2 * noise * both:
        yield Recommendation(
            f"The two best settings differ by {value_text(between)} in {objective.metric}, and "
            f"repeats of one setting by {value_text(noise)} (standard deviation, {freedom + len(repeated)} trials of "
            f"{len(repeated)} settings): which is better is unknown",
            "Repeat the best with more seeds; first is "
            f"{parameters_text(_setting(groups[best][0]), standing.names) or 'that without parameters'}.",
        )


def _setting(trial: TrialRecord) -> dict[str, Any]:
    return {path: value for path, value in trial.parameters.items() if path.split(".")[-1] not in SEEDS}


def _unimportant(search: _Search) -> Iterator[Recommendation]:
    standing, importances = search.standing, search.importances
    if not importances or any(not one.values or one.trials < FEWEST_FOR_IMPORTANCE for one in importances):
        return
    paths = [
        path
        for path in importances[0].values
        if all(one.values.get(path, 1.0) < HARDLY and one.is_chance(path) for one in importances)
    ]
    if not paths or len(paths) == len(importances[0].values):
        return
    most = max(one.values[path] for one in importances for path in paths)
    best = standing.front[0].parameters if standing.front else {}
    fixed = [f"{standing.names[path]}={value_text(best[path])}" for path in paths if path in best][:NAMED]
    named = [standing.names[path] for path in paths[:NAMED]]
    which = joined([*named, f"{len(paths) - NAMED} others"] if len(paths) > NAMED else named)
    yield Recommendation(
        f"{which} mattered no more than chance does ({percent_text(most)} of the importance"
        f"{' at most' * (len(paths) * len(importances) > 1)}, {importances[0].trials:,} trials)",
        f"Fix {'it' if len(paths) == 1 else 'them'}"
        + (f", for example {joined(fixed)}," if fixed else "")
        + " and spend the trials on the others.",
    )

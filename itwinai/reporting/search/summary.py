"""A search in a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from itwinai.reporting.formatting import listed, parameters_text, percent_text, span_text, value_text
from itwinai.reporting.search.axis import Axis
from itwinai.reporting.search.importance import Importances
from itwinai.reporting.search.ranking import Standing, counts
from itwinai.reporting.search.recommendations import advice
from itwinai.reporting.sections import Section
from itwinai.trials.records import Objective, TrialRecord

DEFAULT = "default"
"""Name of the trial that others are compared with; where there is none it is the first."""


def summary_section(standing: Standing, importances: Sequence[Importances], parameters: Mapping[str, Axis]) -> Section:
    """Return the summary: the search, its results, and what to do next.

    Args:
        standing: the search.
        importances: of the parameters, one for each objective that they are known for.
        parameters: the axes of the parameters, by path.
    """
    record = standing.record
    facts = {
        "objective": "; ".join(
            f"{'minimize' if one.mode == 'min' else 'maximize'} {one.metric}" for one in record.objectives
        ),
        "searched over": listed((standing.names[path] for path in standing.names), 20) or "nothing",
        "trials": f"{len(record.trials):,}: {counts(record.trials)}" if record.trials else "none",
        "time": _time(standing),
    }
    if len(record.objectives) == 1:
        facts |= _best(standing)
    else:
        facts |= _front(standing)
    if record.folder:
        facts["folder"] = record.folder
    return Section("Summary", facts, advice=advice(standing, importances, parameters))


def _time(standing: Standing) -> str:
    ran = sum(trial.seconds for trial in standing.record.trials)
    return f"{span_text(standing.record.seconds)}; all trials together ran {span_text(ran)}"


def _best(standing: Standing) -> dict[str, str]:
    (objective,) = standing.record.objectives
    best = standing.best_of(0)
    if best is None:
        return {"best": f"none: no trial has reported {objective.metric}"}
    report = best.best_report(objective)
    at = f" at report {report.number} of {len(best.reports)}" if report is not None else ""
    facts = {
        "best": f"trial {best.number}: {objective.metric} {value_text(standing.values[best.number][0])}{at}",
        "parameters": parameters_text(best.parameters, standing.names),
    }
    reference = next((trial for trial in standing.ranked if trial.name == DEFAULT), None)
    first = min(standing.ranked, key=lambda trial: trial.number)
    if (compared := reference or first) is not best:
        facts["gain"] = _gain(standing, objective, best, compared)
    if best.checkpoint:
        facts["checkpoint"] = best.checkpoint
    return {label: value for label, value in facts.items() if value}


def _gain(standing: Standing, objective: Objective, best: TrialRecord, other: TrialRecord) -> str:
    ours, theirs = standing.values[best.number][0], standing.values[other.number][0]
    which = "the default" if other.name == DEFAULT else f"trial {other.number}, the first"
    share = (
        f": {percent_text(abs(ours - theirs) / abs(theirs))} {'lower' if ours < theirs else 'higher'}" if theirs else ""
    )
    return f"{value_text(ours)} instead of {value_text(theirs)} of {which}{share}"


def _front(standing: Standing) -> dict[str, str]:
    front = standing.front
    if not front:
        metrics = " and ".join(objective.metric for objective in standing.record.objectives)
        return {"best": f"none: no trial has reported {metrics} together"}
    facts = {"Pareto front": f"{len(front)} trials that no other dominates: {listed(trial.number for trial in front)}"}
    for index, objective in enumerate(standing.record.objectives):
        best = standing.best_of(index)
        if best is not None:
            facts[f"best {objective.metric}"] = (
                f"{value_text(standing.values[best.number][index])}, trial {best.number}: "
                f"{parameters_text(best.parameters, standing.names)}"
            )
    return facts

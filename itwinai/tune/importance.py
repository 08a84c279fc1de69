"""How much each parameter of a search matters."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from itwinai.errors import ConfigurationError
from itwinai.reporting.formatting import key_of, listed
from itwinai.reporting.search.axis import Axis, parameter_axis
from itwinai.reporting.search.importance import Importances
from itwinai.reporting.search.ranking import paths_of, sign_of
from itwinai.trials.records import Objective, SearchRecord, TrialRecord
from itwinai.tune.searchers import quiet_optuna

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

FEWEST = 8
"""Trials with a value below which nothing is said."""

ROUGH = 30
"""Trials below which the note says that the shares are rough."""

TOP = 0.1
FEWEST_TOP = 5
"""The best trials that are compared with all: a tenth, and at least five, which PED-ANOVA needs to be stable."""

SHUFFLES = 19
"""How often the values are dealt out at random: the highest of 19 is passed by chance in one of 20 cases."""


def importances(record: SearchRecord, objective: Objective) -> Importances:
    """Return how much each parameter matters for one of the objectives of a search.

    What is measured: how differently the values of a parameter are spread among the best tenth of the trials (five at
    least) and among all of them. A parameter whose values are spread alike among both does not decide which trials are
    good. The measure is the Pearson divergence of PED-ANOVA (Watanabe, Bansal and Hutter, "PED-ANOVA: Efficiently
    Quantifying Hyperparameter Importance in Arbitrary Subspaces", IJCAI 2023, arXiv 2304.10255), as optuna computes it,
    divided by the sum over all parameters. A parameter that only some trials have counts by those (optuna 5; Kaito et
    al., "Conditional PED-ANOVA", arXiv 2601.20800); whether a trial has it at all counts for the one that decides that.

    What it is not: it says nothing of the direction, nothing of pairs of parameters that matter only together, and
    nothing of values that were never tried. The shares add up to 1 even where no parameter matters, so compare them
    with `Importances.chance`: the highest share of 19 computations in which the values of the objective were dealt out
    to the trials at random.

    Trials that the scheduler has stopped count with what they had reached: it has stopped them because they were not
    among the best, and more than that is not asked of them. Failed trials do not count.

    Args:
        record: the search. Its ``ranges`` say what was drawn from; where they do not, the drawn values do.
        objective: one of ``record.objectives``.

    Returns:
        The shares; none of them, and a note that says why, if optuna is not installed, if fewer than 8 trials have a
        value, or if all have the same. Parameters with the same value in all trials, or in fewer than 8, are left out.

    Raises:
        ConfigurationError: it is not among the objectives of the search.
    """
    if objective not in record.objectives:
        names = ", ".join(f"{one.metric} ({one.mode})" for one in record.objectives)
        raise ConfigurationError(
            f"{objective.metric} ({objective.mode}) was not searched for, so that nothing is known of it. The "
            f"objectives of this search are {names}."
        )
    index = list(record.objectives).index(objective)
    costs = _costs(record, index)
    trials = [trial for trial in record.trials if trial.number in costs]
    if find_spec("optuna") is None:
        return _none(objective, "optuna computes it, and is not installed here: pip install 'itwinai[tune]'")
    if len(trials) < FEWEST:
        return _none(objective, f"only {len(trials)} trials have ended with a value, and it needs {FEWEST} at least")
    if len(set(costs.values())) == 1:
        return _none(objective, f"all trials have reached the same {objective.metric}")
    axes, left_out = _axes(record, trials)
    if not axes:
        return _none(objective, "no parameter differs between the trials")
    raw, chance = _divergences(trials, axes, costs)
    total = sum(raw.values())
    if total <= 0:
        return _none(objective, "the best trials have the same values of all parameters as the others")
    order = sorted(raw, key=lambda path: -raw[path])
    return Importances(
        objective.metric,
        {path: raw[path] / total for path in order},
        {path: chance[path] / total for path in order},
        len(trials),
        _note(len(trials), left_out),
    )


def _none(objective: Objective, why: str) -> Importances:
    return Importances(objective.metric, note=why)


def _note(trials: int, left_out: Sequence[str]) -> str:
    notes = [f"a rough estimate, from {trials} trials"] if trials < ROUGH else []
    if left_out:
        notes.append(f"not known for {listed(left_out)}: the same in all trials, or in fewer than {FEWEST} of them")
    return "; ".join(notes)


def _costs(record: SearchRecord, index: int) -> dict[int, float]:
    """Return what the trials that count have reached, by number, so that lower is better."""
    sign = sign_of(record.objectives[index])
    return {
        trial.number: sign * values[index]
        for trial in record.trials
        if trial.status in ("finished", "stopped") and (values := record.values(trial)) is not None
    }


def _axes(record: SearchRecord, trials: Sequence[TrialRecord]) -> tuple[dict[str, Axis], list[str]]:
    """Return the axes of the parameters that can be compared, and the paths of the others."""
    axes: dict[str, Axis] = {}
    left_out = []
    for path in paths_of(record):
        values = [trial.parameters[path] for trial in trials if path in trial.parameters]
        if len(values) >= FEWEST and len({key_of(value) for value in values}) > 1:
            axes[path] = parameter_axis(values, record.ranges.get(path))
        else:
            left_out.append(path)
    return axes, left_out


def _divergences(
    trials: Sequence[TrialRecord], axes: Mapping[str, Axis], costs: Mapping[int, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the divergence of each parameter, and the highest of those with shuffled values."""
    from optuna.importance import PedAnovaImportanceEvaluator

    top = max(TOP, min(0.5, FEWEST_TOP / len(trials)))
    paths = list(axes)
    with quiet_optuna(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about experimental functions
        study = _study(trials, axes, costs)
        evaluator = PedAnovaImportanceEvaluator(target_quantile=top)
        # One by one: optuna 4 would leave out the trials that have not all of them.
        raw = {path: evaluator.evaluate(study, [path])[path] for path in paths}
        dealt = [costs[trial.number] for trial in trials]
        deal = random.Random(0)  # the same record gives the same report
        chance = dict.fromkeys(paths, 0.0)
        for _ in range(SHUFFLES):
            deal.shuffle(dealt)
            value = _value_of(dealt)
            for path in paths:
                chance[path] = max(chance[path], evaluator.evaluate(study, [path], target=value)[path])
    return raw, chance


def _value_of(values: Sequence[float]) -> Callable[[FrozenTrial], float]:
    def value(trial: FrozenTrial) -> float:
        return values[trial.number]

    return value


def _study(trials: Sequence[TrialRecord], axes: Mapping[str, Axis], costs: Mapping[int, float]) -> Study:
    import optuna

    study = optuna.create_study(direction="minimize")
    distributions = {path: _distribution(axis) for path, axis in axes.items()}
    for trial in trials:
        own = {path: value for path, value in trial.parameters.items() if path in axes}
        study.add_trial(
            optuna.trial.create_trial(
                params={path: _drawn(axes[path], value) for path, value in own.items()},
                distributions={path: distributions[path] for path in own},
                value=costs[trial.number],
            )
        )
    return study


def _distribution(axis: Axis) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.kind == "choice":
        return CategoricalDistribution(list(axis.choices))
    log = axis.kind == "log"
    if axis.whole:
        return IntDistribution(math.floor(axis.low), math.ceil(axis.high), log=log)
    return FloatDistribution(axis.low, axis.high, log=log)


def _drawn(axis: Axis, value: Any) -> Any:
    """Return a value as optuna knows it: choices by their text, for it takes 1 and true for the same."""
    return key_of(value) if axis.kind == "choice" else value

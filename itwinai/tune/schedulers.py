"""Schedulers by name: who ends bad trials early, or changes them while they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from itwinai.errors import ConfigurationError, did_you_mean, require
from itwinai.trials.records import Objective
from itwinai.tune.distributions import Range
from itwinai.tune.searchers import Spec, check_options, named_options
from itwinai.tune.space import Parameter, SearchSpace

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

    from itwinai.tune.searchers import SearchAlgorithm

SCHEDULERS = ("fifo", "asha", "hyperband", "median", "pbt", "pb2", "bohb")

_REPORTS = "training_iteration"

# What the objectives and the space say.
_OURS = ("metric", "mode", "hyperparam_mutations", "hyperparam_bounds")


def make_scheduler(
    spec: Spec, space: SearchSpace, objectives: Sequence[Objective], max_reports: int | None
) -> TrialScheduler | None:
    """Return a scheduler of Ray; ``TuneConfig`` sets its metric and mode.

    The options are those of Ray's classes, with defaults that count reports instead of seconds:

    - ``asha``, ``hyperband`` and ``bohb`` keep a third of the trials at each stage. Trials that get to their last
      report end by themselves, unless ``max_t`` is given: Ray would stop them there, before they have written what is
      written at the end. ``asha`` compares a trial with all that were there before. ``hyperband`` compares those that
      are there at the same time, and so needs many at a time; with few, or with a searcher that learns, it ends hardly
      any.
    - ``median`` may stop a trial from its first report on.
    - ``pbt`` and ``pb2`` exchange weights and change parameters ten times over a trial, or at each report where its
      length is not known. They change the parameters that have no condition and are not a grid (``pb2`` of these only
      ranges of numbers), or those of them that the option ``mutate`` lists, and never leave the bounds of the space.
      What they draw has no seed.

    Args:
        spec: a name of `SCHEDULERS`, or a mapping of one name to its options; None for none.
        space: that is searched.
        objectives: of the search; several only with ``fifo``.
        max_reports: how often a trial reports; None if it is not known.

    Raises:
        ConfigurationError: there is no such scheduler or option, or it does not fit the space, the objectives or the
            number of reports.
        MissingPackageError: the package of a scheduler is not installed.
    """
    if spec is None:
        return None
    name, options = named_options(spec, "fifo", SCHEDULERS, "scheduler")
    if len(objectives) > 1 and name != "fifo":
        raise ConfigurationError(
            f"The scheduler '{name}' compares trials by one objective, and there are {len(objectives)}. The one that "
            "works with several is fifo: each trial runs to its end."
        )
    called = f"The scheduler '{name}'"
    scheduler_class = _scheduler_class(name)
    mutate = options.pop("mutate", None) if name in ("pbt", "pb2") else None
    check_options(called, options, scheduler_class, _OURS)
    try:
        if name in ("asha", "hyperband", "bohb"):
            options = _halving_options(name, options, max_reports)
        elif name == "median":
            options = _median_options(options)
        elif name in ("pbt", "pb2"):
            options = _mutating_options(name, options, space, mutate, max_reports)
        return scheduler_class(**options)
    except ConfigurationError:
        raise
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigurationError(f"{called} does not accept these options: {error}") from error


def check_together(scheduler: TrialScheduler | None, search_alg: SearchAlgorithm) -> None:
    """Raise an error if a scheduler and a searcher do not work together: Ray says so only once trials start, or never.

    Args:
        scheduler: from `make_scheduler`.
        search_alg: from `itwinai.tune.searchers.make_searcher`.

    Raises:
        ConfigurationError: they do not.
    """
    from ray.tune.schedulers import HyperBandForBOHB, PopulationBasedTraining
    from ray.tune.search import BasicVariantGenerator

    inner = getattr(search_alg, "searcher", search_alg)
    if isinstance(scheduler, PopulationBasedTraining) and not isinstance(inner, BasicVariantGenerator):
        raise ConfigurationError(
            f"The schedulers pbt and pb2 choose parameters themselves, and so does {type(inner).__name__}: use the "
            "searcher 'random' with them, or another scheduler."
        )
    if (type(inner).__name__ == "TuneBOHB") != isinstance(scheduler, HyperBandForBOHB):
        raise ConfigurationError(
            "The searcher 'bohb' and the scheduler 'bohb' need each other: name both, or for the scheduler "
            "'hyperband' in its place."
        )


def _scheduler_class(name: str) -> Callable[..., TrialScheduler]:
    from ray.tune import schedulers

    if name == "pb2":
        for package, install in (("sklearn", "scikit-learn"), ("pandas", "pandas")):
            require(package, f"Install it with `pip install {install}`.", "The scheduler 'pb2'")
        from ray.tune.schedulers.pb2 import PB2

        return PB2
    classes: dict[str, Callable[..., TrialScheduler]] = {
        "fifo": schedulers.FIFOScheduler,
        "asha": schedulers.ASHAScheduler,
        "hyperband": schedulers.HyperBandScheduler,
        "median": schedulers.MedianStoppingRule,
        "pbt": schedulers.PopulationBasedTraining,
        "bohb": schedulers.HyperBandForBOHB,
    }
    return classes[name]


# ---- Early ends ----


def _halving_options(name: str, given: Mapping[str, Any], max_reports: int | None) -> dict[str, Any]:
    """Return the options of a scheduler that keeps a part of the trials at each stage."""
    options = {"time_attr": _REPORTS, "reduction_factor": 3, **given}
    if name == "asha":
        options.setdefault("grace_period", 1)
    if "max_t" in options:
        return options
    if options["time_attr"] != _REPORTS:
        raise ConfigurationError(
            f"The scheduler '{name}' measures trials by '{options['time_attr']}' and needs to know how far they go: "
            "give it max_t in that unit."
        )
    if max_reports is None:
        raise ConfigurationError(
            f"The scheduler '{name}' needs to know how often a trial reports, and this one has no fixed length: give "
            f"the trainer max_epochs, or the scheduler max_t, as in `{name}: {{max_t: 20}}`."
        )
    options = {"stop_last_trials": False, **options, "max_t": max_reports}
    return options if name != "asha" else _before_last(options, "grace_period" in given, max_reports)


def _before_last(options: dict[str, Any], grace_given: bool, max_reports: int) -> dict[str, Any]:
    """Return the options of ASHA with no stage at the last report.

    That one would save nothing, and cut off what a trial does at its end.
    """
    if options["grace_period"] < max_reports:
        return {**options, "max_t": max_reports - 1}
    if grace_given:
        raise ConfigurationError(
            f"The scheduler 'asha' never ends a trial before its report {options['grace_period']}, the grace_period, "
            f"and a trial reports {max_reports} times: give it a shorter grace_period, or use fifo."
        )
    return {**options, "grace_period": max_reports + 1, "max_t": max_reports + 1}


def _median_options(given: Mapping[str, Any]) -> dict[str, Any]:
    options = {"time_attr": _REPORTS, **given}
    if options["time_attr"] == _REPORTS:
        options.setdefault("grace_period", 1)
    return options


# ---- Changes of running trials ----


@dataclass(frozen=True)
class ClipToSpace:
    """Brings parameters that a scheduler has changed back to what the space allows.

    Ray multiplies a parameter by a factor and looks at neither bounds nor steps. A class and no function, because Ray
    pickles it when it saves the search.

    Attributes:
        parameters: that the scheduler changes.
        then: a function of the user to apply before.
    """

    parameters: tuple[Parameter, ...]
    then: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a changed config, within the space."""
        changed = config if self.then is None else self.then(config)
        nearest = {p.path: p.distribution.nearest(changed[p.path]) for p in self.parameters if p.path in changed}
        return {**changed, **nearest}


def _mutating_options(
    name: str, given: Mapping[str, Any], space: SearchSpace, mutate: Any, max_reports: int | None
) -> dict[str, Any]:
    """Return the options of a scheduler that changes parameters of running trials."""
    parameters = _mutated(name, space, mutate)
    options = {"time_attr": _REPORTS, **given}
    if "perturbation_interval" not in options:
        if options["time_attr"] != _REPORTS:
            raise ConfigurationError(
                f"The scheduler '{name}' measures trials by '{options['time_attr']}': give it perturbation_interval in "
                "that unit."
            )
        options["perturbation_interval"] = max(1, (max_reports or 0) // 10)
    options["custom_explore_fn"] = ClipToSpace(parameters, given.get("custom_explore_fn"))
    if name == "pb2":
        ranges = [(p.path, p.distribution) for p in parameters if isinstance(p.distribution, Range)]
        options["hyperparam_bounds"] = {path: [own.lower, own.upper] for path, own in ranges}
    else:
        mutations = space.mutations()
        options["hyperparam_mutations"] = {p.path: mutations[p.path] for p in parameters}
    return options


def _mutated(name: str, space: SearchSpace, mutate: Any) -> tuple[Parameter, ...]:
    """Return the parameters that a scheduler changes."""
    able = [p for p in space.mutable() if name == "pbt" or isinstance(p.distribution, Range)]
    only = "" if name == "pbt" else " and are ranges of numbers"
    if not able:
        raise ConfigurationError(
            f"The scheduler '{name}' changes parameters without a condition that are not a grid{only}, and the space "
            "has none: use another scheduler, or give it one."
        )
    if mutate is None:
        return tuple(able)
    paths = [mutate] if isinstance(mutate, str) else list(mutate)
    able_paths = [p.path for p in able]
    for path in paths:
        if path not in able_paths:
            space.find(path, "The option mutate")
            raise ConfigurationError(
                f"The scheduler '{name}' cannot change '{path}': it changes parameters that have no condition, are no "
                f"grid{only}.{did_you_mean(path, able_paths)} Those are {', '.join(able_paths)}."
            )
    if not paths:
        raise ConfigurationError(f"The option mutate of the scheduler '{name}' is empty: list the paths to change.")
    return tuple(p for p in able if p.path in paths)

"""Searchers by name: who says which values the next trial gets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from itwinai.errors import ConfigurationError, MissingPackageError, did_you_mean, require
from itwinai.trials.records import Objective
from itwinai.tune.distributions import read_exponent
from itwinai.tune.space import SearchSpace, is_active

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.samplers import BaseSampler
    from ray.tune.search import BasicVariantGenerator, Searcher
    from ray.tune.search.sample import Domain

    SearchAlgorithm = BasicVariantGenerator | Searcher

Spec = str | Mapping[str, Any] | None
"""A name, a mapping of one name to its options, or nothing for the default."""


@dataclass(frozen=True)
class _Package:
    """What a searcher of Ray needs.

    Attributes:
        modules: that Ray imports for it.
        install: what pip installs.
        seed: the searcher's argument for the seed; empty if it has none.
    """

    modules: tuple[str, ...]
    install: str
    seed: str = ""


_PACKAGES = {
    "hyperopt": _Package(("hyperopt",), "hyperopt", "random_state_seed"),
    "bayesopt": _Package(("bayes_opt",), "bayesian-optimization==1.4.3", "random_state"),
    "ax": _Package(("ax.service.ax_client",), "ax-platform", "random_seed"),
    "hebo": _Package(("hebo.optimizers.hebo",), "HEBO", "random_state_seed"),
    "nevergrad": _Package(("nevergrad",), "nevergrad"),
    "bohb": _Package(
        ("ConfigSpace", "hpbandster.optimizers.config_generators.bohb"), "hpbandster ConfigSpace statsmodels", "seed"
    ),
    "zoopt": _Package(("zoopt",), "zoopt"),
}

SEARCHERS = ("random", "grid", "optuna", "tpe", *_PACKAGES)

# Bases of the others, those that stop the study by themselves, and those that wrap another sampler.
_UNFIT_SAMPLERS = ("BaseSampler", "BaseGASampler", "GridSampler", "BruteForceSampler", "PartialFixedSampler")

# What the space and the objectives say.
_OURS = ("space", "dim_dict", "metric", "mode", "points_to_evaluate", "evaluated_rewards", "analysis", "ax_client")


def make_searcher(
    spec: Spec,
    space: SearchSpace,
    objectives: Sequence[Objective],
    num_samples: int,
    seed: int | None = None,
    *,
    start_with: Sequence[Mapping[str, Any]] = (),
    max_concurrent: int = 0,
) -> tuple[SearchAlgorithm, int]:
    """Return a search algorithm of Ray and the number of trials that it suggests.

    Both are for ``TuneConfig``, together with what `param_space` returns for the ``Tuner``. ``random``, the default,
    tries each point of the grid, if there is one, ``num_samples`` times, with newly drawn values of the rest (or with
    the same for all points, under its option ``constant_grid_search``). ``grid`` does so for all choices too, and needs
    a space of nothing else. ``optuna`` learns from the trials that have ended; parameters that are not active are not
    drawn, so that nothing is learned from them. Its options are those of ``optuna.samplers.TPESampler``, or of the
    sampler that its option ``sampler`` names. The others are those of Ray; they draw all parameters always.

    With a seed, ``random`` and ``grid`` give the same points each time. The others do so as long as the results come in
    the same order, which only holds where trials run one after the other; ``nevergrad`` and ``zoopt`` have no seed.

    Args:
        spec: a name of `SEARCHERS`, or a mapping of one name to its options; None for ``random``.
        space: what is searched.
        objectives: what for; several only with ``random``, ``grid`` and ``optuna``. They are told to ``optuna`` here;
            with several, ``TuneConfig`` must have no metric and mode.
        num_samples: how many trials, or how many for each point of the grid.
        seed: of what is drawn; None for another search each time.
        start_with: points to try first, the config's own for example. What they leave out is drawn. They count among
            the ``num_samples``, or come before the points of a grid.
        max_concurrent: how many trials may run at a time, 0 for as many as fit. To be said here and not in
            ``TuneConfig``, which does not apply it to all searchers.

    Raises:
        ConfigurationError: there is no such searcher or option, or it cannot search this space, these objectives or
            from these points.
        MissingPackageError: the package of a searcher is not installed.
    """
    name, options = named_options(spec, "random", SEARCHERS, "searcher")
    if not objectives:
        raise ConfigurationError("A search needs an objective: the metric to minimize or maximize.")
    if num_samples < 1:
        raise ConfigurationError(f"num_samples must be at least 1; got {num_samples}.")
    points = [space.encode(point, "A starting point") for point in start_with]
    if name in ("random", "grid"):
        return _enumerated(name, options, space, num_samples, seed, points, max_concurrent)
    _check_learning(name, space, num_samples, points)
    if name in ("optuna", "tpe"):
        searcher = _optuna(options, space, objectives, seed, points)
    else:
        searcher = _of_ray(name, options, space, objectives, num_samples, seed, points)
    return _limited(searcher, max_concurrent), num_samples


def param_space(search_alg: SearchAlgorithm, space: SearchSpace) -> dict[str, Domain]:
    """Return what the ``Tuner`` must be given as ``param_space`` along with a search algorithm.

    Args:
        search_alg: from `make_searcher`.
        space: that it searches.

    Returns:
        What is drawn, by path; nothing for a search algorithm that knows the space by itself.
    """
    from ray.tune.search.optuna import OptunaSearch

    # The limit of concurrent trials is a searcher around another.
    inner = getattr(search_alg, "searcher", search_alg)
    return {} if isinstance(inner, OptunaSearch) else space.sampled_domains()


def named_options(spec: Spec, default: str, names: Sequence[str], kind: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options that a spec holds.

    Args:
        spec: a name, or a mapping of one name to its options.
        default: the name where there is no spec.
        names: all that there are.
        kind: what they are names of, for errors.

    Raises:
        ConfigurationError: the spec is something else, or there is no such name.
    """
    if spec is None:
        return default, {}
    if isinstance(spec, Mapping):
        if len(spec) != 1:
            names_given = ", ".join(map(str, spec)) or "none"
            raise ConfigurationError(
                f"The {kind} must be one name, or one name with its options: it has {names_given}."
            )
        ((name, options),) = spec.items()
    else:
        name, options = spec, None
    if name not in names:
        raise ConfigurationError(
            f"There is no {kind} '{name}'.{did_you_mean(name, names)} The names are {', '.join(names)}."
        )
    if not isinstance(options, (Mapping, type(None))):
        raise ConfigurationError(f"The options of the {kind} '{name}' must be a mapping, not {options!r}.")
    return name, {option: read_exponent(value) for option, value in (options or {}).items()}


def check_options(called: str, options: Mapping[str, Any], function: Callable[..., Any], hidden: Iterable[str]) -> None:
    """Raise an error unless a function can be called with some options.

    Args:
        called: what the options are of, for errors.
        options: the options by name.
        function: the function or class.
        hidden: its arguments that are not options, because they come from elsewhere.

    Raises:
        ConfigurationError: there is no such option, or one is missing.
    """
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in set(hidden)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if option in hidden:
            raise ConfigurationError(
                f"{called} has no option '{option}': that is known from the space, the objectives and the seed."
            )
        if option not in names and not takes_any:
            raise ConfigurationError(
                f"{called} has no option '{option}'.{did_you_mean(option, names)} "
                f"Its options are {', '.join(names) or 'none'}."
            )
    for parameter in parameters:
        if parameter.name in names and parameter.default is parameter.empty and parameter.name not in options:
            raise ConfigurationError(f"{called} needs the option '{parameter.name}'.")


# ---- random and grid ----


def _enumerated(
    name: str,
    options: Mapping[str, Any],
    space: SearchSpace,
    num_samples: int,
    seed: int | None,
    start_with: list[dict[str, Any]],
    max_concurrent: int,
) -> tuple[BasicVariantGenerator, int]:
    """Return the search algorithm that learns nothing, and its number of trials."""
    from ray.tune.search import BasicVariantGenerator

    check_options(f"The searcher '{name}'", options, _grid_options if name == "grid" else _random_options, ())
    grid_space = space.with_choices_as_grid() if name == "grid" else space
    if not grid_space.has_grid:
        _check_start(start_with, num_samples)
        points, trials = start_with, num_samples
    else:
        grid = grid_space.grid_points()
        passes = _drawn(space, num_samples, seed, bool(options.get("constant_grid_search")))
        # One pass over the whole grid after the other, so that a search cut short has seen all of it.
        whole = [{**values, **point} for values in passes for point in grid]
        points = start_with + _without(whole, start_with, space)
        trials = len(points)
    generator = BasicVariantGenerator(points_to_evaluate=points, max_concurrent=max_concurrent, random_state=seed)
    return generator, trials


def _random_options(constant_grid_search: bool = False) -> None:
    """Have the options of the searcher 'random' as arguments."""


def _grid_options() -> None:
    """Have the options of the searcher 'grid' as arguments: none."""


def _without(points: list[dict[str, Any]], done: list[dict[str, Any]], space: SearchSpace) -> list[dict[str, Any]]:
    """Return points without those that are done, each of which stands for one of them."""
    left = list(points)
    for seen in map(space.active, done):
        same_point = next((point for point in left if space.active(point) == seen), None)
        if same_point is not None:
            left.remove(same_point)
    return left


def _drawn(space: SearchSpace, num_samples: int, seed: int | None, constant: bool) -> list[dict[str, Any]]:
    """Return, for each pass over the grid, the values that are the same in all of the pass; Ray draws the others."""
    if not constant:
        return [{}] * num_samples
    import numpy

    generator = numpy.random.default_rng(seed)
    parameters = [parameter for parameter in space.parameters if not parameter.distribution.is_grid]
    return [
        {parameter.path: parameter.distribution.domain().sample(random_state=generator) for parameter in parameters}
        for _ in range(num_samples)
    ]


# ---- Searchers that learn ----


def _check_learning(name: str, space: SearchSpace, num_samples: int, start_with: Sequence[Mapping[str, Any]]) -> None:
    grid = next((parameter.path for parameter in space.parameters if parameter.distribution.is_grid), None)
    if grid is not None:
        raise ConfigurationError(
            f"The parameter '{grid}' is a grid, and the searcher '{name}' tries only values that look promising: it "
            "does not go through all. Write {choice: [...]} for the parameter, or use the searcher 'random' or 'grid'."
        )
    _check_start(start_with, num_samples)


def _check_start(start_with: Sequence[Mapping[str, Any]], num_samples: int) -> None:
    if len(start_with) > num_samples:
        raise ConfigurationError(
            f"There are {len(start_with)} points to start with, and only {num_samples} trials: they are the first of "
            f"the trials. Ask for num_samples={len(start_with)} or more."
        )


def _limited(searcher: Searcher, max_concurrent: int) -> Searcher:
    from ray.tune.search import ConcurrencyLimiter

    return ConcurrencyLimiter(searcher, max_concurrent) if max_concurrent else searcher


def _optuna(
    options: Mapping[str, Any],
    space: SearchSpace,
    objectives: Sequence[Objective],
    seed: int | None,
    start_with: list[dict[str, Any]],
) -> Searcher:
    require("optuna", "Install it with `pip install 'itwinai[tune]'`.", "The searcher 'optuna'")
    from ray.tune.search.optuna import OptunaSearch

    several = len(objectives) > 1
    metrics = [objective.metric for objective in objectives]
    modes: list[str] = [objective.mode for objective in objectives]
    draw = DefineByRunSpace(space)
    with quiet_optuna():
        _try_sampler(_sampler(options, seed), draw, modes)
        return OptunaSearch(
            space=draw,
            metric=metrics if several else metrics[0],
            mode=modes if several else modes[0],
            points_to_evaluate=[draw.pinned(point) for point in start_with],
            sampler=_sampler(options, seed),
        )


@dataclass(frozen=True)
class DefineByRunSpace:
    """Draws a point from a trial of Optuna: only the parameters that are active.

    A class and no function, because Ray pickles it when it saves the search.
    """

    space: SearchSpace

    def __call__(self, trial: Trial) -> dict[str, Any]:
        """Return the search values that a trial suggests."""
        drawn: dict[str, Any] = {}
        known: dict[str, Any] = {}
        for parameter in self.space.dependent_last:
            if is_active(parameter, known):
                drawn[parameter.path] = parameter.distribution.suggest(trial, parameter.path)
                known[parameter.path] = parameter.distribution.decode(drawn[parameter.path])
        return drawn

    def pinned(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return what Optuna must be given for a point to be drawn."""
        return {
            parameter.path: parameter.distribution.pinned(point[parameter.path])
            for parameter in self.space.parameters
            if parameter.path in point
        }


def _sampler(given: Mapping[str, Any], seed: int | None) -> BaseSampler:
    """Return the sampler that the options of the searcher describe."""
    import optuna

    options = dict(given)
    name = options.pop("sampler", "TPESampler")
    names = [own for own in optuna.samplers.__all__ if own.endswith("Sampler") and own not in _UNFIT_SAMPLERS]
    if name in ("GridSampler", "BruteForceSampler"):
        raise ConfigurationError(f"The sampler '{name}' of Optuna goes through all points: use the searcher 'grid'.")
    if name not in names:
        raise ConfigurationError(
            f"Optuna has no sampler '{name}'.{did_you_mean(name, names)} Its samplers are {', '.join(names)}."
        )
    sampler = getattr(optuna.samplers, name)
    check_options(f"The sampler '{name}' of Optuna", options, sampler, ())
    if "seed" in inspect.signature(sampler).parameters:
        options.setdefault("seed", seed)
    try:
        return sampler(**options)
    except ImportError as error:
        raise _missing(name, error) from error
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigurationError(f"The sampler '{name}' of Optuna does not accept these options: {error}") from error


def _try_sampler(sampler: BaseSampler, draw: DefineByRunSpace, modes: Sequence[str]) -> None:
    """Raise an error if a sampler cannot draw from the space or for several objectives, before any trial has run."""
    import optuna

    name = type(sampler).__name__
    minimize, maximize = optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE
    directions = [minimize if mode == "min" else maximize for mode in modes]
    study = optuna.create_study(directions=directions, sampler=sampler)
    try:
        for _ in range(2):
            # Some samplers use their own way only for trials after the first.
            trial = study.ask()
            draw(trial)
            study.tell(trial, [0.0 for _ in modes])
    except ImportError as error:
        raise _missing(name, error) from error
    except ValueError as error:
        raise ConfigurationError(f"The sampler '{name}' of Optuna cannot do this search: {error}") from error


def _missing(name: str, error: ImportError) -> MissingPackageError:
    package = error.name or "the package that it names"
    return MissingPackageError(
        f"The sampler '{name}' of Optuna needs another package: {error}. Install it with `pip install {package}`."
    )


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna's message that it has made a study in memory."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _of_ray(
    name: str,
    given: Mapping[str, Any],
    space: SearchSpace,
    objectives: Sequence[Objective],
    num_samples: int,
    seed: int | None,
    start_with: list[dict[str, Any]],
) -> Searcher:
    """Return one of Ray's other searchers."""
    if len(objectives) > 1:
        raise ConfigurationError(
            f"The searcher '{name}' supports one objective, not {len(objectives)}. optuna, random and grid support "
            "several."
        )
    _check_package(name)
    from ray.tune.search import SEARCH_ALG_IMPORT

    searcher_class = SEARCH_ALG_IMPORT[name]()
    called = f"The searcher '{name}'"
    check_options(called, given, searcher_class, _OURS)
    options = {**_defaults(name, num_samples, seed), **given}
    if name == "nevergrad":
        options["optimizer"] = _nevergrad_optimizer(options["optimizer"])
    if start_with:
        options["points_to_evaluate"] = [_completed(space, point, seed) for point in start_with]
    try:
        searcher_class.convert_search_space(space.sampled_domains())
        return searcher_class(metric=objectives[0].metric, mode=objectives[0].mode, **options)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigurationError(f"{called} cannot do this search: {error}") from error


def _check_package(name: str) -> None:
    """Raise an error unless what a searcher needs can be imported: Ray would continue without until the first trial."""
    package = _PACKAGES[name]
    for module in package.modules:
        try:
            import_module(module)
        except ImportError as error:
            raise MissingPackageError(
                f"The searcher '{name}' needs a package that cannot be imported: {error}. Install it with "
                f"`pip install {package.install}`."
            ) from error


def _defaults(name: str, num_samples: int, seed: int | None) -> dict[str, Any]:
    """Return the options that we know the values of: the seed, if it has one, and how many trials there will be."""
    seed_argument = _PACKAGES[name].seed
    options: dict[str, Any] = {seed_argument: seed} if seed_argument and seed is not None else {}
    if name == "zoopt":
        options["budget"] = num_samples
    if name == "nevergrad":
        # Its NGOpt may start a thread that never ends, and cannot be pickled then.
        options |= {"optimizer": "OnePlusOne", "optimizer_kwargs": {"budget": num_samples}}
    return options


def _nevergrad_optimizer(optimizer: Any) -> Any:
    """Return the optimizer of a name."""
    from nevergrad import optimizers

    if not isinstance(optimizer, str):
        return optimizer
    if optimizer not in optimizers.registry:
        raise ConfigurationError(
            f"Nevergrad has no optimizer '{optimizer}'.{did_you_mean(optimizer, optimizers.registry)}"
        )
    return optimizers.registry[optimizer]


def _completed(space: SearchSpace, point: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
    """Return a point with drawn values for what it leaves out: not all searchers take a part of one."""
    import numpy

    generator = numpy.random.default_rng(seed)
    return {path: domain.sample(random_state=generator) for path, domain in space.sampled_domains().items()} | dict(
        point
    )

"""What a search is over: a config, or a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from itwinai.config.paths import spelled_out, value_at, with_values
from itwinai.errors import ConfigurationError
from itwinai.strategies.registry import check_strategy_name
from itwinai.trials.report_interval import parse_moment
from itwinai.tune.distributions import Choice, Range
from itwinai.tune.settings import Settings
from itwinai.tune.space import Parameter, SearchSpace
from itwinai.tune.train_functions import ConfigFits, FunctionCalls
from itwinai.tune.trial_config import BaseConfig

if TYPE_CHECKING:
    from itwinai.config.lightning_cli import ParsedCLI

LoggerFor = Callable[[Mapping[str, Any], str, str, str | None], Any]


class SearchTarget(Protocol):
    """What a search is over."""

    @property
    def space(self) -> SearchSpace:
        """The space, its paths spelled out."""

    @property
    def name(self) -> str:
        """What is trained: the class of the model, or the function."""

    @property
    def strategy(self) -> Any:
        """That of trials for which none is drawn."""

    @property
    def logger(self) -> Any:
        """What the config has at ``trainer.logger``."""

    def start_with(self) -> list[Mapping[str, Any]]:
        """Return the points that are tried first."""

    def max_reports(self) -> int | None:
        """Return how often a trial reports; None if that is not known."""

    def trials(self, logger_for: LoggerFor) -> Callable[..., Any]:
        """Return the function that creates a trial from drawn values."""

    def best_config(self, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the config that `itwinai fit` accepts with these parameters; None if there is no config."""


@dataclass(frozen=True)
class FunctionTarget:
    """A function of the user's own.

    Attributes:
        function: it gets the parameters of a trial.
        settings: of the search.
    """

    function: Callable[[dict[str, Any]], Any]
    settings: Settings
    strategy: Any = None
    logger: Any = False

    @property
    def name(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def space(self) -> SearchSpace:
        """The space as it is given."""
        return SearchSpace.from_mapping(self.settings.space)

    def start_with(self) -> list[Mapping[str, Any]]:
        """Return the points that are tried first."""
        given = self.settings.start_with
        if given is True:
            raise ConfigurationError("start_with=True stands for the config as it is, and a function has none.")
        return list(given) if given else []

    def max_reports(self) -> int | None:
        """Return how often a trial reports, if the settings say so."""
        return self.settings.max_reports

    def trials(self, logger_for: LoggerFor) -> Callable[..., Any]:
        """Return the function that creates a call of the trainable from drawn values."""
        return FunctionCalls(self.function, self.space.active)

    def best_config(self, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return None."""
        return None


@dataclass(frozen=True)
class ConfigTarget:
    """A config that `itwinai fit` accepts.

    Attributes:
        config: the whole config, defaults included.
        base: what of it differs from the defaults, and how trials differ from it.
        settings: of the search, with the paths spelled out.
        space: that is searched.
    """

    config: Mapping[str, Any]
    base: BaseConfig
    settings: Settings
    space: SearchSpace

    @classmethod
    def parsed(
        cls, source: Sequence[str] | Mapping[str, Any], arguments: Sequence[str], settings: Settings
    ) -> ConfigTarget:
        """Parse a config, and check that the space fits it.

        Args:
            source: paths of the config, or the config.
            arguments: further arguments of Lightning's command line.
            settings: of the search.

        Raises:
            ConfigurationError: the config is wrong, or a path of the space is not in it, or a value of the space is
                not of its type.
        """
        from itwinai.config.lightning_cli import parsed

        if isinstance(source, Mapping):
            given: Any = {**source, "tune": None}
        else:
            given = [*(argument for path in source for argument in ("-c", path)), *arguments]
        cli = parsed(given)
        config = cli.as_dict()
        settings = _spelled_out(settings, config)
        space = SearchSpace.from_mapping(settings.space)
        base = BaseConfig(cli.as_dict(without_defaults=True), settings)
        _check_values(cli, config, space, settings.overrides)
        _check_strategies(settings, space)
        return cls(config, base, settings, space)

    @property
    def name(self) -> str:
        """The class of the model."""
        model = self.config.get("model")
        path = model.get("class_path") if isinstance(model, Mapping) else None
        return str(path or "").rpartition(".")[2]

    @property
    def strategy(self) -> Any:
        """That of trials for which none is drawn."""
        return self.base.of_best({})["trainer"].get("strategy")

    @property
    def logger(self) -> Any:
        """What the config has at ``trainer.logger``."""
        return self.config["trainer"].get("logger")

    def start_with(self) -> list[Mapping[str, Any]]:
        """Return the points that are tried first."""
        given = self.settings.start_with
        if given is True:
            own = {path: value_at(self.config, path) for path in self.space.paths}
            return [self.space.active(self.space.encode(own, "The config, with which the search starts,"))]
        return list(given) if given else []

    def max_reports(self) -> int | None:
        """Return how often a trial reports, as far as the config says so."""
        trainer = with_values(self.config, self.settings.overrides)["trainer"]
        reports = _reports(trainer, self.settings.report_on)
        limits = [limit for limit in (reports, self.settings.max_reports) if limit is not None]
        return min(limits, default=None)

    def trials(self, logger_for: LoggerFor) -> Callable[..., Any]:
        """Return the function that creates a fit from drawn values."""
        return ConfigFits(self.base, self.space.active, logger_for)

    def best_config(self, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the config that `itwinai fit` accepts with these parameters."""
        return self.base.of_best(parameters)


def _spelled_out(settings: Settings, config: Mapping[str, Any]) -> Settings:
    """Return the settings with everything in the paths that may be left out."""

    def whole(path: str) -> str:
        return spelled_out(config, path)

    space: dict[str, Any] = {}
    for path, entry in settings.space.items():
        if isinstance(entry, Mapping) and isinstance(entry.get("when"), Mapping):
            entry = {**entry, "when": {whole(other): value for other, value in entry["when"].items()}}
        space[whole(path)] = entry
    points = settings.start_with
    if not isinstance(points, bool):
        points = [{whole(path): value for path, value in point.items()} for point in points]
    overrides = {whole(path): value for path, value in settings.overrides.items()}
    return replace(settings, space=space, start_with=points, overrides=overrides)


def _check_values(cli: ParsedCLI, config: Mapping[str, Any], space: SearchSpace, overrides: Mapping[str, Any]) -> None:
    """Raise an error for the first value of the space that the config does not accept."""
    for path, value in overrides.items():
        cli.check(with_values(config, {path: value}), f"tune.overrides has {value!r} for '{path}'")
    for parameter in space.parameters:
        others = (path for path in space.paths if path != parameter.path)
        if parameter.when or any(parameter.path.startswith(f"{path}.") for path in others):
            continue  # it may only fit together with others
        for value in _examples(parameter):
            cli.check(
                with_values(config, {parameter.path: value}),
                f"The search space has {value!r} for '{parameter.path}'",
            )


def _check_strategies(settings: Settings, space: SearchSpace) -> None:
    """Raise an error for a strategy that no trial can have: for a config, any text may name one."""
    named = [("tune.strategy", settings.strategy)]
    named += [(f"tune.space.{one.path}", value) for one in space.parameters for value in _examples(one)
              if one.path == "trainer.strategy"]  # fmt: skip
    for path, name in named:
        if isinstance(name, str):
            try:
                check_strategy_name(name)
            except ConfigurationError as error:
                raise ConfigurationError(f"{path}: {error}") from None


def _examples(parameter: Parameter) -> list[Any]:
    """Return values of a parameter, from which it shows whether all are of the right type."""
    distribution = parameter.distribution
    if isinstance(distribution, Choice):
        return list(distribution.values)
    if isinstance(distribution, Range):
        return [int(distribution.lower) if distribution.integer else float(distribution.lower)]
    return []


def _reports(trainer: Mapping[str, Any], moment: str) -> int | None:
    """Return how often a run reports that trains for as long as a trainer's flags say."""
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    moment, every = parse_moment(moment)
    if every is not None:
        return steps // every if steps and steps > 0 else None
    if epochs is None:
        epochs = 1000 if not steps or steps < 0 else -1  # Lightning's own default
    if epochs < 1:
        return None
    if moment == "epoch":
        return int(epochs)
    per_epoch = trainer.get("val_check_interval")
    if isinstance(per_epoch, float) and 0 < per_epoch < 1:
        return int(epochs * int(1 / per_epoch))
    if isinstance(per_epoch, int) and not isinstance(per_epoch, bool) and per_epoch > 1:
        return None
    return int(epochs) // int(trainer.get("check_val_every_n_epoch") or 1)

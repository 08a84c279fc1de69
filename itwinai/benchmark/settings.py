"""The settings of a benchmark, and the cells that follow from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from itwinai.benchmark.records import SINGLE, Cell, Scaling
from itwinai.errors import ConfigurationError, did_you_mean

_EXAMPLE = "benchmark: {strategies: [ddp, horovod], workers: [1, 2, 4]}"


@dataclass(frozen=True)
class Settings:
    """The settings of a benchmark.

    Attributes:
        strategies: names of strategies, as the trainer accepts them.
        workers: total numbers of workers, over all nodes.
        repeats: runs of each cell. Fewer than 3 cannot separate differences from chance.
        scalings: how the global batch depends on the number of workers: ``strong``, ``weak``, or both.
        axes: further settings to vary: values by path in the config.
        steps: number of steps to measure: batches of each worker.
        seconds: measure more steps if these take less time, which reduces the effect of chance.
        warmup: steps before the measurement: caches fill, algorithms are chosen, code is compiled.
        limit: seconds after which a run counts as hanging and is ended.
        baseline: strategy that all others are compared with, at its smallest number of workers. ``single`` is one
            process without a strategy.
        extrapolate: numbers of workers to extrapolate to; by default up to eight times the largest measured.
        seed: seed of the order of the runs, and of the runs if the config has no seed.
        threads: number of torch threads of each worker, in all cells; by default the cores of a node divided by the
            largest number of workers on it.
    """

    strategies: tuple[str, ...]
    workers: tuple[int, ...]
    repeats: int = 3
    scalings: tuple[Scaling, ...] = ("strong",)
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    steps: int = 50
    seconds: float = 3.0
    warmup: int = 10
    limit: float = 600.0
    baseline: str = SINGLE
    extrapolate: tuple[int, ...] = ()
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        _check_listed("--strategies", self.strategies)
        _check_listed("--workers", self.workers)
        _check_listed("--scaling", self.scalings)
        for scaling in self.scalings:
            if scaling not in get_args(Scaling):
                raise ConfigurationError(
                    f"--scaling={scaling} is unknown. 'strong' divides one global batch among the workers, 'weak' "
                    "gives each worker a batch of its own; 'strong,weak' does both."
                )
        counts = {"--workers": min(self.workers), "--repeats": self.repeats, "--steps": self.steps}
        for flag, number in counts.items():
            if number < 1:
                raise ConfigurationError(f"{flag} must be at least 1; got {number}.")
        if self.warmup < 1:
            raise ConfigurationError(
                f"--warmup must be at least 1; got {self.warmup}. The first step takes far longer than the others."
            )
        if self.threads is not None and self.threads < 1:
            raise ConfigurationError(f"--threads must be at least 1; got {self.threads}.")
        if self.seconds < 0:
            raise ConfigurationError(f"--seconds must be at least 0; got {self.seconds}.")
        if self.limit <= 0:
            raise ConfigurationError(f"--limit must be above 0 seconds; got {self.limit}.")
        if any(number < 1 for number in self.extrapolate):
            raise ConfigurationError(f"--extrapolate must be numbers of workers of at least 1; got {self.extrapolate}.")
        if self.baseline != SINGLE and self.baseline not in self.strategies:
            raise ConfigurationError(
                f"--baseline={self.baseline} is not among --strategies ({', '.join(self.strategies)}); choose one of "
                f"them, or '{SINGLE}': one process without a strategy."
            )
        for path, values in self.axes.items():
            _check_listed(f"--axis {path}", [yaml_text(value) for value in values])

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], where: str = "The section 'benchmark'") -> Settings:
        """Return the settings that a ``benchmark:`` section has.

        Args:
            mapping: settings by name; a list may be a single value.
            where: what the section is called in errors.

        Raises:
            ConfigurationError: an entry is unknown or missing, or its value is invalid.
        """
        if not isinstance(mapping, Mapping):
            raise ConfigurationError(f"{where} is {mapping!r}, and not a section such as {_EXAMPLE}.")
        fields = {one.name: one for one in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for name, value in mapping.items():
            if name not in fields:
                raise ConfigurationError(
                    f"{where} has an entry '{name}', which is unknown.{did_you_mean(name, fields)} Known are "
                    f"{', '.join(fields)}."
                )
            listed = str(fields[name].type).startswith("tuple")
            values[name] = tuple(value if isinstance(value, (list, tuple)) else [value]) if listed else value
            if not _fits(values[name], str(fields[name].type)):
                raise ConfigurationError(f"{where}.{name} is {value!r}; {_TAKES[str(fields[name].type)]}.")
        for name in ("strategies", "workers"):
            if not values.get(name):
                raise ConfigurationError(f"{where} needs an entry '{name}', as in {_EXAMPLE}.")
        return cls(**values)

    @property
    def extrapolated_workers(self) -> tuple[int, ...]:
        """The numbers of workers to extrapolate to."""
        largest = max(self.workers)
        return tuple(sorted(set(self.extrapolate))) or (2 * largest, 4 * largest, 8 * largest)


def cells_of(settings: Settings) -> list[Cell]:
    """Return the cells of a benchmark, the baseline first, without those that would be measured twice."""
    found: dict[Cell, None] = {}
    for axes in _combinations(settings.axes):
        if settings.baseline == SINGLE:
            found[Cell(SINGLE, 1, settings.scalings[0], axes)] = None
        for scaling in settings.scalings:
            for workers in sorted(settings.workers):
                for strategy in settings.strategies:
                    if strategy == SINGLE and workers > 1:
                        continue
                    found[Cell(strategy, workers, scaling if workers > 1 else settings.scalings[0], axes)] = None
    return list(found)


def yaml_text(value: Any) -> str:
    """Return a value as one would write it in a config, in one line."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _combinations(axes: Mapping[str, Sequence[Any]]) -> list[tuple[tuple[str, str], ...]]:
    combinations: list[tuple[tuple[str, str], ...]] = [()]
    for path, values in axes.items():
        combinations = [(*before, (path, yaml_text(value))) for before in combinations for value in values]
    return combinations


def _check_listed(flag: str, values: Sequence[Any]) -> None:
    if not values:
        raise ConfigurationError(f"{flag} needs at least one value.")
    twice = {str(value) for value in values if list(values).count(value) > 1}
    if twice:
        raise ConfigurationError(f"{flag} has {', '.join(sorted(twice))} twice.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fits(value: Any, kind: str) -> bool:
    """Return whether a value of a config is of the type of a setting."""
    return _FITS[kind](value)


_FITS: dict[str, Callable[[Any], bool]] = {
    "tuple[str, ...]": lambda value: all(isinstance(one, str) for one in value),
    "tuple[Scaling, ...]": lambda value: all(isinstance(one, str) for one in value),
    "tuple[int, ...]": lambda value: all(map(_is_whole, value)),
    "Mapping[str, Sequence[Any]]": lambda value: (
        isinstance(value, Mapping) and all(isinstance(one, (list, tuple)) for one in value.values())
    ),
    "int": _is_whole,
    "int | None": lambda value: value is None or _is_whole(value),
    "float": lambda value: _is_whole(value) or isinstance(value, float),
    "str": lambda value: isinstance(value, str),
}
_TAKES = {
    "tuple[str, ...]": "write names, as in [ddp, horovod]",
    "tuple[Scaling, ...]": "write strong, weak, or [strong, weak]",
    "tuple[int, ...]": "write whole numbers, as in [1, 2, 4]",
    "Mapping[str, Sequence[Any]]": "write lists of values by path, as in {trainer.precision: [32-true, bf16-mixed]}",
    "int": "write a whole number",
    "int | None": "write a whole number, or null",
    "float": "write a number",
    "str": "write a name",
}

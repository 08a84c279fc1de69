"""The settings of a benchmark, and the cells that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from itwinai.benchmark.records import SINGLE, Cell, Scaling
from itwinai.errors import ConfigurationError


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

"""What a parameter of a search is drawn from.

The names and their arguments are those of ``ray.tune``. A *search value* is what a searcher draws and gets back: a
number, a text, True, False or None. Values that are more than that (the mappings and lists of a choice) are searched
as JSON texts, because searchers know categories only as scalars.
"""

from __future__ import annotations

import copy
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from itwinai.errors import ConfigurationError, did_you_mean

if TYPE_CHECKING:
    from optuna import Trial
    from ray.tune.search.sample import Domain

_RANGES: dict[str, tuple[str, ...]] = {
    "uniform": ("lower", "upper"),
    "quniform": ("lower", "upper", "q"),
    "loguniform": ("lower", "upper"),
    "qloguniform": ("lower", "upper", "q"),
    "randint": ("lower", "upper"),
    "qrandint": ("lower", "upper", "q"),
    "lograndint": ("lower", "upper"),
    "qlograndint": ("lower", "upper", "q"),
}
_NORMALS: dict[str, tuple[str, ...]] = {"randn": ("mean", "sd"), "qrandn": ("mean", "sd", "q")}
_CHOICES: dict[str, str] = {"choice": "categories", "grid": "values", "grid_search": "values"}
_DEFAULTS: dict[str, dict[str, Any]] = {"randn": {"mean": 0.0, "sd": 1.0}, "qrandint": {"q": 1}}

DISTRIBUTIONS = (*_RANGES, *_NORMALS, "choice", "grid")

# YAML 1.1 reads 1e-5 as a text: it wants a dot and a sign.
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")

# Where the quantile of a normal distribution is drawn, it ends six standard deviations from the mean.
_TAIL = 1e-9


class Distribution(ABC):
    """Base of the distributions: one per parameter, which each searcher and scheduler gets in its own form."""

    @property
    @abstractmethod
    def count(self) -> int | float:
        """How many values can be drawn; `math.inf` for a continuous one."""

    @property
    def is_grid(self) -> bool:
        """Whether each of the values is to be tried."""
        return False

    @abstractmethod
    def domain(self) -> Domain:
        """Return what Ray draws search values from; a grid is drawn from like a choice."""

    @abstractmethod
    def suggest(self, trial: Trial, path: str) -> Any:
        """Return a search value that an Optuna trial suggests."""

    def pinned(self, value: Any) -> Any:
        """Return what Optuna must be given for `suggest` to return this search value."""
        return value

    @abstractmethod
    def contains(self, value: Any) -> bool:
        """Return whether a parameter can have this value."""

    @abstractmethod
    def nearest(self, value: Any) -> Any:
        """Return the search value that can be drawn and is nearest to one that a scheduler has made up."""

    @abstractmethod
    def read(self, value: Any) -> Any:
        """Return a value as written in YAML as what it means: numbers as texts become numbers."""

    def encode(self, value: Any) -> Any:
        """Return the search value of a value that the distribution `contains`."""
        return value

    def decode(self, value: Any) -> Any:
        """Return the value that a search value stands for."""
        return value


class Numbers(Distribution):
    """Base of the distributions of numbers, which may lie on the multiples of a step."""

    def read(self, value: Any) -> Any:
        """Return a number that may have been read as text."""
        return _read_number(value)

    def encode(self, value: Any) -> Any:
        """Return a number as it would be drawn."""
        return self.nearest(value)

    def decode(self, value: Any) -> Any:
        """Return the number of Python that is meant: 0.3 for 0.30000000000000004, which Ray draws."""
        return self.nearest(value)


@dataclass(frozen=True)
class Range(Numbers):
    """Numbers between two bounds.

    Attributes:
        name: the name in ``ray.tune``.
        lower: the lowest that can be drawn.
        upper: the highest that can be drawn; Ray never draws it from a continuous range.
        step: values are its multiples; None if they may be any.
        log: whether orders of magnitude are drawn evenly.
        integer: whether values are integers.
    """

    name: str
    lower: float
    upper: float
    step: float | None = None
    log: bool = False
    integer: bool = False

    def __str__(self) -> str:
        step = "" if self.step is None else f", step {self.step}"
        return f"{self.name} from {self.lower} to {self.upper}{step}"

    @property
    def count(self) -> int | float:
        """How many values can be drawn."""
        step = self.step or (1 if self.integer else None)
        return math.inf if step is None else round((self.upper - self.lower) / step) + 1

    def values(self) -> list[Any]:
        """Return all values that can be drawn, of a range with a step or of integers."""
        return [self.nearest(self.lower + number * (self.step or 1)) for number in range(int(self.count))]

    def domain(self) -> Domain:
        """Return what Ray draws search values from."""
        from ray import tune

        if self.integer:
            lower, upper = int(self.lower), int(self.upper)
            # Ray's upper bound of integers is exclusive, unless there is a step other than 1.
            if self.step is None:
                return (tune.lograndint if self.log else tune.randint)(lower, upper + 1)
            return (tune.qlograndint if self.log else tune.qrandint)(lower, upper, int(self.step))
        if self.step is None:
            return (tune.loguniform if self.log else tune.uniform)(self.lower, self.upper)
        return (tune.qloguniform if self.log else tune.quniform)(self.lower, self.upper, self.step)

    def suggest(self, trial: Trial, path: str) -> Any:
        """Return a search value that an Optuna trial suggests.

        Optuna has no steps on a logarithmic scale: there the value is drawn without and then rounded to the step.
        """
        step = None if self.log else self.step
        if self.integer:
            drawn: float = trial.suggest_int(path, int(self.lower), int(self.upper), step=int(step or 1), log=self.log)
        else:
            drawn = trial.suggest_float(path, self.lower, self.upper, step=step, log=self.log)
        return self.nearest(drawn)

    def contains(self, value: Any) -> bool:
        """Return whether a parameter can have this value."""
        if not _is_number(value) or not math.isfinite(value) or (self.integer and value != int(value)):
            return False
        return math.isclose(value, self.nearest(value), rel_tol=1e-9, abs_tol=1e-300)

    def nearest(self, value: Any) -> Any:
        """Return the number nearest to another that can be drawn."""
        within = min(max(value, self.lower), self.upper)
        if self.step is not None:
            within = _multiple(within, self.step)
        return int(round(within)) if self.integer else float(within)


@dataclass(frozen=True)
class Normal(Numbers):
    """Numbers around a mean.

    Attributes:
        name: the name in ``ray.tune``.
        mean: of the distribution.
        sd: its standard deviation.
        step: values are its multiples; None if they may be any.
        integer: whether values are integers.
    """

    name: str
    mean: float
    sd: float
    step: float | None = None
    integer: bool = False

    def __str__(self) -> str:
        step = "" if self.step is None else f", step {self.step}"
        return f"{self.name} around {self.mean} with deviation {self.sd}{step}"

    @property
    def count(self) -> float:
        """Without bounds there is no end of values."""
        return math.inf

    def domain(self) -> Domain:
        """Return what Ray draws search values from."""
        from ray import tune

        return tune.randn(self.mean, self.sd) if self.step is None else tune.qrandn(self.mean, self.sd, self.step)

    def suggest(self, trial: Trial, path: str) -> Any:
        """Return a search value that an Optuna trial suggests.

        Optuna has no normal distribution: the quantile is drawn from 0 to 1, of which this one is the image.
        """
        quantile = trial.suggest_float(path, _TAIL, 1 - _TAIL)
        return self.nearest(NormalDist(self.mean, self.sd).inv_cdf(quantile))

    def pinned(self, value: Any) -> Any:
        """Return the quantile of a value."""
        return min(max(NormalDist(self.mean, self.sd).cdf(value), _TAIL), 1 - _TAIL)

    def contains(self, value: Any) -> bool:
        """Return whether a parameter can have this value."""
        return _is_number(value) and math.isfinite(value) and math.isclose(value, self.nearest(value), abs_tol=1e-300)

    def nearest(self, value: Any) -> Any:
        """Return the number nearest to another that can be drawn."""
        number = value if self.step is None else _multiple(value, self.step)
        return int(round(number)) if self.integer else float(number)


@dataclass(frozen=True)
class Choice(Distribution):
    """One of some values; as a grid: each of them.

    Attributes:
        values: what can be chosen, no two of them equal.
        grid: whether each is to be tried.
    """

    values: tuple[Any, ...]
    grid: bool = False

    def __str__(self) -> str:
        return f"{'grid' if self.grid else 'choice'} of {', '.join(map(str, self.search_values))}"

    @property
    def count(self) -> int:
        """How many values there are."""
        return len(self.values)

    @property
    def is_grid(self) -> bool:
        """Whether each of the values is to be tried."""
        return self.grid

    @cached_property
    def search_values(self) -> tuple[Any, ...]:
        """The values as scalars."""
        return tuple(map(_scalar, self.values))

    def domain(self) -> Domain:
        """Return what Ray draws search values from."""
        from ray import tune

        return tune.choice(list(self.search_values))

    def suggest(self, trial: Trial, path: str) -> Any:
        """Return a search value that an Optuna trial suggests."""
        return trial.suggest_categorical(path, self.search_values)

    def contains(self, value: Any) -> bool:
        """Return whether a parameter can have this value."""
        return any(same(value, own) for own in self.values)

    def nearest(self, value: Any) -> Any:
        """Return the value itself: schedulers make up none outside of a choice."""
        return value

    def read(self, value: Any) -> Any:
        """Return a value that may be a number that has been read as text."""
        number = read_exponent(value)
        return value if self.contains(value) or not self.contains(number) else number

    def encode(self, value: Any) -> Any:
        """Return the scalar that stands for a value."""
        return next(scalar for own, scalar in zip(self.values, self.search_values, strict=True) if same(value, own))

    def decode(self, value: Any) -> Any:
        """Return the value that a scalar stands for; a copy, so that the space cannot be changed.

        Raises:
            ConfigurationError: the scalar is not among the values.
        """
        for own, scalar in zip(self.values, self.search_values, strict=True):
            # Some searchers give scalars of NumPy.
            if same(_plain(value), scalar):
                return copy.deepcopy(own)
        raise ConfigurationError(f"{value!r} is not among the values {self}: was it drawn from another space?")


def same(first: Any, second: Any) -> bool:
    """Return whether two values are the same; True and 1 are not."""
    return isinstance(first, bool) == isinstance(second, bool) and bool(first == second)


def parse_distribution(path: str, entry: Any) -> Distribution:
    """Return the distribution that an entry of the space describes.

    In YAML that is a mapping of one name to its arguments, in order or by name: ``{loguniform: [1e-5, 1e-1]}`` or
    ``{loguniform: {lower: 1e-5, upper: 1e-1}}``. Python may also give what ``ray.tune.loguniform(...)`` and
    ``ray.tune.grid_search(...)`` return.

    As in Ray, the upper bound of ``randint``, ``lograndint`` and of ``qrandint`` with step 1 is itself not drawn, that
    of the others with a step is. Unlike in Ray, the values of ``quniform``, ``qloguniform`` and ``qrandn`` are integers
    if all arguments are written as integers: a batch size needs one.

    Args:
        path: of the parameter, for errors.
        entry: its entry, without conditions.

    Raises:
        ConfigurationError: there is no such distribution, or not with these arguments.
    """
    if not isinstance(entry, Mapping):
        return _from_ray(path, entry)
    if len(entry) != 1:
        raise ConfigurationError(
            f"The parameter '{path}' needs one distribution, and has {', '.join(map(str, entry)) or 'none'}."
        )
    ((name, arguments),) = entry.items()
    if name in _CHOICES:
        return _choice(path, name, arguments)
    if name in _RANGES:
        return _range(path, name, _arguments(path, name, arguments, _RANGES[name]))
    if name in _NORMALS:
        return _normal(path, name, _arguments(path, name, arguments, _NORMALS[name]))
    raise ConfigurationError(
        f"The parameter '{path}' has the unknown distribution '{name}'.{did_you_mean(name, DISTRIBUTIONS)} "
        f"The distributions are {', '.join(DISTRIBUTIONS)}."
    )


def _arguments(path: str, name: str, given: Any, names: Sequence[str]) -> dict[str, float]:
    """Return the numbers of a distribution by name."""
    defaults = _DEFAULTS.get(name, {})
    if given is None:
        given = []
    if isinstance(given, Mapping):
        for argument in given:
            if argument not in names:
                raise ConfigurationError(
                    f"The distribution {name} of the parameter '{path}' has no argument '{argument}'."
                    f"{did_you_mean(argument, names)} It accepts {', '.join(names)}."
                )
        by_name = dict(given)
    else:
        values = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        by_name = dict(zip(names, values, strict=False))
        if len(values) > len(names):
            raise _wrong_number(path, name, names, len(values))
    by_name = {**defaults, **by_name}
    if len(by_name) < len(names):
        raise _wrong_number(path, name, names, len(by_name))
    return {argument: _number(path, name, argument, by_name[argument]) for argument in names}


def _wrong_number(path: str, name: str, names: Sequence[str], given: int) -> ConfigurationError:
    return ConfigurationError(
        f"The distribution {name} of the parameter '{path}' needs {len(names)} numbers, {', '.join(names)}: "
        f"it was given {given}."
    )


def _number(path: str, name: str, argument: str, given: Any) -> float:
    number = _read_number(given)
    if not _is_number(number) or not math.isfinite(number):
        raise ConfigurationError(
            f"The argument {argument} of the distribution {name} of the parameter '{path}' must be a finite number, "
            f"not {given!r}."
        )
    return number


def _range(path: str, name: str, numbers: Mapping[str, float]) -> Range:
    lower, upper, step = numbers["lower"], numbers["upper"], numbers.get("q")
    log = "log" in name
    if lower >= upper:
        raise ConfigurationError(
            f"The distribution {name} of the parameter '{path}' needs a lower bound below the upper one, "
            f"not {lower} and {upper}."
        )
    if log and lower <= 0:
        raise ConfigurationError(
            f"The distribution {name} of the parameter '{path}' draws orders of magnitude and needs bounds above 0, "
            f"not {lower}."
        )
    _check_step(path, name, step)
    if name.endswith("randint"):
        for argument, number in numbers.items():
            if number != int(number):
                raise ConfigurationError(
                    f"The argument {argument} of the distribution {name} of the parameter '{path}' must be an "
                    f"integer, not {number}."
                )
        lower, upper, step = int(lower), int(upper), None if step in (None, 1) else int(step or 1)
        # Only bounds with a step are all inclusive.
        upper = upper if step else upper - 1
    if step is not None:
        _check_multiples(path, name, lower, upper, step)
    whole = "q" in numbers and all(isinstance(number, int) for number in numbers.values())
    integer = name.endswith("randint") or whole
    if integer and step == 1:
        step = None
    return Range(name, lower, upper, step, log, integer)


def _check_step(path: str, name: str, step: float | None) -> None:
    if step is not None and step <= 0:
        raise ConfigurationError(
            f"The step q of the distribution {name} of the parameter '{path}' must be above 0, not {step}."
        )


def _check_multiples(path: str, name: str, lower: float, upper: float, step: float) -> None:
    """Raise an error unless both bounds can be drawn: values are multiples of the step, not steps from a bound."""
    for bound in (lower, upper):
        nearest = _multiple(bound, step)
        if not math.isclose(bound, nearest, rel_tol=1e-9, abs_tol=1e-300):
            raise ConfigurationError(
                f"The bound {bound} of the distribution {name} of the parameter '{path}' is not a multiple of its step "
                f"{step}; the nearest multiple is {nearest}."
            )


def _normal(path: str, name: str, numbers: Mapping[str, float]) -> Normal:
    if numbers["sd"] <= 0:
        raise ConfigurationError(
            f"The deviation sd of the distribution {name} of the parameter '{path}' must be above 0, "
            f"not {numbers['sd']}."
        )
    step = numbers.get("q")
    _check_step(path, name, step)
    integer = step is not None and all(isinstance(number, int) for number in numbers.values())
    return Normal(name, numbers["mean"], numbers["sd"], step, integer)


def _choice(path: str, name: str, given: Any) -> Choice:
    argument = _CHOICES[name]
    if isinstance(given, Mapping) and set(given) == {argument}:
        given = given[argument]
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        raise ConfigurationError(f"The {name} of the parameter '{path}' must be a list of values, not {given!r}.")
    values = _read_exponents([_plain(value) for value in given])
    if not values:
        raise ConfigurationError(f"The {name} of the parameter '{path}' is empty: give it the values to try.")
    choice = Choice(tuple(values), grid=name != "choice")
    _check_values(path, name, choice)
    return choice


def _check_values(path: str, name: str, choice: Choice) -> None:
    for value in choice.values:
        try:
            _scalar(value)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"The {name} of the parameter '{path}' holds {value!r}, which cannot be written to a config: {error}. "
                "Values are numbers, texts, True, False, None, and lists and mappings of them."
            ) from error
    scalars = choice.search_values
    for position, scalar in enumerate(scalars):
        # To a searcher, 1 and True are one category.
        twin = next((other for other in scalars[:position] if other == scalar), scalars)
        if twin is not scalars:
            raise ConfigurationError(
                f"The {name} of the parameter '{path}' has two values that no searcher can tell apart: "
                f"{twin!r} and {scalar!r}. Leave one out."
            )


def _from_ray(path: str, given: Any) -> Distribution:
    """Return the distribution that an object of ``ray.tune`` describes."""
    if not type(given).__module__.startswith("ray."):
        raise ConfigurationError(_advice(path, given))
    from ray.tune.search.sample import Categorical, Float, Integer, LogUniform, Quantized
    from ray.tune.search.sample import Normal as RayNormal

    if isinstance(given, Categorical):
        return _choice(path, "grid" if given.is_grid() else "choice", given.categories)
    if not isinstance(given, (Float, Integer)):
        raise ConfigurationError(
            f"The parameter '{path}' is given by {type(given).__name__} of Ray, which cannot be searched over: its "
            "values are not known beforehand. For a parameter that depends on another, use `when`."
        )
    sampler = given.get_sampler()
    step = sampler.q if isinstance(sampler, Quantized) else None
    sampler = sampler.sampler if isinstance(sampler, Quantized) else sampler
    quantized = "" if step is None else "q"
    if isinstance(sampler, RayNormal):
        name, numbers = f"{quantized}randn", {"mean": float(sampler.mean), "sd": float(sampler.sd)}
    else:
        kind = "randint" if isinstance(given, Integer) else "uniform"
        name = f"{quantized}{'log' if isinstance(sampler, LogUniform) else ''}{kind}"
        numbers = {"lower": given.lower, "upper": given.upper}
        if isinstance(given, Integer) and step not in (None, 1):
            # Ray accepts any bounds here, and draws the multiples between them.
            numbers = {"lower": math.ceil(given.lower / step) * step, "upper": math.floor(given.upper / step) * step}
        elif isinstance(given, Float):
            numbers = {argument: float(number) for argument, number in numbers.items()}
    return parse_distribution(path, {name: numbers if step is None else {**numbers, "q": step}})


def _advice(path: str, given: Any) -> str:
    """Return what to do with an entry that is not a distribution."""
    if isinstance(given, (list, tuple)):
        return (
            f"The parameter '{path}' is a list, which does not say what to do with its values: write "
            "{choice: [...]} to draw one of them, or {grid: [...]} to try each."
        )
    return (
        f"The parameter '{path}' is {given!r}, which is not a distribution. Put a fixed value into the config itself; "
        f"the distributions are {', '.join(DISTRIBUTIONS)}."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Return a number of NumPy as one of Python."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value


def _read_number(value: Any) -> Any:
    """Return a text as the number that it is, and anything else as it is."""
    value = _plain(value)
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def read_exponent(value: Any) -> Any:
    """Return the number of a text such as ``1e-5``, which YAML 1.1 does not read as a number."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _read_exponents(values: list[Any]) -> list[Any]:
    """Return the values of a choice; ``1e-5`` becomes a number where all others are numbers too."""
    numbers = [read_exponent(value) for value in values]
    return numbers if all(map(_is_number, numbers)) else values


def _scalar(value: Any) -> Any:
    """Return a value itself if it is a scalar, and else its JSON text."""
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("it is not equal to itself")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return json.dumps(value, sort_keys=True)


def _multiple(value: float, step: float) -> float:
    """Return the multiple of a step that is nearest to a value, exact in decimals: 0.3, not 0.30000000000000004."""
    return float(Decimal(str(step)) * round(value / step))

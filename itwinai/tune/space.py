"""What is searched: parameters, by their paths in a config, each with a distribution and perhaps a condition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from itwinai.errors import ConfigurationError, did_you_mean
from itwinai.tune.distributions import Choice, Distribution, Range, parse_distribution, same

if TYPE_CHECKING:
    from ray.tune.search.sample import Domain

_WHEN = "when"

# Most numbers of a range along which a scheduler steps.
_FEW = 32


@dataclass(frozen=True)
class Parameter:
    """One parameter of a search.

    Attributes:
        path: in the config, as in ``model.init_args.lr``.
        distribution: what it is drawn from.
        when: the values that other parameters must have, one of those given for each, for this one to be active. It is
            not active either while one of the others is not.
    """

    path: str
    distribution: Distribution
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchSpace:
    """The parameters of a search.

    Searchers and schedulers deal in search values, see `itwinai.tune.distributions`; `active` makes of what was drawn
    what a trial gets.

    Attributes:
        parameters: in the order in which they were given.
    """

    parameters: tuple[Parameter, ...]

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> SearchSpace:
        """Return the space that a mapping describes.

        Args:
            mapping: path to entry. An entry is a mapping of one distribution's name to its arguments, and may have the
                key ``when``: a mapping of other paths to the value, or the list of values, that they must have.
                `itwinai.tune.distributions.parse_distribution` tells of the distributions.

        Raises:
            ConfigurationError: an entry is wrong; the message names its path.
        """
        if not isinstance(mapping, Mapping) or not mapping:
            raise ConfigurationError(
                "The space of a search must map paths of the config to distributions, as in "
                f"`model.init_args.lr: {{loguniform: [1e-5, 1e-1]}}`; it is {mapping!r}."
            )
        without_when: dict[str, tuple[Distribution, Any]] = {}
        for path, entry in mapping.items():
            _check_path(path)
            bare, when = entry, None
            if isinstance(entry, Mapping) and _WHEN in entry:
                bare, when = {name: value for name, value in entry.items() if name != _WHEN}, entry[_WHEN]
            without_when[path] = parse_distribution(path, bare), when
        distributions = {path: distribution for path, (distribution, _) in without_when.items()}
        space = cls(
            tuple(
                Parameter(path, distribution, {} if when is None else _conditions(path, when, distributions))
                for path, (distribution, when) in without_when.items()
            )
        )
        _check_circles(space.parameters)
        return space

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the parameters, in their order."""
        return tuple(parameter.path for parameter in self.parameters)

    @cached_property
    def dependent_last(self) -> tuple[Parameter, ...]:
        """The parameters, each after those that its condition is about."""
        ordered: dict[str, Parameter] = {}
        waiting = list(self.parameters)
        while waiting:
            ready = [parameter for parameter in waiting if all(path in ordered for path in parameter.when)]
            ordered.update((parameter.path, parameter) for parameter in ready)
            waiting = [parameter for parameter in waiting if parameter.path not in ordered]
        return tuple(ordered.values())

    @property
    def has_grid(self) -> bool:
        """Whether all values of some parameter are to be tried."""
        return any(parameter.distribution.is_grid for parameter in self.parameters)

    @property
    def size(self) -> int | float:
        """How many different trials there can be; `math.inf` if a parameter is continuous.

        Inactive parameters make no difference.
        """
        deciding = {path for parameter in self.parameters for path in parameter.when}
        deciders = [parameter for parameter in self.dependent_last if parameter.path in deciding]
        others = [parameter for parameter in self.dependent_last if parameter.path not in deciding]
        return self._count(deciders, others, {})

    def find(self, path: str, wanted_for: str) -> Parameter:
        """Return the parameter of a path.

        Args:
            path: of the parameter.
            wanted_for: beginning of the error, as in ``A starting point``.

        Raises:
            ConfigurationError: there is none; the message names the nearest.
        """
        for parameter in self.parameters:
            if parameter.path == path:
                return parameter
        raise ConfigurationError(
            f"{wanted_for} names '{path}', which is not a parameter of the space.{did_you_mean(path, self.paths)} "
            f"The parameters are {', '.join(self.paths)}."
        )

    def active(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of a trial, without inactive ones.

        Args:
            values: search values by path. Paths that are missing are taken as inactive, others than those of the space
                are left out.

        Returns:
            The values by path, in the order of the space.
        """
        kept: dict[str, Any] = {}
        for parameter in self.dependent_last:
            if parameter.path in values and is_active(parameter, kept):
                kept[parameter.path] = parameter.distribution.decode(values[parameter.path])
        return {path: kept[path] for path in self.paths if path in kept}

    def encode(self, point: Mapping[str, Any], wanted_for: str) -> dict[str, Any]:
        """Return the search values of a point, which need not have all parameters.

        Args:
            point: values by path.
            wanted_for: beginning of the error, as in ``A starting point``.

        Raises:
            ConfigurationError: it has a path that is not in the space, or a value that its parameter cannot have.
        """
        encoded = {}
        for path, given in point.items():
            distribution = self.find(path, wanted_for).distribution
            value = distribution.read(given)
            if not distribution.contains(value):
                raise ConfigurationError(
                    f"{wanted_for} has {given!r} for '{path}', which the space does not allow: {distribution}."
                )
            encoded[path] = distribution.encode(value)
        return encoded

    def sampled_domains(self) -> dict[str, Domain]:
        """Return what Ray draws search values from, by path; a grid is drawn from like a choice."""
        return {parameter.path: parameter.distribution.domain() for parameter in self.parameters}

    def grid_points(self) -> list[dict[str, Any]]:
        """Return the points of the grid: the search values of all grid parameters that are active in each.

        The values of the first grid parameter change last. Without grid parameters there is one point, an empty one.

        Raises:
            ConfigurationError: whether a grid parameter is active depends on one that is drawn at random, so that
                its points are unknown.
        """
        points: list[dict[str, Any]] = [{}]
        for parameter in self.dependent_last:
            if not parameter.distribution.is_grid:
                continue
            self._check_grid_conditions(parameter)
            values = [parameter.distribution.encode(value) for value in _values(parameter)]
            points = list(
                itertools.chain.from_iterable(
                    [{**point, parameter.path: value} for value in values]
                    if is_active(parameter, self.active(point))
                    else [point]
                    for point in points
                )
            )
        return points

    def with_choices_as_grid(self) -> SearchSpace:
        """Return the space in which all values of each choice are to be tried.

        Raises:
            ConfigurationError: a parameter is neither a choice nor a grid.
        """
        for parameter in self.parameters:
            if not isinstance(parameter.distribution, Choice):
                raise ConfigurationError(
                    f"A grid search needs parameters with some values each, and '{parameter.path}' is "
                    f"{parameter.distribution}. Write {{grid: [...]}} for it, or use the searcher 'random': that "
                    "tries each point of the grid with drawn values of the rest."
                )
        return SearchSpace(
            tuple(
                replace(parameter, distribution=replace(parameter.distribution, grid=True))  # type: ignore[type-var]
                for parameter in self.parameters
            )
        )

    def mutable(self) -> tuple[Parameter, ...]:
        """Return the parameters that may change during a trial: those without a condition that are not a grid."""
        return tuple(
            parameter for parameter in self.parameters if not parameter.when and not parameter.distribution.is_grid
        )

    def mutations(self) -> dict[str, Domain | list[Any]]:
        """Return, by path, what a scheduler may change parameters to while a trial runs.

        Ray steps along a list and multiplies everything else by 0.8 or 1.2. A choice is the list of its search values,
        and so is a range of few numbers: a fifth more or less of a small integer is the same integer again.
        """
        mutations: dict[str, Any] = {}
        for parameter in self.mutable():
            distribution = parameter.distribution
            if isinstance(distribution, Choice):
                mutations[parameter.path] = list(distribution.search_values)
            elif isinstance(distribution, Range) and distribution.count <= _FEW:
                mutations[parameter.path] = distribution.values()
            else:
                mutations[parameter.path] = distribution.domain()
        return mutations

    def _check_grid_conditions(self, parameter: Parameter) -> None:
        for path in parameter.when:
            if not self.find(path, "A condition").distribution.is_grid:
                raise ConfigurationError(
                    f"The parameter '{parameter.path}' is a grid, and is active only for some values of '{path}', "
                    f"which is drawn, so the points to try are unknown. Make '{path}' a grid too, or "
                    f"'{parameter.path}' a choice."
                )

    def _count(self, deciders: Sequence[Parameter], others: Sequence[Parameter], known: dict[str, Any]) -> float:
        """Return the number of different trials once some parameters are known.

        Args:
            deciders: not yet known, and others depend on them.
            others: the parameters that none depends on.
            known: the values so far; `_ELSE` for all that no condition is about.
        """
        if not deciders:
            return math.prod(parameter.distribution.count for parameter in others if is_active(parameter, known))
        first, rest = deciders[0], deciders[1:]
        if not is_active(first, known):
            return self._count(rest, others, known)
        named: list[Any] = []
        for value in itertools.chain.from_iterable(parameter.when.get(first.path, ()) for parameter in self.parameters):
            if not any(same(value, other) for other in named):
                named.append(value)
        total = sum(self._count(rest, others, {**known, first.path: value}) for value in named)
        remaining = first.distribution.count - len(named)
        if remaining:
            total += remaining * self._count(rest, others, {**known, first.path: _ELSE})
        return total


class _Else:
    """A value that no condition is about."""


_ELSE = _Else()


def is_active(parameter: Parameter, known: Mapping[str, Any]) -> bool:
    """Return whether a parameter's condition is met.

    Args:
        parameter: the parameter.
        known: the values, not search values, of the active parameters among those that it depends on.
    """
    return all(
        path in known and any(same(known[path], value) for value in accepted)
        for path, accepted in parameter.when.items()
    )


def _values(parameter: Parameter) -> tuple[Any, ...]:
    assert isinstance(parameter.distribution, Choice)
    return parameter.distribution.values


def _check_path(path: Any) -> None:
    if not isinstance(path, str) or not all(path.split(".")):
        raise ConfigurationError(
            f"{path!r} is not a path of a parameter: write the names in the config with dots between, as in "
            "model.init_args.lr."
        )
    if "/" in path:
        raise ConfigurationError(
            f"The path '{path}' has a slash, which Ray treats as a separator of names. Write dots between names."
        )


def _conditions(path: str, when: Any, distributions: Mapping[str, Distribution]) -> dict[str, tuple[Any, ...]]:
    """Return the condition of a parameter: path to the values of which one must be there."""
    if not isinstance(when, Mapping) or not when:
        raise ConfigurationError(
            f"The condition `when` of the parameter '{path}' must map other parameters to their values, as in "
            f"`when: {{model.init_args.optimizer: sgd}}`; it is {when!r}."
        )
    conditions = {}
    for other, given in when.items():
        if other not in distributions:
            raise ConfigurationError(
                f"The condition `when` of the parameter '{path}' is about '{other}', which is not a parameter of the "
                f"space.{did_you_mean(other, distributions)} A value that is fixed in the config needs no condition."
            )
        conditions[other] = _accepted(path, other, given, distributions[other])
    return conditions


def _accepted(path: str, other: str, given: Any, distribution: Distribution) -> tuple[Any, ...]:
    """Return the values that a condition accepts.

    A list means any of them, unless it is itself a value that the parameter can have.
    """
    if distribution.count == math.inf:
        raise ConfigurationError(
            f"The condition `when` of the parameter '{path}' is about '{other}', which is {distribution}: it will "
            "never have exactly some value. Conditions are about parameters with countable values."
        )
    whole = not isinstance(given, (list, tuple)) or distribution.contains(given)
    values = tuple(distribution.read(value) for value in ([given] if whole else given))
    if not values:
        raise ConfigurationError(
            f"The condition `when` of the parameter '{path}' has no values for '{other}': it would never be active."
        )
    for value in values:
        if not distribution.contains(value):
            raise ConfigurationError(
                f"The condition `when` of the parameter '{path}' wants '{other}' to be {value!r}, which it can never "
                f"be: {distribution}."
            )
    # As it will be decoded, so that 0.30000000000000004 and 0.3 are the same.
    return tuple(distribution.decode(distribution.encode(value)) for value in values)


def _check_circles(parameters: Sequence[Parameter]) -> None:
    """Raise an error if a parameter depends on itself, directly or through others."""
    depends_on = {parameter.path: tuple(parameter.when) for parameter in parameters}

    def visit(path: str, above: tuple[str, ...]) -> None:
        if path in above:
            circle = " -> ".join([*above[above.index(path) :], path])
            raise ConfigurationError(
                f"The conditions `when` go in a circle, so that none of its parameters would ever be active: {circle}."
            )
        for other in depends_on[path]:
            visit(other, (*above, path))

    for parameter in parameters:
        visit(parameter.path, ())

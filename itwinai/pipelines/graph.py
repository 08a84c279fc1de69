"""Which step needs which: their order, and the steps that a name or a range stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from itwinai.errors import ConfigurationError, did_you_mean

RANGE = ".."


@dataclass(frozen=True)
class Graph:
    """The needs of all steps.

    Attributes:
        needs: names of the steps that each needs, steps in an order in which they can run.
    """

    needs: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, found: Mapping[str, Mapping[str, str]]) -> Graph:
        """Return the graph of steps.

        Args:
            found: the steps that each needs, by name, and where it says so.

        Raises:
            ConfigurationError: a step needs one that does not exist, or itself over others.
        """
        for name, needs in found.items():
            for other, at in needs.items():
                if other not in found:
                    raise ConfigurationError(
                        f"{at + ': ' if at else ''}steps.{name} needs the step '{other}', which does not exist."
                        f"{did_you_mean(other, found)} Steps are {', '.join(found)}."
                    )
        ordered: dict[str, Sequence[str]] = {}
        waiting = {name: list(needs) for name, needs in found.items()}
        while waiting:
            # The order of the file among those that are free.
            free = next((name for name, needs in waiting.items() if all(one in ordered for one in needs)), None)
            if free is None:
                raise ConfigurationError(_cycle(waiting, found))
            ordered[free] = waiting.pop(free)
        return cls(ordered)

    def above(self, name: str) -> set[str]:
        """Return the step and all that it needs, over others too."""
        return {name}.union(*(self.above(one) for one in self.needs[name]))

    def below(self, name: str) -> set[str]:
        """Return the step and all that need it, over others too."""
        found = {name}
        for other, needs in self.needs.items():  # in an order in which needs come first
            if found & set(needs):
                found.add(other)
        return found

    def select(self, chosen: Sequence[str]) -> list[str]:
        """Return the steps that names and ranges stand for, in an order in which they can run.

        Args:
            chosen: names (``train``) and ranges (``prepare..train``, ``..train``, ``train..``); all steps if empty.

        Raises:
            ConfigurationError: there is no such step, or no way from the first step of a range to the last.
        """
        if not chosen:
            return list(self.needs)
        found: set[str] = set()
        for one in chosen:
            first, dots, last = one.partition(RANGE)
            for name in (first, last):
                if name and name not in self.needs:
                    raise ConfigurationError(
                        f"There is no step '{name}'.{did_you_mean(name, self.needs)} Steps are {', '.join(self.needs)}."
                    )
            if not dots:
                found.add(first)
                continue
            inside = set(self.needs)
            if first:
                inside &= self.below(first)
            if last:
                inside &= self.above(last)
            if not inside:
                raise ConfigurationError(
                    f"{one}: no step leads from {first} to {last}: {last} does not need {first}. Name steps one by one."
                )
            found |= inside
        return [name for name in self.needs if name in found]

    def is_chain(self, names: Sequence[str]) -> bool:
        """Return whether no two of some steps could run side by side."""
        return all(first in self.above(second) for first, second in zip(names, names[1:], strict=False))


def _cycle(waiting: Mapping[str, Sequence[str]], places: Mapping[str, Mapping[str, str]]) -> str:
    """Return the message for steps of which none can be the first."""
    name = next(iter(waiting))
    seen: list[str] = []
    while name not in seen:
        seen.append(name)
        name = next(one for one in waiting[name] if one in waiting)
    circle = [*seen[seen.index(name) :], name]
    at = places[circle[0]][circle[1]]
    return (
        f"{at + ': ' if at else ''}steps need each other in a circle: {' needs '.join(circle)}. Remove one of these "
        "references."
    )

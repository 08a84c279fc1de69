"""What to do next, with the figures that say so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

Data = TypeVar("Data")


@dataclass(frozen=True)
class Recommendation:
    """What to do next.

    Attributes:
        evidence: what was measured, with its figures; a sentence without its full stop.
        text: what to do about it, in sentences.
        weight: how much it matters, for example the share of the time that it costs; larger ones come first.
    """

    evidence: str
    text: str
    weight: float = 0.0

    def __str__(self) -> str:
        return f"{self.evidence}. {self.text}"


Rule = Callable[[Data], Iterable[Recommendation]]
"""A function that yields a recommendation where its condition holds, and nothing where it does not."""


def recommend(data: Data, *rules: Rule[Data]) -> list[str]:
    """Apply rules to data, and return what they recommend, as text: what matters most first.

    Args:
        data: what was measured; each rule gets it.
        rules: the rules. Recommendations of the same weight keep their order.
    """
    found = [recommendation for rule in rules for recommendation in rule(data)]
    return [str(one) for one in sorted(found, key=lambda one: -one.weight)]

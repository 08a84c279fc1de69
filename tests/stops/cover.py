"""Few combinations in which any two values come together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tests.stops.runs import ACCUMULATIONS, LOADERS, TRIGGERS, VALIDATIONS, WORKERS, Case

AXES: tuple[tuple[object, ...], ...] = (
    ACCUMULATIONS,
    tuple(VALIDATIONS),
    TRIGGERS,
    WORKERS,
    tuple(LOADERS),
)


def product() -> list[Case]:
    """Return all combinations that lightning takes."""
    cases = (Case(*values) for values in itertools.product(*AXES))  # type: ignore[arg-type]
    return [case for case in cases if case.possible]


def pairs_of(case: Case) -> set[tuple[tuple[str, object], tuple[str, object]]]:
    """Return the pairs of values that come together in a case."""
    return set(itertools.combinations(vars(case).items(), 2))


def cover() -> Iterator[Case]:
    """Yield cases, always the same, that have all pairs of the product between them."""
    pairs = {case: pairs_of(case) for case in product()}
    missing = set().union(*pairs.values())
    while missing:
        best = max(pairs, key=lambda case: len(pairs[case] & missing))
        missing -= pairs.pop(best)
        yield best

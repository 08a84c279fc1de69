"""Wherever a fit stops, the fit that goes on is bit by bit the one that was not stopped.

Here any two settings come together, at some stops each. All combinations at all stops: ``python -m tests.stops``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stops.cover import cover
from tests.stops.runs import Case, Plateau, check_case, fit, quiet


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    with quiet():
        yield


@pytest.mark.parametrize("case", list(cover()), ids=str)
def test_pairs(case: Case, tmp_path: Path) -> None:
    number = zlib.crc32(str(case).encode())

    def chosen(batch: int, per_epoch: int) -> bool:
        """Stop at the end of an epoch, and somewhere."""
        return batch in (per_epoch, 1 + number % (3 * per_epoch - 1)) or batch % 12 == number % 12

    found = dict(check_case(case, tmp_path, fit(case, []), chosen))
    assert not {stop: differs for stop, differs in found.items() if differs}
    assert found


@pytest.mark.parametrize("validation", ["none", "epoch", "half"])
def test_plateau(validation: str, tmp_path: Path) -> None:
    """The scheduler reads a mean of the whole epoch, also when the epoch was gone on with."""
    case = Case(1, validation, "steps", 0, "shuffled")
    found = dict(check_case(case, tmp_path, fit(case, [], None, Plateau), lambda batch, _: batch % 4 == 1, Plateau))
    assert not {stop: differs for stop, differs in found.items() if differs}

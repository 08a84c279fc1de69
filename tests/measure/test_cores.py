"""The cores that workers have, alone and together."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from itwinai.measure.cores import cores_of_each, own_cores, quota


def test_own_cores_are_those_that_the_process_is_bound_to() -> None:
    before = os.sched_getaffinity(0)
    one = min(before)
    os.sched_setaffinity(0, {one})
    try:
        assert own_cores() == {one}
    finally:
        os.sched_setaffinity(0, before)
    assert own_cores() == before


@pytest.mark.parametrize(("text", "expected"), [("200000 100000\n", 2.0), ("max 100000\n", math.inf), ("", math.inf)])
def test_limit_of_a_container(text: str, expected: float, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert quota(tmp_path / "cpu.max") == expected
    assert quota(tmp_path / "missing") == math.inf


def test_workers_share_cores_or_have_their_own() -> None:
    shared, own = frozenset(range(8)), [frozenset(range(4)), frozenset(range(4, 8))]
    assert cores_of_each([shared], math.inf) == 8
    assert cores_of_each([shared, shared], math.inf) == cores_of_each(own, math.inf) == 4
    assert cores_of_each([shared, shared], 3.5) == 1
    assert cores_of_each([shared] * 12, math.inf) == 1

"""The gate of the benchmark names what got slower, and nothing that is only noise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.performance.cases import CASES, COMPILED, ITWINAI, RAW
from tests.performance.measure import Result, Sample
from tests.performance.regression import compare, keep, table


def measured(itwinai: list[float], compiled: list[float]) -> Result:
    """Return repeats in which a raw step takes a second."""
    samples = [
        Sample(name, repeat, wall=seconds, cpu=seconds)
        for name, repeats in ((RAW, [1.0, 1.0]), (ITWINAI, itwinai), (COMPILED, compiled))
        for repeat, seconds in enumerate(repeats)
    ]
    return Result(CASES["off"], tuple(samples))


def test_gate(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    before = measured([1.2, 1.3], [0.3, 0.3])
    assert {one.verdict for one in compare([before], kept)} == {"not kept yet"}
    keep([before], kept)
    assert {one.verdict for one in compare([before], kept)} == {"as it was"}
    noisy, slower = compare([measured([1.3, 1.9], [0.36, 0.42])], kept)
    assert not noisy.is_slower and slower.is_slower
    assert slower.now == pytest.approx(0.39) and slower.verdict == "SLOWER by 30%"
    assert "off" in table([slower]) and "SLOWER by 30%" in table([slower])
    faster, _ = compare([measured([1.0, 1.0], [0.3, 0.3])], kept)
    assert faster.verdict == "faster: keep it"

"""One way to write a number, a time, a share and a name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from itwinai.reporting.formatting import (
    Unit,
    bytes_text,
    energy_text,
    estimate_text,
    number_text,
    percent_text,
    shortened,
    span_text,
    time_text,
    traffic_text,
    value_text,
)


@dataclass(frozen=True)
class Estimate:
    mean: float
    low: float | None = None
    high: float | None = None


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(12345.6, 12225.6, 12465.6), "12,346 ± 120"),
        (Estimate(4.821, 4.819, 4.823), "4.821 ± 0.002"),
        (Estimate(3.8, 3.1, 4.7), "3.80 (3.10 to 4.70)"),
        (Estimate(0.0213), "0.0213"),
        (None, "-"),
    ],
)
def test_estimates_have_as_many_digits_as_are_known(estimate: Estimate | None, text: str) -> None:
    assert estimate_text(estimate) == text


def test_numbers_and_estimates_have_the_same_handy_units() -> None:
    assert time_text(0.0123) == time_text(Estimate(0.0123)) == "12.3 ms"
    assert time_text(Estimate(0.0123, 0.0119, 0.0127)) == "12.3 ± 0.4 ms"
    assert [time_text(value) for value in (0.9999, 2.5e-5, 0, 12)] == ["1.00 s", "25.0 µs", "0 s", "12.0 s"]
    assert bytes_text(1.5 * 2**30) == "1.50 GiB" and bytes_text(None) == time_text(None) == "-"
    assert [traffic_text(size) for size in (1.5e9, 999.96e6, 64.0, 0.0)] == ["1.50 GB", "1.00 GB", "64.0 B", "0 B"]
    assert energy_text(0.00341) == "3.41 mJ"
    assert [percent_text(value) for value in (0.314, 0.0314, 0.0, 1)] == ["31 %", "3.1 %", "0 %", "100 %"]
    assert percent_text(Estimate(0.31, 0.29, 0.33)) == "31.0 ± 2.0 %"
    assert estimate_text(Estimate(0.0123), Unit("ms", 1e-3)) == "12.3 ms"
    assert [number_text(value) for value in (1234.4, 12.34, 0.5, 3e-7)] == ["1,234", "12.3", "0.500", "3.00e-07"]


def test_values_of_parameters_and_metrics_can_be_copied() -> None:
    assert [value_text(value) for value in (0.1, 1e-5, 33210.4, 1234567.0, 12345678)] == [
        *("0.1", "1e-05", "33210", "1.235e+06", "12345678")
    ]
    assert [value_text(value) for value in ("adam", True, None, [1, 2], float("nan"))] == [
        *("adam", "true", "null", "[1, 2]", "nan")
    ]


def test_long_text_keeps_the_part_that_tells() -> None:
    assert shortened("abcdefghij", 5) == "abcd…"
    assert shortened("abcdefghij", 5, "end") == "…ghij"
    assert shortened("abcdefghij", 5, "both") == "ab…ij"
    assert shortened(" a\n b ", 5, "both") == "a b"


def test_durations_are_no_more_precise_than_people_need() -> None:
    assert [span_text(value) for value in (1.0, 1.52, 59.6, 485, 7800, 3e5)] == [
        *("1 s", "1.5 s", "1 min", "8 min 05 s", "2 h 10 min", "3.47 days")
    ]

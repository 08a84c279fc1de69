"""Energy is the difference of a counter, or the integral of power over the times at which it was read."""

from __future__ import annotations

import pytest

from itwinai.monitoring.energy import CounterMeter, EnergySource, EnergyUse, Meter, PowerMeter


def fed(meter: Meter, *readings: tuple[float, float]) -> Meter:
    for value, at in readings:
        meter.add(value, at)
    return meter


def test_counter() -> None:
    meter = fed(CounterMeter(1e-3), (5000, 100.0), (6000, 101.0), (9000, 103.5))
    assert (meter.joules, meter.seconds) == (pytest.approx(4.0), 3.5)


def test_counter_that_wraps_around() -> None:
    meter = fed(CounterMeter(1e-6, wraps_at=10e6), (9e6, 0.0), (2e6, 1.0), (3e6, 2.0))
    assert (meter.joules, meter.seconds) == (pytest.approx(4.0), 2.0)


def test_counter_that_was_reset_leaves_a_gap() -> None:
    meter = fed(CounterMeter(1.0), (100, 0.0), (110, 1.0), (3, 2.0), (8, 3.0))
    assert (meter.joules, meter.seconds) == (15.0, 2.0)


def test_power_is_integrated_over_the_real_times() -> None:
    meter = fed(PowerMeter(), (100, 0.0), (200, 1.0), (200, 4.0))
    assert (meter.joules, meter.seconds) == (150 + 600, 4.0)


def test_one_reading_gives_no_energy() -> None:
    assert EnergySource("gpu0", "gpu0_power_w", fed(PowerMeter(), (100, 0.0))).use() is None
    use = EnergySource("gpu0", "gpu0_power_w", fed(PowerMeter(), (100, 0.0), (100, 2.0))).use()
    assert use == EnergyUse("gpu0", 200.0, 2.0, "power")

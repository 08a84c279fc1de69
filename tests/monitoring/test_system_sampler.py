"""The sampler's thread goes on whatever fails, keeps what it has, counts its cost, and ends when it shall."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest

from itwinai.monitoring import system_sampler as module
from itwinai.monitoring.gauges import Gauge, Gauges, Instruments, Rate
from itwinai.monitoring.system_sampler import Sampled, Sampler


def running(*instruments: Instruments, **openers: Callable[[], Instruments]) -> Sampler:
    constant = {str(number): (lambda it=it: it) for number, it in enumerate(instruments)}
    sampler = Sampler({**constant, **openers}, 0.001, "node")  # type: ignore[dict-item]
    sampler.start()
    return sampler


def after(samples: int, sampler: Sampler) -> Sampled:
    while sampler.sampled().cost.samples < samples:
        pass
    sampler.stop()
    return sampler.sampled()


def test_gauge_that_fails_is_named_once_and_the_others_continue(caplog: pytest.LogCaptureFixture) -> None:
    numbers = itertools.count(1)

    def fails() -> tuple[float, float]:
        if (number := next(numbers)) > 2:
            raise OSError("gone")
        return number, 10 * number

    gauges = [Gauge(("a", "b"), fails), Gauge(("c",), lambda: (1.0,)), Gauge(("d",), lambda: (None,))]
    result = after(6, running(Instruments(gauges, missing={"e": "not here"})))
    assert result.quantities["a"].samples == result.quantities["b"].samples == 2
    assert result.quantities["b"].peak == 20
    assert result.quantities["c"].samples >= 6
    assert "d" not in result.quantities  # not known yet is neither missing nor zero
    assert result.missing == {
        "a": "gone; from 0 s after the start on",
        "b": "gone; from 0 s after the start on",
        "e": "not here",
    }
    assert sum("a, b can no longer be measured" in record.getMessage() for record in caplog.records) == 1


def test_what_cannot_be_opened_is_named_and_the_rest_is_sampled() -> None:
    def broken() -> Instruments:
        raise AttributeError("another version")

    result = after(2, running(Instruments([Gauge(("c",), lambda: (1.0,))]), broken=broken))
    assert result.missing == {"broken": "AttributeError: another version"}
    assert result.quantities["c"].samples >= 2


def test_first_and_last_sample_read_everything() -> None:
    """However slow a gauge is, it covers the whole fit."""
    ended = threading.Event()

    def slow() -> tuple[float]:
        sum(range(200_000))
        return (float(ended.is_set()),)

    sampler = running(Instruments([Gauge(("slow",), slow, share=1e-6), Gauge(("quick",), lambda: (1.0,))]))
    while sampler.sampled().cost.samples < 5:
        pass
    ended.set()
    result = after(5, sampler)
    assert result.quantities["slow"].samples == 2
    assert result.quantities["slow"].peak == 1.0
    assert result.quantities["quick"].samples >= 5


def test_slow_gauge_is_read_less_often() -> None:
    reads = []
    gauges = Gauges([Gauge(("slow",), lambda: reads.append(sum(range(500_000))) or (1.0,), share=1e-3)], {}, "node")
    for _ in range(50):
        list(gauges.read())
    assert len(reads) == 1


def test_cost_is_counted() -> None:
    burn = Gauge(("burn",), lambda: (float(sum(range(100_000))),), share=1.0)
    cost = after(5, running(Instruments([burn]))).cost
    assert cost.samples >= 5
    assert 1e-4 < cost.seconds_per_sample < 1
    assert 0 < cost.share <= 1.05
    assert cost.seconds >= cost.cpu_seconds


def test_driver_that_hangs_does_not_keep_the_run_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    inside, release = threading.Event(), threading.Event()

    def hangs() -> tuple[float]:
        inside.set()
        release.wait()
        return (2.0,)

    sampler = running(Instruments([Gauge(("c",), lambda: (1.0,)), Gauge(("hangs",), hangs)]))
    inside.wait()
    sampler.stop()
    result = sampler.sampled()
    release.set()
    assert "the last sample did not come" in result.missing["everything"]
    assert result.quantities["c"].samples == 1


def test_closes_what_it_has_opened_and_ends_its_thread() -> None:
    closed: list[bool] = []
    sampler = running(Instruments(close=lambda: closed.append(True)))
    after(1, sampler)
    sampler.stop()  # and a second time
    assert closed == [True]
    assert "itwinai-system-monitor" not in {thread.name for thread in threading.enumerate()}


def test_rate() -> None:
    rate = Rate(shortest=0)
    assert rate(100.0) is None
    assert (first := rate(100.0)) is not None and first == 0
    assert (second := rate(200.0)) is not None and second > 0
    slow = Rate(shortest=1000)
    assert [slow(1.0), slow(2.0)] == [None, None]

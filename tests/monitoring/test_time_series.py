"""What is kept of samples is weighed by time, and does not grow with a run."""

from __future__ import annotations

import pytest

from itwinai.monitoring.time_series import Downsampler, Recorder


def test_sample_stands_for_the_time_since_the_one_before() -> None:
    recorder = Recorder(began=100.0)
    for value, at in ((50.0, 101.0), (100.0, 101.1), (50.0, 102.0)):
        recorder.add("cpu_percent", value, at)
    quantity = recorder.quantities()["cpu_percent"]
    assert quantity.mean == pytest.approx((50 * 1.9 + 100 * 0.1) / 2)
    assert (quantity.peak, quantity.samples, quantity.seconds) == (100.0, 3, pytest.approx(2.0))
    assert [value for _, value in quantity.course] == [50.0, 100.0, 50.0]


def test_means_since_the_last_time() -> None:
    recorder = Recorder(began=0.0)
    recorder.add("a", 1.0, 1.0)
    recorder.add("a", 3.0, 2.0)
    recorder.add("b", 7.0, 2.0)
    assert recorder.take_means() == {"a": 2.0, "b": 7.0}
    recorder.add("a", 5.0, 3.0)
    assert recorder.take_means() == {"a": 5.0}  # b was not sampled
    assert recorder.take_means() == {}
    assert recorder.quantities()["a"].mean == 3.0


def test_course_of_a_long_run_has_few_points_that_still_cover_it() -> None:
    course = Downsampler(limit=8)
    for at in range(1000):
        course.add(float(at), 2.0 * at)
    points = course.points()
    assert len(points) <= 9
    assert all(value == pytest.approx(2 * at) for at, value in points)
    assert points[0][0] < 128
    assert points[-1][0] > 872
    assert list(points) == sorted(points)

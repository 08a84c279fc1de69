"""How a fit went: its speed is that of training, and its time is told by what it went into."""

from __future__ import annotations

from dataclasses import replace

import pytest

from itwinai.reporting.sections.run import RunTimes, TimeSplit, run_section
from itwinai.run_info.launch_info import Launch
from itwinai.run_info.run import RunFacts

LAUNCH = Launch("ddp", 2, 1, 2, "cpu", "torchrun", "host", None)
FACTS = RunFacts(None, {}, LAUNCH, "32-true", 1, None, "train.py", "2026-01-01T00:00:00+01:00")
TIME = TimeSplit(training=40.0, recorded=2.0, validation=50.0, timed_batches=80)
COURSE = RunTimes("Module", "finished", 100.0, 1, 100, 100, 16_000, "", TIME, "", False)


def told(course: RunTimes) -> dict[str, str]:
    return dict(run_section(course, FACTS, []).facts)


def test_speed_is_that_of_the_training_batches_that_were_timed() -> None:
    assert told(COURSE)["samples"] == "16,000, 320 per second in training batches"  # 80 of 100 batches in 40 s
    assert told(COURSE)["trained"] == "1 epoch, 100 steps in 1 min 40 s"


def test_time_is_told_by_what_it_went_into() -> None:
    assert told(COURSE)["time"] == "training 40 %, recording operators 2 %, validation 50 %, checkpoints and other 8 %"
    assert sum(TIME.shares(100.0).values()) == pytest.approx(1)
    without_recording = replace(COURSE, time=replace(TIME, recorded=0.0))
    assert told(without_recording)["time"] == "training 40 %, validation 50 %, checkpoints and other 10 %"


def test_where_no_clock_ran_validation_is_left_out_all_the_same() -> None:
    course = replace(COURSE, time=TimeSplit(None, 0.0, 50.0, 0))
    assert told(course)["samples"] == "16,000, 320 per second with validation left out"
    assert told(course)["time"] == "validation 50 %, training and all else 50 %"


def test_samples_that_are_not_known_are_told_with_the_reason() -> None:
    course = replace(COURSE, samples=None, unknown_samples="nobody counts")
    section = run_section(course, FACTS, [])
    assert "samples" not in section.facts
    assert section.facts["batches"] == "100, 2 per second in training batches"
    assert section.missing == ["the number of samples: nobody counts"]


def test_a_run_that_has_ended_before_its_first_batch() -> None:
    section = run_section(replace(COURSE, batches=0, samples=0, time=TimeSplit(None, 0.0, 0.0, 0)), FACTS, [])
    assert section.facts.keys() == {"run", "trained"}
    assert section.missing == []

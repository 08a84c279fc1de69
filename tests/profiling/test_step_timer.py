"""The clock of training steps, on a clock of our own so that the numbers are known."""

from __future__ import annotations

import pytest

from itwinai.profiling import step_timer
from itwinai.profiling.step_timer import KEPT, Communication, Phase, Reading, StepClock, percentile, split_of


class Time:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(step_timer, "perf_counter_ns", time)
    return time


def run_step(clock: StepClock, time: Time, **spent: int) -> None:
    clock.begin()
    for name, nanoseconds in spent.items():
        time.now += nanoseconds
        clock.mark(Phase[name])
    clock.end()


def test_each_phase_gets_the_time_since_the_mark_before(time: Time) -> None:
    clock = StepClock()
    run_step(clock, time, DATA=10, FORWARD=30, BACKWARD=50, OPTIMIZER=5)
    run_step(clock, time, DATA=20, FORWARD=30, BACKWARD=70, OPTIMIZER=5)
    split = split_of(clock)
    assert split is not None
    assert split.phases == pytest.approx(
        {Phase.DATA: 15e-9, Phase.FORWARD: 30e-9, Phase.BACKWARD: 60e-9, Phase.OPTIMIZER: 5e-9}
    )
    assert split.step == pytest.approx(110e-9)
    assert split.rest == pytest.approx(0, abs=1e-15)
    assert split.share(Phase.DATA) == pytest.approx(15 / 110)
    assert split.communication is None and split.overlap is None


def test_what_lies_between_phases_is_the_rest_and_between_steps_is_counted_by_itself(time: Time) -> None:
    clock = StepClock()
    run_step(clock, time, FORWARD=30)
    time.now += 200  # a validation
    clock.begin()
    time.now += 30
    clock.mark(Phase.FORWARD)
    time.now += 8
    clock.end()
    clock.pause()
    time.now += 10_000  # the next epoch's start
    run_step(clock, time, FORWARD=30)
    split = split_of(clock)
    assert split is not None
    assert split.rest == pytest.approx(8e-9 / 3)
    assert split.between == pytest.approx(200e-9 / 3)
    assert split.longest == pytest.approx(38e-9)


def test_waiting_within_a_phase_is_taken_from_it(time: Time) -> None:
    clock = StepClock()
    clock.covers_gradients = True
    clock.begin()
    time.now += 100
    clock.communicated(exposed=40, total=70)
    clock.mark(Phase.BACKWARD)
    time.now += 5
    clock.mark(Phase.COMMUNICATION)  # of logged values
    clock.end()
    split = split_of(clock)
    assert split is not None
    assert split.phases == pytest.approx({Phase.BACKWARD: 60e-9, Phase.COMMUNICATION: 45e-9})
    assert split.communication == pytest.approx(75e-9)
    assert split.overlap == pytest.approx(1 - 45 / 75)


def test_what_is_broken_off_or_left_out_is_counted_once_or_not_at_all(time: Time) -> None:
    clock = StepClock()
    run_step(clock, time, FORWARD=30)
    time.now += 5
    clock.begin()
    clock.discard()
    time.now += 700
    clock.end()
    time.now += 5
    run_step(clock, time, FORWARD=30)
    clock.begin()  # and there is no batch left
    time.now += 11
    clock.pause()
    time.now += 10_000  # between epochs
    run_step(clock, time, FORWARD=30)
    assert (clock.steps, clock.step_time, clock.left_out) == (3, 90, 700)
    assert clock.between == clock.reading().between == 5 + 5 + 11


def test_waits_for_the_first_batch_of_later_epochs_are_told_by_themselves(time: Time) -> None:
    clock = StepClock(every=5)
    for epoch in range(3):
        began = time.now
        run_step(clock, time, DATA=900 if epoch else 7000, FORWARD=30)  # workers of the loader start
        assert clock.epoch_began == began
        for _ in range(7):
            run_step(clock, time, DATA=10, FORWARD=30)
        clock.pause()
        time.now += 10_000
    assert (clock.later_epochs, clock.waited_at_start) == (2, 1800)
    # Of 24 steps 0 to 4 are split, and 5, 8, 10, 15, 16, 20: 8 and 16 begin an epoch.
    assert clock.split_steps == 11
    assert clock.spent[Phase.DATA] == 7000 + 8 * 10
    assert clock.spent[Phase.FORWARD] == 11 * 30
    assert clock.split_time == sum(clock.spent)
    assert clock.step_time == 7000 + 2 * 900 + 21 * 10 + 24 * 30


def test_what_the_engine_has_waited_during_backward_is_taken_from_backward(time: Time) -> None:
    clock = StepClock()
    clock.covers_gradients = True
    run_step(clock, time, FORWARD=50, BACKWARD=100, COMMUNICATION=10)
    for slower in (1, 3):  # the engine may have measured other, slower steps
        engine = Communication(total=slower * 60e-9, overlapped=slower * 20e-9, computing=slower * 60e-9)
        split = split_of(clock, engine=engine)
        assert split is not None
        assert split.phases[Phase.BACKWARD] == pytest.approx(60e-9)
        assert split.phases[Phase.COMMUNICATION] == pytest.approx(50e-9)
        assert split.communication == pytest.approx(70e-9)
        assert split.overlap == pytest.approx(20 / 70)


def test_a_reading_can_leave_out_what_was_before_another(time: Time) -> None:
    clock = StepClock()
    run_step(clock, time, FORWARD=1_000_000)  # the first step of a run is slow
    before = clock.reading()
    run_step(clock, time, FORWARD=30)
    run_step(clock, time, FORWARD=50)
    split = split_of(clock, since=before)
    assert split is not None
    assert (split.steps, split.step, split.p50, split.p95) == (2, 40e-9, 30e-9, 50e-9)
    assert split_of(clock, since=clock.reading()) is None
    assert split_of(StepClock()) is None


def test_a_step_that_was_broken_off_does_not_count(time: Time) -> None:
    clock = StepClock()
    clock.begin()
    time.now += 77
    clock.mark(Phase.FORWARD)  # and then an exception, or the end of the data
    run_step(clock, time, FORWARD=30)
    split = split_of(clock)
    assert split is not None and split.steps == 1 and split.phases == {Phase.FORWARD: 30e-9}


def test_on_an_accelerator_only_some_steps_are_split_and_these_wait_for_it(time: Time) -> None:
    waited: list[int] = []

    def synchronize() -> None:
        time.now += 7  # what the device had still to do
        waited.append(time.now)

    clock = StepClock(synchronize, every=3)
    for _ in range(3):  # at first, each
        run_step(clock, time, FORWARD=10, BACKWARD=10)
    assert len(waited) == 3 * 3  # at the start, and after each of two phases
    before = clock.reading()
    waited.clear()
    for _ in range(6):
        run_step(clock, time, FORWARD=10, BACKWARD=10)
    assert len(waited) == 2 * 3
    split = split_of(clock, before)
    assert split is not None
    assert split.steps == 6
    assert split.phases == pytest.approx({Phase.FORWARD: 17e-9, Phase.BACKWARD: 17e-9})
    # What the device had still to do after the two steps between is theirs.
    assert split.step == pytest.approx((4 * 20 + 7 + 2 * 34) / 6 * 1e-9)


def test_durations_of_the_last_steps_are_kept_and_no_more(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_timer, "KEPT", 5)
    clock = StepClock()
    for duration in range(1, 13):
        run_step(clock, time, FORWARD=duration)
    assert sorted(clock.last(3)) == [10, 11, 12]
    assert sorted(clock.last(100)) == [8, 9, 10, 11, 12]
    assert clock.steps == 12
    assert KEPT > 1000


def test_percentiles_are_those_of_the_nearest_rank() -> None:
    assert [percentile([10, 20, 30, 40], p) for p in (1, 25, 50, 51, 95, 100)] == [10, 10, 20, 30, 40, 40]
    assert percentile([7], 50) == 7


def test_a_reading_since_nothing_is_the_reading() -> None:
    reading = Reading(3, 3, (1,) * len(Phase), 9, 9, 2, 4)
    assert reading.since(Reading()) == reading


def test_a_step_can_be_left_out_and_a_warm_reading_leaves_out_the_first_ones(time: Time) -> None:
    clock = StepClock()
    for step in range(30):
        clock.begin()
        time.now += 1000 if step < 10 or step == 20 else 10
        clock.communicated(exposed=1, total=2)
        clock.mark(Phase.FORWARD)
        if step == 20:
            clock.discard()
        clock.end()
    assert clock.warm is not None
    split = split_of(clock, clock.warm)
    assert split is not None
    assert split.steps == 19
    assert split.longest == pytest.approx(10e-9)
    assert split.phases[Phase.COMMUNICATION] == pytest.approx(1e-9)


def test_begin_tells_whether_the_step_is_split(time: Time) -> None:
    clock = StepClock(every=7)
    told = []
    for _ in range(30):
        told.append(clock.begin())
        clock.mark(Phase.FORWARD)
        clock.end()
    assert [step for step, split in enumerate(told) if split] == [0, 1, 2, 3, 4, 5, 6, 7, 14, 21, 28]
    assert clock.reading().split_steps == 11 and clock.steps == 30


def test_what_the_accelerator_has_still_to_do_belongs_to_the_steps_that_gave_it_the_work(time: Time) -> None:
    due = 0  # a stand-in for a GPU: when it has done all that it was told

    def synchronize() -> None:
        time.now = max(time.now, due)

    clock = StepClock(synchronize, every=4)
    for number in range(10):
        split = clock.begin()
        time.now += 2  # the host tells it what to do
        due = max(due, time.now) + 10
        if split:
            clock.mark(Phase.FORWARD)
        clock.end()
        if number == 4:
            time.now += 3  # a callback between the steps
    clock.wait_for_device()
    clock.pause()
    split = split_of(clock)
    assert split is not None
    # Those that are split wait for it, 12 each; of the other 4 the host saw 2 each.
    assert split.step == pytest.approx((6 * 12 + (2 + 3 * 10) + (2 + 10)) * 1e-10)
    assert split.p50 == split.longest == pytest.approx(12e-9)
    assert split.between == pytest.approx(3e-10)

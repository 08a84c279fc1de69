"""Advice about training steps: given when its figures say so, and only then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from itwinai.profiling.step_timer import Phase, StepSplit
from itwinai.reporting.sections.step_recommendations import FEWEST, Setting, advise, too_few

PLAIN = {Phase.DATA: 0.2, Phase.FORWARD: 4.0, Phase.BACKWARD: 5.0, Phase.OPTIMIZER: 0.8}


def split(between: float = 0.0, communication: float | None = None, steps: int = 100, **changed: float) -> StepSplit:
    """Return the split of a step, with times in milliseconds."""
    phases = {**PLAIN, **{Phase[name]: time for name, time in changed.items()}}
    step = sum(phases.values()) / 1e3
    return StepSplit(
        steps, steps, step, between / 1e3, {p: t / 1e3 for p, t in phases.items()}, 0.0, communication, step, step, step
    )


def test_a_step_without_anything_to_mend_gets_no_advice() -> None:
    assert advise([split()], Setting(loader_workers=4, batch_size=64)) == []
    assert advise([split(communication=0.002, COMMUNICATION=1.0)] * 2, Setting(loader_workers=4)) == []


def test_nothing_is_concluded_from_a_few_steps() -> None:
    few = split(DATA=40.0, steps=FEWEST - 1)
    assert advise([few, split()], Setting(loader_workers=0)) == []
    assert too_few([split(), few]).endswith("only 19 steps were timed; it needs 20 for any advice")
    assert "only 1 step was timed" in too_few([split(steps=1)])
    assert too_few([split(steps=FEWEST)]) == ""
    assert advise([split(DATA=40.0, steps=FEWEST)], Setting(loader_workers=0))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (Setting(loader_workers=0, cores=8), "num_workers=7, persistent_workers=True"),
        (Setting(loader_workers=0, cores=64), "num_workers=8,"),
        (Setting(loader_workers=0, cores=2), "2 cores per training worker leave none for workers"),
        (Setting(loader_workers=0, cores=1), "1 core per training worker leave none"),
        (Setting(loader_workers=0, cores=2, on_gpu=True), "num_workers=1,"),
        (Setting(loader_workers=0, cores=1, on_gpu=True), "leave none for workers of the DataLoader"),
        (Setting(loader_workers=2, cores=8), "with num_workers=2. Try num_workers=4"),
        (Setting(loader_workers=2, cores=4), "with num_workers=2, and 4 cores per training worker are too few"),
        (Setting(loader_workers=None), "not a DataLoader"),
    ],
)
def test_waiting_for_data_is_told_with_its_share_and_what_the_cores_have_room_for(setting: Setting, words: str) -> None:
    (advice,) = advise([split(DATA=14.0)], setting)
    assert "59 % of the step waits for data" in advice
    assert words in advice
    assert "num_workers=1," not in advice or setting.on_gpu


def test_batches_that_are_read_faster_than_handed_over_need_no_workers() -> None:
    quick = split(DATA=0.2, FORWARD=0.1, BACKWARD=0.1, OPTIMIZER=0.1)
    (advice,) = advise([quick], Setting(loader_workers=0, cores=64))
    assert "40 % of the step waits for data, but that is only 200 µs" in advice and "num_workers" not in advice


def test_workers_that_start_in_each_epoch_are_told_of_with_their_seconds() -> None:
    slow = Setting(loader_workers=4, cores=8, later_epochs=9, epoch_start=0.25)
    (advice,) = advise([split()], slow)
    assert "(num_workers=4): 250 ms until the first batch, 2.25 s in all 9 epochs after the first" in advice
    assert "persistent_workers=True" in advice
    assert advise([split()], replace(slow, keeps_workers=True)) == []
    assert advise([split()], replace(slow, loader_workers=0)) == []
    assert advise([split()], replace(slow, epoch_start=0.01)) == []
    assert advise([split(steps=100_000)], slow) == []  # too little of the whole


def test_the_slowest_worker_is_named_and_its_excess() -> None:
    slow = split(communication=0.001, FORWARD=8.0, COMMUNICATION=0.1)
    fast = split(communication=0.005, COMMUNICATION=4.1)
    (advice,) = advise([fast, fast, slow, fast], Setting(loader_workers=4))
    assert "Rank 2 is the slowest: 14.0 ms of own work per step, and the others 10.0 ms" in advice


def test_waiting_for_others_is_told_with_what_overlaps() -> None:
    (advice,) = advise([split(communication=0.016, COMMUNICATION=8.0)] * 2, Setting(loader_workers=4))
    assert "Waiting for other workers takes at least 44 % of the step" in advice and "50 % of the exchange" in advice
    assert advise([split(COMMUNICATION=8.0)], Setting(loader_workers=4)) == []  # a single one waits for nobody


def test_copies_hooks_loggers_and_validation() -> None:
    on_gpu = Setting(loader_workers=4, on_gpu=True)
    assert "pin_memory=True" in advise([split(TRANSFER=4.0)], on_gpu)[0]
    assert "transfer_batch_to_device" in advise([split(TRANSFER=4.0)], Setting(loader_workers=4))[0]
    assert "log_every_n_steps is 1" in advise([split(LOGGING=4.0)], Setting(loader_workers=4, log_every_n_steps=1))[0]
    assert "hooks of callbacks" in advise([split(CALLBACKS=4.0)], Setting(loader_workers=4))[0]
    assert "50 % of the time within epochs" in advise([split(between=10.0)], Setting(loader_workers=4))[0]


def test_what_costs_most_stands_first() -> None:
    advice = advise([split(DATA=4.0, LOGGING=8.0)], Setting(loader_workers=0))
    assert ["loggers" in text for text in advice] == [True, False]


def test_tiny_steps_are_told_of_larger_batches() -> None:
    tiny = StepSplit(40, 40, 3e-4, 0.0, {Phase.FORWARD: 2e-4, Phase.BACKWARD: 1e-4}, 0.0, None, 3e-4, 3e-4, 3e-4)
    (advice,) = advise([tiny], Setting(loader_workers=0, batch_size=16))
    assert "300 µs" in advice
    assert "above 16" in advice

"""When trials and searches end early."""

from __future__ import annotations

import math
from typing import Any

from itwinai.tune.settings import Settings
from itwinai.tune.stopper import SearchStopper


def stopper(is_hopeless: bool = False, **settings: Any) -> SearchStopper:
    """Return a stopper."""
    return SearchStopper(Settings(space={"x": {}}, metric="loss", **settings), lambda: is_hopeless)


def told(stopping: SearchStopper, values: list[float], trial: str = "a") -> list[bool]:
    """Return what a stopper says to the reports of a trial."""
    return [stopping(trial, {"loss": value, "training_iteration": number + 1}) for number, value in enumerate(values)]


def test_a_trial_ends_when_it_has_not_become_better_for_long_enough() -> None:
    assert told(stopper(early_stopping=2), [3, 2, 2, 2.5]) == [False, False, False, True]
    assert told(stopper(early_stopping=2, mode="max"), [1, 2, 3, 2, 1]) == [False, False, False, False, True]
    assert told(stopper(early_stopping=2), [math.nan] * 3) == [False, False, True]
    assert not any(told(stopper(), [1.0] * 50))


def test_trials_are_counted_each_for_itself() -> None:
    stopping = stopper(early_stopping=2)
    assert told(stopping, [1, 2], "a") == [False, False]
    assert told(stopping, [5, 6, 7], "b") == [False, False, True]


def test_a_trial_ends_after_so_many_reports() -> None:
    assert told(stopper(max_reports=2), [3, 2, 1]) == [False, True, True]


def test_a_search_ends_at_its_target_or_without_hope() -> None:
    stopping = stopper(target=0.5)
    told(stopping, [2, math.nan, 0.6])
    assert not stopping.stop_all()
    told(stopping, [0.5])
    assert stopping.stop_all()
    assert stopper(is_hopeless=True).stop_all()
    high = stopper(target=0.9, mode="max")
    told(high, [0.95])
    assert high.stop_all()

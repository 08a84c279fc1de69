"""The importance of parameters is that of the function behind the records."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable
from typing import Any

import optuna
import pytest

from itwinai.errors import ConfigurationError
from itwinai.trials.records import Objective, Range, Report, SearchRecord, TrialRecord
from itwinai.tune.importance import importances
from tests.support.searches import LOSS, LR, OPTIMIZER, SPEED, WIDTH, search

MIN, MAX = Objective("y", "min"), Objective("y", "max")
Draw = Callable[[random.Random], dict[str, Any]]


def record_of(
    draw: Draw, value: Callable[[dict[str, Any]], float], trials: int = 150, objective: Objective = MIN
) -> SearchRecord:
    rng = random.Random(4)
    drawn = [draw(rng) for _ in range(trials)]
    made = tuple(
        TrialRecord(number, f"t{number}", parameters, "finished", (Report(1, 1.0, {"y": value(parameters)}),))
        for number, parameters in enumerate(drawn)
    )
    return SearchRecord("s", (objective,), tuple(dict.fromkeys(path for one in drawn for path in one)), made)


def four(rng: random.Random) -> dict[str, Any]:
    return {
        "lr": 10 ** rng.uniform(-5, -1),
        "depth": rng.randint(1, 40),
        "kind": rng.choice(["a", "b", "c"]),
        "on": rng.random() < 0.5,
    }


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("lr", lambda one: abs(one["lr"] - 3e-4) / one["lr"]),
        ("depth", lambda one: abs(one["depth"] - 20)),
        ("kind", lambda one: one["kind"] != "b"),
        ("on", lambda one: not one["on"]),
    ],
)
def test_the_parameter_that_matters_is_found(path: str, value: Callable[[dict[str, Any]], float]) -> None:
    found = importances(record_of(four, lambda one: float(value(one))), MIN)
    assert next(iter(found.values)) == path
    assert found.values[path] > 0.7 and not found.is_chance(path)
    assert sum(found.values.values()) == pytest.approx(1)
    assert found.trials == 150 and found.note == ""


def test_noise_is_told_from_effect() -> None:
    noise = random.Random(1)
    found = importances(record_of(four, lambda _: noise.random()), MIN)
    assert sum(found.is_chance(path) for path in found.values) >= 3  # one in twenty passes by chance


def test_large_may_be_good_too() -> None:
    one = importances(record_of(four, lambda one: one["depth"] + one["lr"]), MIN)
    other = importances(record_of(four, lambda one: -one["depth"] - one["lr"], objective=MAX), MAX)
    assert one.values == other.values and one.chance == other.chance


def test_conditional_parameters_count_where_they_are() -> None:
    def draw(rng: random.Random) -> dict[str, Any]:
        drawn = {"optimizer": rng.choice(["adam", "sgd"]), "other": rng.random()}
        return drawn | ({"momentum": rng.random()} if drawn["optimizer"] == "sgd" else {})

    found = importances(record_of(draw, lambda one: abs(one.get("momentum", 0.0) - 0.9)), MIN)
    assert found.values.keys() == {"optimizer", "other", "momentum"}
    assert found.values["momentum"] > 0.3 and not found.is_chance("momentum")
    assert found.is_chance("other")


def test_every_objective_has_its_own() -> None:
    record = search(200, objectives=(LOSS, SPEED))
    assert next(iter(importances(record, LOSS).values)) == LR
    assert next(iter(importances(record, SPEED).values)) == WIDTH


def test_ranges_that_are_known_are_those_of_the_axes() -> None:
    known, unknown = (importances(search(150, ranges=ranges), LOSS) for ranges in (True, False))
    assert next(iter(known.values)) == next(iter(unknown.values)) == LR
    assert known.values != unknown.values
    assert known.values[LR] == pytest.approx(unknown.values[LR], abs=0.15)


def test_what_did_not_differ_is_left_out_and_told() -> None:
    record = record_of(lambda rng: {**four(rng), "seed": 7}, lambda one: one["lr"])
    found = importances(record, MIN)
    assert "seed" not in found.values and "seed: the same in all trials" in found.note


def test_values_that_are_not_numbers_or_texts() -> None:
    def draw(rng: random.Random) -> dict[str, Any]:
        return {"sizes": rng.choice([[8, 8], [16], None]), "mixed": rng.choice([1, True, "1"]), "free": rng.random()}

    found = importances(record_of(draw, lambda one: one["sizes"] != [16]), MIN)
    assert next(iter(found.values)) == "sizes"
    found = importances(record_of(draw, lambda one: one["mixed"] is not True), MIN)
    assert next(iter(found.values)) == "mixed" and found.values["mixed"] > 0.7  # 1, true and "1" are three


def test_reasons_why_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(record: SearchRecord) -> str:
        found = importances(record, MIN)
        assert not found.values and not found.chance
        return found.note

    assert (
        none(record_of(four, lambda one: one["lr"], 7))
        == "only 7 trials have ended with a value, and it needs 8 at least"
    )
    assert none(record_of(four, lambda one: 1.0)) == "all trials have reached the same y"
    assert (
        none(record_of(lambda rng: {"a": 1}, lambda one: random.random())) == "no parameter differs between the trials"
    )
    assert "rough" in importances(record_of(four, lambda one: one["lr"], 8), MIN).note
    monkeypatch.setitem(sys.modules, "optuna", None)  # as if it were not installed
    assert "pip install 'itwinai[tune]'" in none(record_of(four, lambda one: one["lr"]))


def test_failed_and_running_trials_do_not_count() -> None:
    record = search(80)
    ended = sum(trial.status in ("finished", "stopped") for trial in record.trials)
    assert importances(record, LOSS).trials == ended < 80
    assert OPTIMIZER in importances(record, LOSS).values


def test_optuna_is_as_quiet_as_before(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    importances(search(30), LOSS)
    assert optuna.logging.get_verbosity() == logging.INFO
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_the_objective_has_to_be_one_of_the_search() -> None:
    with pytest.raises(ConfigurationError, match=r"y \(min\) was not searched for.*val_loss \(min\)"):
        importances(search(10), MIN)


def test_ranges_wider_than_the_draws() -> None:
    record = record_of(lambda rng: {"a": rng.uniform(2, 3), "b": rng.randint(2, 90)}, lambda one: one["a"])
    wide = SearchRecord(
        record.name, record.objectives, record.parameters, record.trials,
        ranges={"a": Range(0.0, 2.5), "b": Range(1, 50, log=True)},  # drawn values beyond it were set by hand
    )  # fmt: skip
    assert next(iter(importances(wide, MIN).values)) == "a"

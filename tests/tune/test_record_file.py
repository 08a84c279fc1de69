"""The record of a search survives its file, odd values included."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itwinai.errors import ConfigurationError
from itwinai.trials.records import Objective, Range, Report, SearchRecord, TrialRecord
from itwinai.tune.record_file import read_record, write_record
from tests.support.searches import LOSS, SPEED, search


def strict(path: Path) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_reading_gives_what_was_written(tmp_path: Path) -> None:
    record = search(30, objectives=(LOSS, SPEED), failing=False)
    path = tmp_path / "new" / "search.json"
    write_record(record, path)
    assert read_record(path) == record
    assert len(strict(path)["trials"]) == 30


def test_odd_values(tmp_path: Path) -> None:
    odd = {
        "nan": math.nan,
        "infinite": -math.inf,
        "tuple": (1, (2.5, None), []),
        "keys": {1: "one", "1": "text", (2, 3): True},
        "ours": {"$float": "nan"},
        "text": 'line\nbreak, "quoted" and ü',
        "list": [False, 0, 0.0, {"a": math.inf}],
    }
    trial = TrialRecord(0, "odd", odd, reports=(Report(1, math.inf, {"loss": math.nan}, at=None),))
    ranges = {"list": Range(choices=((1, 2), None)), "lr": Range(0.0, math.inf, log=True)}
    record = SearchRecord("odd", (Objective("loss", "max"),), tuple(odd), (trial,), ranges=ranges)
    path = tmp_path / "search.json"
    write_record(record, path)
    strict(path)
    found = read_record(path)
    assert found == record
    (parameters,) = (trial.parameters for trial in found.trials)
    assert [type(value) for value in parameters["list"]] == [bool, int, float, dict]
    assert type(parameters["tuple"]) is tuple and type(parameters["tuple"][2]) is list


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    trial = TrialRecord(0, "t", {"a": np.int64(3), "b": np.float32(0.5), "path": Path("x/y")})
    path = tmp_path / "search.json"
    write_record(replace(search(1), trials=(trial,)), path)
    assert read_record(path).trials[0].parameters == {"a": 3, "b": 0.5, "path": "x/y"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not a record of a search"),
        ("[]", "not a record of a search"),
        ('{"version": 1, "name": "x"}', "not a record of a search"),
        ('{"version": 2, "name": "x"}', "version 2"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=told):
        read_record(path)

"""The record of a search as a file, from which its report can be recreated."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from itwinai.io.atomic import write_whole
from itwinai.io.versioned_json import reading, versioned
from itwinai.trials.records import Objective, Range, Report, SearchRecord, TrialRecord

VERSION = 1
"""Of the format; it counts up where older readers would misread a file."""

# What JSON has no word for stands as {"$float": "nan"}, {"$tuple": [...]}, {"$items": [[key, value], ...]}. Parameters
# are of any kind, and the text "NaN" may be one of them.
_FLOAT, _TUPLE, _ITEMS = "$float", "$tuple", "$items"


def write_record(record: SearchRecord, path: str | os.PathLike[str]) -> None:
    """Write a record as JSON that any reader of JSON understands; a file of that name is replaced as a whole.

    Args:
        record: the search. Parameters that are neither numbers nor texts, lists or mappings are kept as their text.
        path: of the file; its folder is created if it does not exist.

    Raises:
        OSError: it could not be written; the old file is still there.
    """
    head = _plain(
        {
            "version": VERSION,
            **{name: value for name, value in vars(record).items() if name != "trials"},
            "objectives": [vars(objective) for objective in record.objectives],
            "parameters": list(record.parameters),
            "ranges": {
                name: {**vars(drawn_from), "choices": list(drawn_from.choices)}
                for name, drawn_from in record.ranges.items()
            },
        }
    )
    trials = [{**vars(trial), "reports": [vars(report) for report in trial.reports]} for trial in record.trials]
    # One line per trial: to be looked at by people, and by tools that compare lines.
    lines = ",\n".join(_dumped(_plain(trial)) for trial in trials)
    write_whole(Path(path), f'{_dumped(head)[:-1]}, "trials": [\n{lines}\n]}}\n')


def read_record(path: str | os.PathLike[str]) -> SearchRecord:
    """Return a record that `write_record` has written: equal to that one, if its sequences were tuples.

    Args:
        path: of the file.

    Raises:
        ConfigurationError: the file was not written by `write_record`, or by a later version.
        OSError: it cannot be read.
    """
    text, name = Path(path).read_text(encoding="utf-8"), os.fspath(path)
    with reading(f"{name} is not a record of a search", "A search leaves its record in its folder; give that file."):
        document = _value(versioned(text, VERSION, name))
        trials = (
            TrialRecord(**{**trial, "reports": tuple(Report(**report) for report in trial["reports"])})
            for trial in document["trials"]
        )
        return record_from(document, trials)


def record_from(fields: Mapping[str, Any], trials: Iterable[TrialRecord]) -> SearchRecord:
    """Return a record from its fields, in which objectives and ranges are mappings.

    Args:
        fields: of the search.
        trials: its trials, in order.
    """
    return SearchRecord(
        **{
            **fields,
            "objectives": tuple(Objective(**objective) for objective in fields["objectives"]),
            "parameters": tuple(fields["parameters"]),
            "ranges": {
                path: Range(**{**drawn, "choices": tuple(drawn["choices"])}) for path, drawn in fields["ranges"].items()
            },
            "trials": tuple(trials),
        }
    )


def _dumped(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """Return a value in words of JSON."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT: str(float(value))}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and not value.keys() & {_FLOAT, _TUPLE, _ITEMS}:
            return {key: _plain(one) for key, one in value.items()}
        return {_ITEMS: [[_plain(key), _plain(one)] for key, one in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_plain(one) for one in value]}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_plain(one) for one in value]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # numbers of NumPy and torch
        return _plain(value.item())
    return str(value)


def _value(plain: Any) -> Any:
    """Return what `_plain` was given."""
    if isinstance(plain, list):
        return [_value(one) for one in plain]
    if not isinstance(plain, dict):
        return plain
    if plain.keys() == {_FLOAT}:
        text = plain[_FLOAT]
        return math.nan if text == "nan" else float(text)
    if plain.keys() == {_TUPLE}:
        return tuple(_value(one) for one in plain[_TUPLE])
    if plain.keys() == {_ITEMS}:
        return {_value(key): _value(one) for key, one in plain[_ITEMS]}
    return {key: _value(one) for key, one in plain.items()}

"""Documents are plain JSON, and one that is none of ours is named."""

from __future__ import annotations

import json
import math

import pytest

from itwinai.errors import ConfigurationError
from itwinai.io.versioned_json import finite, reading, versioned


def test_numbers_that_are_not_finite() -> None:
    value = {"loss": math.nan, "bounds": (-math.inf, 1.5, math.inf), "deep": [{"x": [math.nan]}], "name": "NaN", "n": 3}
    written = json.dumps(finite(value), allow_nan=False)
    assert json.loads(written) == {
        "loss": "NaN",
        "bounds": ["-Infinity", 1.5, "Infinity"],
        "deep": [{"x": ["NaN"]}],
        "name": "NaN",
        "n": 3,
    }
    assert float("-Infinity") == -math.inf and math.isnan(float("NaN"))


def test_version() -> None:
    assert versioned('{"version": 2, "a": 1}', 2, "a.json", "") == {"a": 1}
    message = r"a\.json is of version 3 of the format, and this itwinai reads version 2\. Measure again\."
    with pytest.raises(ConfigurationError, match=message):
        versioned('{"version": 3}', 2, "a.json", "Measure again.")


@pytest.mark.parametrize("text", ['{"a": 1}', "[1]", "7", "{", ""])
def test_documents_of_other_formats(text: str) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"^a\.json is not a record \(\w+: .+\)\. Give another\.$"),
        reading("a.json is not a record", "Give another."),
    ):
        versioned(text, 1, "a.json", "")


def test_errors_of_ours_and_of_the_disk_stay() -> None:
    with pytest.raises(ConfigurationError, match="^mine$"), reading("a.json is not a record"):
        raise ConfigurationError("mine")
    with pytest.raises(PermissionError), reading("a.json is not a record"):
        raise PermissionError(13, "denied")

"""How things are called in a provenance document, and how their attributes are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from itwinai.run_info.run import RunFacts

VOCABULARY = "https://itwinai.readthedocs.io/prov#"
"""Of the names of our classes and attributes."""

SETTINGS, PACKAGES = "https://itwinai.readthedocs.io/prov/setting#", "https://itwinai.readthedocs.io/prov/package#"
"""Of the names of hyperparameters, and of packages."""


def facts_of_activity(facts: RunFacts | None) -> list[tuple[str, Any]]:
    """Return what is true of the run itself: not its code and versions, which are entities of their own."""
    flat: Mapping[str, Any] = {} if facts is None else facts.flat()
    return [
        (f"itwinai:{local_name(name)}", value)
        for name, value in flat.items()
        if not name.startswith(("code/", "versions/", "started"))
    ]


def settings_of(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested plain values as attributes, with the names of several levels joined by dots."""
    attributes: list[tuple[str, Any]] = []
    for name, value in values.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping):
            attributes += settings_of(value, f"{full}.")
        else:
            text = json.dumps(value) if isinstance(value, list) or value is None else value
            attributes.append((f"setting:{local_name(full)}", text))
    return attributes


def first_value(record: Any, name: str) -> Any:
    """Return the first value of an attribute of a record, or None."""
    return next((value for attribute, value in record.extra_attributes if str(attribute) == name), None)


def local_name(text: str) -> str:
    """Return a text as the local part of a qualified name."""
    return quote(text, safe="/-_.=")


def moment(seconds: float) -> datetime:
    """Return a time in seconds since 1970 as PROV has it."""
    return datetime.fromtimestamp(round(seconds, 3), timezone.utc)

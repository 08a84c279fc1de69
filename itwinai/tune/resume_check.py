"""A search is resumed with the settings and the config that it was started with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itwinai.errors import ConfigurationError
from itwinai.run_info.fingerprint import Fingerprint
from itwinai.tune.settings import Settings
from itwinai.tune.space import SearchSpace

FILE = "asked.json"

FREE = ("max_concurrent", "max_failures", "storage", "name", "keep_checkpoints", "target", "time_budget")
"""Settings that may change when a search is resumed."""


def fingerprint_of(settings: Settings, config: Mapping[str, Any] | None) -> Fingerprint:
    """Return the fingerprint of a search."""
    fields = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    kept: dict[str, Any] = {f"tune.{name}": value for name, value in fields.items() if name not in FREE}
    # Distributions may be objects of Ray's, which say nothing of themselves.
    parameters = SearchSpace.from_mapping(settings.space).parameters
    kept["tune.space"] = {one.path: (str(one.distribution), dict(one.when)) for one in parameters}
    return Fingerprint.of({**kept, **dict(config or {})})


def check_same(fingerprint: Fingerprint, folder: Path) -> None:
    """Check that the search in a folder was started with the same.

    Args:
        fingerprint: what it is resumed with.
        folder: of the search.

    Raises:
        ConfigurationError: something has changed, so its trials would not be comparable.
    """
    if changes := fingerprint.changes(folder / FILE):
        shown = "; ".join(f"{name} was {old}, and is {new}" for name, (old, new) in list(changes.items())[:5])
        raise ConfigurationError(
            f"The search in {folder} can only be resumed as it was started, and something has changed: {shown}. Change "
            "it back, or start another search under another name; start_with lets it begin with points that were good."
        )

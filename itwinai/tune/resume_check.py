"""What a search was asked for when it began, which it has to be asked for when it goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itwinai.errors import ConfigurationError
from itwinai.io.atomic import write_whole
from itwinai.run_info.redaction import without_secrets
from itwinai.tune.settings import Settings
from itwinai.tune.space import SearchSpace

FILE = "asked.json"

FREE = ("max_concurrent", "max_failures", "storage", "name", "keep_checkpoints", "target", "time_budget")
"""Settings that may be others when a search goes on."""


@dataclass(frozen=True)
class SearchFingerprint:
    """What a search is asked for.

    Attributes:
        asked: settings and values of the config, by name and path, as texts.
    """

    asked: Mapping[str, str]

    @classmethod
    def of(cls, settings: Settings, config: Mapping[str, Any] | None) -> SearchFingerprint:
        """Return what settings and a config ask for."""
        fields = {f"tune.{field.name}": getattr(settings, field.name) for field in dataclasses.fields(settings)}
        kept = {name: value for name, value in fields.items() if name.removeprefix("tune.") not in FREE}
        # Distributions may be objects of Ray's, which say nothing of themselves.
        parameters = SearchSpace.from_mapping(settings.space).parameters
        kept["tune.space"] = {one.path: (str(one.distribution), dict(one.when)) for one in parameters}
        values = {**kept, **_flat(without_secrets(dict(config or {})))}
        return cls({name: repr(value) for name, value in values.items()})

    def write(self, folder: Path) -> None:
        """Write it into the folder of the search."""
        write_whole(folder / FILE, json.dumps(dict(self.asked), indent=1) + "\n")

    def check(self, folder: Path) -> None:
        """Raise an error if the search in a folder was asked for something else.

        Raises:
            ConfigurationError: it was, and its trials would not be comparable.
        """
        path = folder / FILE
        if not path.exists():
            return
        before: dict[str, str] = json.loads(path.read_text())
        names = [name for name in {**before, **self.asked} if before.get(name) != self.asked.get(name)]
        if names:
            changes = "; ".join(f"{name} was {before.get(name)}, and is {self.asked.get(name)}" for name in names[:5])
            raise ConfigurationError(
                f"The search in {folder} goes on as it began, and something has changed: {changes}. Change it back, or "
                "start another search under another name; start_with lets it begin with points that were good."
            )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, Mapping) and node:
        return {path: value for name, below in node.items() for path, value in _flat(below, f"{prefix}.{name}").items()}
    return {prefix.lstrip("."): node}

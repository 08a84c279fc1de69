"""What a search or a benchmark was started with, so that it is resumed with the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itwinai.io.atomic import write_whole
from itwinai.run_info.redaction import without_secrets


@dataclass(frozen=True)
class Fingerprint:
    """Settings and values of a config, as texts.

    A search uses it (`itwinai.tune.resume_check`); a benchmark has the same need.

    Attributes:
        values: the texts, by name and path: ``trainer.max_epochs``.
    """

    values: Mapping[str, str]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Fingerprint:
        """Return the fingerprint of nested values; secrets are left out.

        Args:
            given: the values, by name.
        """
        return cls({name: repr(value) for name, value in _flat(without_secrets(dict(given))).items()})

    def write(self, path: Path) -> None:
        """Write it as JSON; a file of that name is replaced as a whole."""
        write_whole(path, json.dumps(dict(self.values), indent=1) + "\n")

    def changes(self, path: Path) -> dict[str, tuple[str | None, str | None]]:
        """Return what differs from the fingerprint in a file: the value there and the one here, by name.

        Args:
            path: of the file; nothing differs if there is none.
        """
        if not path.exists():
            return {}
        before: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        pairs = {name: (before.get(name), self.values.get(name)) for name in {**before, **self.values}}
        return {name: (old, new) for name, (old, new) in pairs.items() if old != new}


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, Mapping) and node:
        return {path: value for name, below in node.items() for path, value in _flat(below, f"{prefix}.{name}").items()}
    return {prefix.lstrip("."): node}

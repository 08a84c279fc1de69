"""What the result of a step depends on, and what of it has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from itwinai.pipelines.content_hash import ABSENT
from itwinai.pipelines.outputs import digest_of_values
from itwinai.reporting.formatting import listed, shortened
from itwinai.run_info.redaction import without_secrets

UNKNOWN = "unknown"
"""Digest of an input that another step has not made yet."""


@dataclass(frozen=True)
class Fingerprint:
    """What the result of a step depends on.

    Attributes:
        config: arguments by path, as texts; a secret is a digest.
        inputs: digests of the content of files and of other steps' outputs, by path and name.
        code: digests of the user's modules.
        versions: of distributions, by name.
    """

    config: Mapping[str, str]
    inputs: Mapping[str, str]
    code: Mapping[str, str]
    versions: Mapping[str, str]

    @property
    def digest(self) -> str:
        """A digest of all."""
        return digest_of_values(asdict(self))

    def changes(self, before: Fingerprint) -> list[str]:
        """Return what differs from an earlier one, each in a few words; what is not known yet differs from nothing."""
        is_partial = UNKNOWN in self.config.values()  # another step makes its config
        found = [
            f"{name} {_arrow(old, new)}"
            for name, old, new in _differences(before.config, self.config)
            if not (is_partial and name.startswith("config."))
        ]
        found += [
            f"{name} {_verb(old, new)}"
            for name, old, new in _differences(before.inputs, self.inputs)
            if not (is_partial and new is None)
        ]
        if is_partial:
            return found
        found += _code_changes(before.code, self.code)
        found += [f"{name} {_arrow(old, new)}" for name, old, new in _differences(before.versions, self.versions)]
        return found


def config_texts(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return arguments by path as texts, in which secrets are digests."""
    shown = dict(_flat(without_secrets(dict(arguments))))
    return {
        path: repr(value) if shown.get(path, value) == value else f"secret {digest_of_values(value)}"
        for path, value in _flat(arguments)
    }


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for name, one in node.items():
            yield from _flat(one, f"{prefix}{name}.")
    else:
        yield prefix.rstrip("."), node


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[tuple[str, str | None, str | None]]:
    for name in {**old, **new}:
        pair = old.get(name), new.get(name)
        if pair[0] != pair[1] and UNKNOWN not in pair:
            yield name, *pair


def _arrow(old: str | None, new: str | None) -> str:
    if old is None:
        return f"is new: {_short(new)}"
    return "is gone" if new is None else f"{_short(old)} → {_short(new)}"


def _verb(old: str | None, new: str | None) -> str:
    if old is None:
        return "is new"
    return "is gone" if new in (None, ABSENT) else "is back" if old == ABSENT else "changed"


def _short(text: str | None) -> str:
    return shortened(str(text), 40, "both")


def _code_changes(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """Yield a text for each file that has changed, with the functions and classes: ``helpers.py changed (area)``."""
    changed: dict[str, list[str]] = {}
    for name, _, _ in _differences(before, after):
        module, _, definition = name.partition(":")
        changed.setdefault(module, []).extend([definition] if definition else [])
    for module, names in changed.items():
        yield _file_text(module, names, before, after)


def _file_text(module: str, names: Sequence[str], before: Mapping[str, str], after: Mapping[str, str]) -> str:
    was, is_there = (any(key.startswith(f"{module}:") for key in code) for code in (before, after))
    file = module.replace(".", "/") + ".py"
    if not was:
        return f"{file} is new"
    if not is_there:
        return f"{file} is gone"
    return f"{file} changed{f' ({listed(names, 3)})' if names else ''}"

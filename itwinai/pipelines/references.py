"""References to the outputs of other steps: ``${steps.prepare.train}``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from itwinai.config.source import Given
from itwinai.errors import ConfigurationError

_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_PATH = re.compile(r"steps\.([\w-]+)((?:\.[\w-]+)*)")


@dataclass(frozen=True)
class Reference:
    """A reference to an output of a step.

    Attributes:
        step: name of the step.
        output: path of the output: names with dots between; empty for all that the step returns.
    """

    step: str
    output: str

    def __str__(self) -> str:
        return f"${{steps.{self.step}{'.' if self.output else ''}{self.output}}}"

    @property
    def label(self) -> str:
        """The reference as a person says it: ``prepare.train``."""
        return f"{self.step}.{self.output}" if self.output else self.step


def parse(text: str) -> list[str | Reference]:
    """Return a text in parts: references, and what is between them.

    Raises:
        ConfigurationError: something in ``${}`` is not a reference.
    """
    parts: list[str | Reference] = []
    end = 0
    for found in _REFERENCE.finditer(text):
        path = _PATH.fullmatch(found[1].strip())
        if path is None:
            raise ConfigurationError(
                f"'{found[0]}' is not a reference. Write ${{steps.NAME}}, or ${{steps.NAME.OUTPUT}} for one of several "
                "outputs."
            )
        if found.start() > end:
            parts.append(text[end : found.start()])
        parts.append(Reference(path[1], path[2].lstrip(".")))
        end = found.end()
    if end < len(text):
        parts.append(text[end:])
    return parts


def references_in(given: Given) -> Iterator[tuple[Reference, Given]]:
    """Yield the references in a value and in all that is in it, each with the value where it stands.

    Raises:
        ConfigurationError: something in ``${}`` is not a reference.
    """
    if isinstance(given.value, (dict, list)):
        for one in given.value.values() if isinstance(given.value, dict) else given.value:
            yield from references_in(one)
    elif isinstance(given.value, str) and "${" in given.value:
        try:
            parts = parse(given.value)
        except ConfigurationError as error:
            raise ConfigurationError(f"{given.at}: {error}" if given.at else str(error)) from None
        yield from ((part, given) for part in parts if isinstance(part, Reference))


def replace(value: Any, value_of: Callable[[Reference], Any]) -> Any:
    """Return plain values with something else in the place of each reference.

    Args:
        value: the values.
        value_of: returns what is put there. Where a text has more than a reference, it becomes a part of the text.
    """
    if isinstance(value, dict):
        return {name: replace(one, value_of) for name, one in value.items()}
    if isinstance(value, list):
        return [replace(one, value_of) for one in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    parts = parse(value)
    if len(parts) == 1 and isinstance(parts[0], Reference):
        return value_of(parts[0])
    return "".join(str(value_of(part)) if isinstance(part, Reference) else part for part in parts)

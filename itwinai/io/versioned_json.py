"""Documents of plain values, which are read again by this version or a later one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from itwinai.errors import ConfigurationError

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""JSON has no such numbers: they are written as these texts, which ``float()`` understands."""


def finite(value: Any) -> Any:
    """Return a plain value with texts in the place of numbers that are not finite, and lists in that of tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, (list, tuple)) else value


def document_text(values: Mapping[str, Any]) -> str:
    """Return a document of plain values as the text of a file."""
    return json.dumps(finite(values), indent=2) + "\n"


_LATER = "Read it with the itwinai that has written it, or a later one."


def versioned(text: str, version: int, name: str, remedy: str = _LATER) -> dict[str, Any]:
    """Return a JSON document without its version; raise an error if the version is not supported.

    Args:
        text: of the document.
        version: that this itwinai reads. It counts up where older readers would misread a document.
        name: of the file, for errors.
        remedy: a sentence: what to do about another version.

    Raises:
        ConfigurationError: it is of another version.
        ValueError: it is not JSON; or ``KeyError``, ``TypeError``, ``AttributeError``: it has no version.
    """
    document: dict[str, Any] = json.loads(text)
    written = document.pop("version")
    if written != version:
        raise ConfigurationError(
            f"{name} is of version {written} of the format, and this itwinai reads version {version}. {remedy}"
        )
    return document


@contextmanager
def reading(what: str, remedy: str = "") -> Iterator[None]:
    """Turn what is met in a document that is another than was thought into an error that says so.

    Args:
        what: the document and what it is not, as in ``a.json is not a record of a search``.
        remedy: a sentence: what to do about it.

    Raises:
        ConfigurationError: the block has found a value missing, or of another kind.
    """
    try:
        yield
    except ConfigurationError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{what} ({type(error).__name__}: {error}). {remedy}".rstrip()) from error

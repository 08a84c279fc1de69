"""Names and values of parameters, as people read them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Return the shortest end of each path that no other path has: ``lr`` for ``model.init_args.lr``.

    Args:
        paths: the paths, with dots between their parts.
    """
    return {path: _shortest(path, [other for other in paths if other != path]) for path in paths}


def _shortest(path: str, others: Sequence[str]) -> str:
    parts = path.split(".")
    for length in range(1, len(parts)):
        end = ".".join(parts[-length:])
        if not any(other == end or other.endswith(f".{end}") for other in others):
            return end
    return path


def digits(value: float) -> str:
    """Return a number with four digits, and up to a million without a power of ten: 33210 and not 3.321e+04."""
    if not math.isfinite(value):
        return str(value)
    short = f"{value:.4g}"
    return f"{float(short):.0f}" if 1e4 <= abs(float(short)) < 1e6 else short


def told(value: Any) -> str:
    """Return a value of a parameter: numbers with four digits, what is no text as JSON (which YAML reads too)."""
    if is_number(value) and not isinstance(value, Integral):
        return digits(value)
    if isinstance(value, str):
        return value
    return key_of(value)


def key_of(value: Any) -> str:
    """Return a text that is the same for the same values only: JSON, and what JSON does not know as its text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=_plain)


def is_number(value: Any) -> bool:
    """Tell whether a value is a number; true and false are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Return what JSON knows for what it does not know: the number of a NumPy number, else the text."""
    return value.item() if isinstance(value, Real) and hasattr(value, "item") else str(value)


def parameters_told(parameters: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return parameters in one line.

    Args:
        parameters: the values, by path.
        names: what the paths are called; a path that is not there keeps its own.
    """
    return ", ".join(f"{names.get(path, path)}={told(value)}" for path, value in parameters.items())


def shortened(text: str, most: int) -> str:
    """Return a text in one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def joined(words: Sequence[str], last: str = " and ") -> str:
    """Return words as a sentence lists them: ``a, b and c``.

    Args:
        words: the words.
        last: what stands before the last of several.
    """
    return last.join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def listed(words: Iterable[object], most: int = 10) -> str:
    """Return words with commas between, the first of them if there are many."""
    texts = [str(word) for word in words]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more

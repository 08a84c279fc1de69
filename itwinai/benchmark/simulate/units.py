"""Parse sizes, times, rates and numbers with units: ``25MiB``, ``5us``, ``25GB/s``, ``1.3B``.

Each function raises ConfigurationError for other text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from itwinai.errors import ConfigurationError

_PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SIZES = {
    **{f"{prefix}B": factor for prefix, factor in _PREFIXES.items()},
    **{f"{prefix}iB": 2.0 ** (10 * power) for power, prefix in enumerate("KMGT", 1)},
}
_TIMES = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_RATES = {
    **{f"{size}/s": factor for size, factor in _SIZES.items()},
    **{f"{prefix}{bits}": factor / 8 for prefix, factor in _PREFIXES.items() for bits in ("bit/s", "b/s", "bps")},
}
_NUMBERS = {**_PREFIXES, "B": 1e9}

_AMOUNT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-zµμ/]*)\s*")


def size_in_bytes(text: str) -> float:
    """Return a size: ``100MB`` (10^6 bytes each), ``25MiB`` (2^20), or bytes without a unit."""
    return _amount(text, "a size", {"": 1.0, **_SIZES}, "100MB, 25MiB")


def seconds(text: str) -> float:
    """Return a time in seconds: ``5us``, ``120ms``, or seconds without a unit."""
    return _amount(text, "a time", {"": 1.0, **_TIMES}, "5us, 120ms, 0.12")


def bytes_per_second(text: str) -> float:
    """Return a bandwidth: ``25GB/s``, or ``200Gbit/s``, which is the same."""
    return _amount(text, "a bandwidth", _RATES, "25GB/s, 200Gbit/s")


def number(text: str) -> int:
    """Return a whole number: ``25M``, ``1.3B``."""
    value = _amount(text, "a number", _NUMBERS, "25M, 1.3B")
    if abs(value - round(value)) > 1e-6 * value:
        raise ConfigurationError(f"'{text}' is not a whole number. Write it like 25M or 1.3B.")
    return round(value)


def numbers_of_workers(text: str) -> list[int]:
    """Return ascending numbers: ``1,2,4``, or ``1,2,4,...,4096``, which continues as it begins."""
    words = [word.strip() for word in text.split(",")]
    found: list[int] = []
    for index, word in enumerate(words):
        if word in ("...", "…"):
            if index < 2 or index != len(words) - 2 or not words[-1].isdecimal():
                raise ConfigurationError(
                    f"'{text}': write dots between at least two numbers and the last one, as in 1,2,4,...,4096."
                )
            found += _between(found, int(words[-1]), text)
        elif not word.isdecimal() or int(word) < 1:
            raise ConfigurationError(f"'{text}': '{word}' is not a number of workers. Write them as 1,2,4,...,4096.")
        else:
            found.append(int(word))
    return sorted(set(found))


def _amount(text: str, kind: str, units: Mapping[str, float], examples: str) -> float:
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"'{text}' is not {kind}. Write it like {examples}.")
    value, unit = match.groups()
    if unit in units:
        return float(value) * units[unit]
    if not unit:
        raise ConfigurationError(f"'{text}' has no unit, and {kind} needs one. Write it like {examples}.")
    # Upper and lower case make a difference: B is a byte and b a bit, M is mega and m milli.
    similar = [known for known in units if known and known.lower() == unit.lower()]
    hint = f" Did you mean {' or '.join(f'{value}{known}' for known in similar)}?" if similar else ""
    raise ConfigurationError(f"'{text}' is not {kind}: unknown unit '{unit}'.{hint} Write it like {examples}.")


def _between(found: list[int], last: int, text: str) -> list[int]:
    """Return the numbers that the dots stand for."""
    before, latest = found[-2:]
    step, factor = latest - before, latest // before
    # 1, 2 and 2, 4 could continue both ways: numbers of workers are multiplied rather than counted up.
    multiplied = latest == factor * before and factor > 1
    numbers: list[int] = []
    following = latest * factor if multiplied else latest + step
    while latest < following < last:
        numbers.append(following)
        following = following * factor if multiplied else following + step
    if following != last:
        raise ConfigurationError(f"'{text}' does not reach {last} if it continues as it begins.")
    return numbers

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

_AMOUNT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-zµμ/]*)\s*")
_WORKERS = re.compile(r"([1-9]\d*(?:,[1-9]\d*)*)(?:,(?:\.\.\.|…),(\d+))?")


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
    value = _amount(text, "a number", {**_PREFIXES, "B": 1e9}, "25M, 1.3B")
    if abs(value - round(value)) > 1e-6 * value:
        raise ConfigurationError(f"'{text}' is not a whole number. Write it like 25M or 1.3B.")
    return round(value)


def numbers_of_workers(text: str) -> list[int]:
    """Return ascending numbers: ``1,2,4``, or ``1,2,4,...,4096``, which continues as it begins."""
    match = _WORKERS.fullmatch(re.sub(r"\s", "", text))
    if match is None:
        raise ConfigurationError(f"'{text}' is not a list of numbers of workers. Write them as 1,2,4,...,4096.")
    numbers = [int(word) for word in match[1].split(",")]
    if match[2] is None:
        return sorted(set(numbers))
    last = int(match[2])
    if len(numbers) < 2 or numbers[-2] >= numbers[-1]:
        raise ConfigurationError(f"'{text}': write dots after at least two ascending numbers, as in 1,2,4,...,4096.")
    # 1, 2 and 2, 4 could continue both ways: numbers of workers are multiplied rather than counted up.
    step, (factor, rest) = numbers[-1] - numbers[-2], divmod(numbers[-1], numbers[-2])
    while numbers[-1] < last:
        numbers.append(numbers[-1] + step if rest else numbers[-1] * factor)
    if numbers[-1] != last:
        raise ConfigurationError(f"'{text}' does not reach {last} if it continues as it begins.")
    return sorted(set(numbers))


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

"""Numbers, units, durations, names and lists as people read them: the one place that turns values into text."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Protocol

UNKNOWN = "-"
"""Shown where nothing was measured; never a zero."""


class Interval(Protocol):
    """A mean and the ends of its interval, which are None where the spread is unknown."""

    @property
    def mean(self) -> float:
        """The mean."""

    @property
    def low(self) -> float | None:
        """The lower end."""

    @property
    def high(self) -> float | None:
        """The upper end."""


Amount = float | Interval | None
"""What a unit can be put behind: a number, a number with its interval, or nothing that was measured."""


@dataclass(frozen=True)
class Unit:
    """A unit that makes a number handy.

    Attributes:
        name: of the unit.
        size: how much of the SI unit it is.
    """

    name: str
    size: float = 1.0

    def of(self, value: float) -> float:
        """Return a value of the SI unit in this unit."""
        return value / self.size


_TIMES = (Unit("s"), Unit("ms", 1e-3), Unit("µs", 1e-6), Unit("ns", 1e-9))
_BYTES = (Unit("GiB", 2.0**30), Unit("MiB", 2.0**20), Unit("KiB", 2.0**10), Unit("B"))
_TRAFFIC = (Unit("TB", 1e12), Unit("GB", 1e9), Unit("MB", 1e6), Unit("kB", 1e3), Unit("B"))
_JOULES = (Unit("kJ", 1e3), Unit("J"), Unit("mJ", 1e-3), Unit("µJ", 1e-6))

# ---------------------------------------------------------------------------------------------- measured amounts


def number_text(value: float) -> str:
    """Return a measured number with three digits, or all before the point: ``12,345``, ``3.41``."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2e}" if 0 < abs(value) < 1e-4 else f"{value:,.{_places(value, 3)}f}"


def estimate_text(estimate: Interval | None, unit: Unit | None = None) -> str:
    """Return an estimate with its interval: ``12.3 ± 0.4 ms``, or ``3.8 (3.1 to 4.7)`` where the ends differ.

    Args:
        estimate: in the SI unit.
        unit: to show it in; by default none.
    """
    if estimate is None:
        return UNKNOWN
    unit = unit or Unit("")
    after = f" {unit.name}" if unit.name else ""
    mean = unit.of(estimate.mean)
    if estimate.low is None or estimate.high is None or not math.isfinite(estimate.high):
        return f"{number_text(mean)}{after}"
    low, high = unit.of(estimate.low), unit.of(estimate.high)
    half = (high - low) / 2
    if half <= 1e-9 * abs(mean):
        return f"{number_text(mean)}{after}"
    # As many digits as the interval leaves sure, but at least one of its own.
    places = max(min(_places(half, 2), _places(mean, 3)), _places(half, 1))
    if abs((high - mean) - half) > 0.04 * half:
        return f"{mean:,.{places}f} ({low:,.{places}f} to {high:,.{places}f}){after}"
    return f"{mean:,.{places}f} ± {half:,.{places}f}{after}"


def time_text(seconds: Amount) -> str:
    """Return a time in a handy unit: ``12.3 ms``. For how long something took people see `span_text`."""
    return _amount_text(seconds, _TIMES)


def bytes_text(size: Amount) -> str:
    """Return an amount of memory in a handy binary unit: ``1.50 GiB``."""
    return _amount_text(size, _BYTES)


def traffic_text(size: Amount) -> str:
    """Return an amount of bytes that are sent, in the decimal units of networks: ``1.50 GB``."""
    return _amount_text(size, _TRAFFIC)


def energy_text(joules: Amount) -> str:
    """Return an energy in a handy unit: ``3.41 mJ``."""
    return _amount_text(joules, _JOULES)


def percent_text(share: Amount) -> str:
    """Return a share in percent: ``31 %``, ``2.5 %``, ``31.0 ± 2.0 %``."""
    if not isinstance(share, (int, float)):
        return estimate_text(share, Unit("%", 0.01))
    return f"{100 * share:.0f} %" if abs(share) >= 0.0995 or share == 0 else f"{100 * share:.2g} %"


def p_text(p: float) -> str:
    """Return a p value: ``p = 0.03``, ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def time_unit(seconds: float) -> Unit:
    """Return the handy unit for a time."""
    return _unit(seconds, _TIMES)


def memory_unit(size: float) -> Unit:
    """Return the handy unit for a number of bytes."""
    return _unit(size, _BYTES)


def energy_unit(joules: float) -> Unit:
    """Return the handy unit for an energy."""
    return _unit(joules, _JOULES)


def _amount_text(amount: Amount, units: tuple[Unit, ...]) -> str:
    if amount is None:
        return UNKNOWN
    if isinstance(amount, (int, float)):
        unit = _unit(amount, units)
        return f"{number_text(unit.of(amount))} {unit.name}"
    return estimate_text(amount, _unit(amount.mean, units))


def _unit(value: float, units: tuple[Unit, ...]) -> Unit:
    if not value or not math.isfinite(value):
        return next(unit for unit in units if unit.size == 1)
    return next((unit for unit in units if abs(value) >= 0.9995 * unit.size), units[-1])


def _places(value: float, count: int) -> int:
    """Return the decimal places with which a number has this many digits."""
    if not value:
        return 0
    return max(count - 1 - math.floor(math.log10(abs(float(f"{value:.{count - 1}e}")))), 0)


# ------------------------------------------------------------------------------------- parameters and metrics


def value_text(value: Any) -> str:
    """Return the value of a parameter or a metric: four digits, and what is not text as JSON (which YAML reads too).

    Up to a million there is no power of ten: 33210 and not 3.321e+04.
    """
    if is_number(value) and not isinstance(value, Integral):
        if not math.isfinite(value):
            return str(value)
        short = f"{value:.4g}"
        return f"{float(short):.0f}" if 1e4 <= abs(float(short)) < 1e6 else short
    return value if isinstance(value, str) else key_of(value)


def key_of(value: Any) -> str:
    """Return a text that is the same for the same values only: JSON, and what JSON does not know as its text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=_plain)


def is_number(value: Any) -> bool:
    """Return whether a value is a number; true and false are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def parameters_text(parameters: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return parameters in one line.

    Args:
        parameters: the values, by path.
        names: short names of the paths; a path without one keeps its own.
    """
    return ", ".join(f"{names.get(path, path)}={value_text(value)}" for path, value in parameters.items())


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


def _plain(value: Any) -> Any:
    """Return what JSON knows for what it does not know: the number of a NumPy number, else the text."""
    return value.item() if isinstance(value, Real) and hasattr(value, "item") else str(value)


# --------------------------------------------------------------------------------------- durations, lists, places


def span_text(seconds: float) -> str:
    """Return how long something took, no more precise than people need: ``1.5 s``, ``8 min 05 s``, ``2 h 10 min``.

    Args:
        seconds: the duration.
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10 and rest:
        return f"{minutes} min {rest:02d} s"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{seconds / 86400:.3g} days"
    return f"{hours} h {minutes:02d} min" if minutes else f"{hours} h"


def count_text(number: int, noun: str) -> str:
    """Return a number of things: ``1 trial``, ``3 trials``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def joined(words: Sequence[str], last: str = " and ") -> str:
    """Return words as a sentence lists them: ``a, b and c``.

    Args:
        words: the words.
        last: goes before the last of several.
    """
    return last.join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def listed(words: Iterable[object], most: int = 10) -> str:
    """Return words with commas between, the first of them if there are many."""
    texts = [str(word) for word in words]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def shortened(text: str, most: int, keep: Literal["start", "end", "both"] = "start") -> str:
    """Return a text in one line of limited length.

    Args:
        text: the text.
        most: characters.
        keep: which part of a longer text stays: its start; its end, as of the path of a class; or both, as of the
            names of strategies, which often differ at their end.
    """
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    head = {"start": most - 1, "end": 0, "both": (most - 1) // 2}[keep]
    return f"{line[:head]}…{line[len(line) - (most - 1 - head) :]}"


def path_text(path: Path) -> str:
    """Return a path as short as it can be written here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def origin(*what: str, begun: str, command: str, version: str) -> list[str]:
    """Return the lines below the title of a page that say where it comes from.

    Args:
        what: was run: strategy, workers.
        begun: when, as ISO 8601.
        command: that ran it.
        version: of itwinai.
    """
    first = [*what, _date_text(begun), f"itwinai {version}" if version else ""]
    return [line for line in (" · ".join(filter(None, first)), _command_text(command)) if line]


def _date_text(stamp: str) -> str:
    """Return a time as people write it: ``30 November 2026, 16:46 (UTC)``.

    Args:
        stamp: the time as ISO 8601; any other text stays as it is.
    """
    try:
        when = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    zone = f" ({when.tzname()})" if when.tzname() else ""
    return f"{when.day} {when:%B %Y, %H:%M}{zone}"


def _command_text(command: str) -> str:
    """Return a command line without the folder of its program."""
    program, *arguments = shlex.split(command) or [""]
    return shlex.join([Path(program).name, *arguments]) if program else ""

"""Numbers of things, spans of time and paths as people say them."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path


def count_text(number: int, noun: str) -> str:
    """Return a number of things, as in ``1 trial`` or ``3 trials``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def span_text(seconds: float) -> str:
    """Return a span of time, no more precise than people need it: ``1.5 s``, ``48 s``, ``8 min 05 s``, ``2 h 10 min``.

    Args:
        seconds: how long it is.
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


def origin(*what: str, begun: str, command: str, version: str) -> list[str]:
    """Return the lines below a title that say where a page comes from.

    Args:
        what: was run: strategy, workers.
        begun: when, as ISO 8601.
        command: that ran it.
        version: of itwinai.
    """
    first = [*what, _date_text(begun), f"itwinai {version}" if version else ""]
    return [line for line in (" · ".join(filter(None, first)), _command_text(command)) if line]


def path_text(path: Path) -> str:
    """Return a path as short as it can be written here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _date_text(stamp: str) -> str:
    """Return a time as people write it: ``30 November 2026, 16:46 (UTC)``.

    Args:
        stamp: the time as ISO 8601; what is none stays as it is.
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

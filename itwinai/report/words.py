"""Numbers of things, spans of time and paths as people say them."""

from __future__ import annotations

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


def path_text(path: Path) -> str:
    """Return a path as short as it can be written here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)

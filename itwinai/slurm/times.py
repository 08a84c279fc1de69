"""Times as SLURM writes them."""

from __future__ import annotations

import re

from itwinai.errors import ConfigurationError

_FORMS = "minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS"


def seconds_of(time: str) -> float:
    """Return the seconds of a time limit.

    Args:
        time: as sbatch takes it after ``--time``: minutes, ``MM:SS``, ``HH:MM:SS``, ``D-HH``, ``D-HH:MM``,
            ``D-HH:MM:SS``; ``infinite`` and ``UNLIMITED``.

    Raises:
        ConfigurationError: it is none of these.
    """
    text = time.strip()
    if text.lower() in ("infinite", "unlimited"):
        return float("inf")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise ConfigurationError(f"{time!r} is not a time of SLURM: write {_FORMS}.", argument="time")
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds

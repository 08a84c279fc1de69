"""Amounts and times as people say them."""

from __future__ import annotations

from collections.abc import Mapping

from itwinai.report.search.names import joined

_GIB = 2**30


def amount_text(name: str, amount: float) -> str:
    """Return an amount of a resource, as in ``2 CPUs`` or ``1.5 GiB memory``.

    Args:
        name: Ray's name of the resource.
        amount: how much of it; of memory in bytes.
    """
    if name in ("memory", "object_store_memory"):
        return f"{amount / _GIB:.3g} GiB {name.replace('_', ' ')}"
    plural = "s" if name in ("CPU", "GPU") and amount != 1 else ""
    return f"{amount:g} {name}{plural}"


def amounts_text(amounts: Mapping[str, float], last: str = ", ") -> str:
    """Return amounts of resources; ``nothing`` if there are none.

    Args:
        amounts: the amounts, by Ray's names.
        last: what stands before the last of several.
    """
    return joined([amount_text(name, amount) for name, amount in amounts.items()], last) or "nothing"


def resource_name(name: str) -> str:
    """Return a resource as it stands in a sentence: ``the CPUs``, ``the memory``, ``the resource 'licence'``."""
    if name in ("CPU", "GPU"):
        return f"the {name}s"
    return "the memory" if name == "memory" else f"the resource '{name}'"


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

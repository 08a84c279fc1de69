"""Amounts and times as people say them."""

from __future__ import annotations

from collections.abc import Mapping

from itwinai.reporting.formatting import joined

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

"""The parts of a step, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping

from itwinai.benchmark.records import Breakdown

PARTS: Mapping[str, str] = {
    "compute": "compute",
    "communication": "waiting for other workers",
    "data": "waiting for data",
    "other": "other",
}
"""Names of the parts, by their attribute of a `Breakdown`, in the order in which they are shown."""


def whole_of(breakdown: Breakdown) -> float:
    """Return the seconds of all parts together."""
    return sum(seconds_of(breakdown).values())


def seconds_of(breakdown: Breakdown) -> dict[str, float]:
    """Return the seconds of each part, by its attribute; what is hidden behind another part is none of them."""
    return {part: getattr(breakdown, part) for part in PARTS}


def share_of(breakdown: Breakdown | None, part: str) -> float | None:
    """Return the share of a step that a part takes; None if it is not known."""
    if breakdown is None or not (whole := whole_of(breakdown)) > 0:
        return None
    return seconds_of(breakdown)[part] / whole

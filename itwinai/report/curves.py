"""Curves of what was logged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from itwinai.report.pictures import lines_picture
from itwinai.report.sections import Picture, Section, Table

if TYPE_CHECKING:
    from itwinai.loggers.recorder import Curve

SHOWN = 6
"""Most metrics that the terminal shows."""

OWN = ("speed/", "system/", "lr", "gradient_norm")
"""Beginnings of the names of what itwinai logs by itself; the terminal shows what the user logs."""


def metrics_section(curves: Mapping[str, Curve] | None) -> Section:
    """Return the logged values: the last and best of each, and a picture of each group.

    A group are the names that differ only in the stage: ``train_loss`` and ``val_loss``. The curves of `SystemMonitor`
    are in its own section.

    Args:
        curves: the values by name; None if there was no logger.
    """
    if curves is not None and not curves:
        return Section("Metrics", missing=["metrics: nothing was logged"])
    if curves is None:
        return Section("Metrics", missing=["metrics: this run has no logger, and without one nothing is logged"])
    own = [name for name in curves if name.startswith(OWN)]
    users = [name for name in curves if name not in own]
    facts = {name: _told(curves[name]) for name in users[:SHOWN]}
    if len(users) > SHOWN:
        facts["and"] = f"{len(users) - SHOWN} more, in the page"
    rows = [
        (name, number(c.last), number(c.lowest[0]), str(c.lowest[1]), number(c.highest[0]), str(c.highest[1]))
        for name, c in curves.items()
    ]
    table = Table(("metric", "last", "lowest", "at step", "highest", "at step"), rows, "Metrics")
    groups: dict[str, list[str]] = {}
    for name in [*users, *(name for name in own if not name.startswith("system/"))]:
        groups.setdefault(_group(name), []).append(name)
    pictures = [Picture(group, _draw({name: curves[name] for name in names})) for group, names in groups.items()]
    return Section("Metrics", facts, [table], pictures)


def number(value: float) -> str:
    """Return a number with four digits."""
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def _told(curve: Curve) -> str:
    if len(curve.values) < 2:
        return number(curve.last)
    (low, at_low), (high, at_high) = curve.lowest, curve.highest
    return f"{number(curve.last)}  (lowest {number(low)} at step {at_low}, highest {number(high)} at step {at_high})"


_SAME = {"train", "training", "val", "valid", "validation", "test", "step", "epoch", "p50", "p95"}


def _group(name: str) -> str:
    words = [word for word in name.replace("/", "_").replace("-", "_").split("_") if word.lower() not in _SAME]
    return " ".join(words) or name


def _draw(curves: Mapping[str, Curve]) -> str:
    return lines_picture({name: (curve.steps, curve.values) for name, curve in curves.items()}, "step")

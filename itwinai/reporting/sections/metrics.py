"""Curves of what was logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from itwinai.reporting.formatting import value_text
from itwinai.reporting.plotting import FEWEST, lines_figure, picture_of
from itwinai.reporting.sections import Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from itwinai.loggers.in_memory import Curve

SHOWN = 6
"""Most metrics that the terminal shows."""

OWN = ("speed/", "system/", "lr", "gradient_norm")
"""Beginnings of the names of what itwinai logs by itself; the terminal shows what the user logs."""


def metrics_section(curves: Mapping[str, Curve] | None) -> Section:
    """Return the logged values: the last and best of each, and a picture of each group that has enough points.

    A group are the names that differ only in the stage: ``train_loss`` and ``val_loss``. Curves that repeat another one
    are named beside it. The curves of `SystemMonitor` are in its own section.

    Args:
        curves: the values by name; None if there was no logger.
    """
    if curves is not None and not curves:
        return Section("Metrics", missing=["metrics: nothing was logged"])
    if curves is None:
        return Section("Metrics", missing=["metrics: this run has no logger, and without one nothing is logged"])
    shown = _distinct({name: curve for name, curve in curves.items() if not name.startswith("system/")})
    own = [name for name in shown if name.startswith(OWN)]
    users = [name for name in shown if name not in own]
    facts = {name: _curve_text(shown[name]) for name in users[:SHOWN]}
    if len(users) > SHOWN:
        facts["and"] = f"{len(users) - SHOWN} more, in the page"
    rows = [
        (
            name,
            value_text(c.last),
            value_text(c.lowest[0]),
            str(c.lowest[1]),
            value_text(c.highest[0]),
            str(c.highest[1]),
        )
        for name, c in ((name, shown[name]) for name in [*users, *own])
    ]
    table = Table(("metric", "last", "lowest", "at step", "highest", "at step"), rows, "Metrics")
    groups: dict[str, dict[str, Curve]] = {}
    for name in [*users, *own]:
        groups.setdefault(_group(name), {})[name] = shown[name]
    pictures = [
        picture_of(group if len(members) > 1 else next(iter(members)), _draw(members))
        for group, members in groups.items()
        if any(len(curve.steps) >= FEWEST for curve in members.values())
    ]
    return Section("Metrics", facts, [table], pictures)


def _distinct(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """Return curves without those that repeat another one, which has both names then: ``lr (= lr-Adam)``."""
    names: dict[str, list[str]] = {}
    for name in sorted(curves, key=lambda name: -len(curves[name].steps)):
        same = next((other for other in names if _repeats(name, other, curves)), None)
        names.setdefault(name if same is None else same, []).append(name)
    shown = {}
    for name, curve in curves.items():
        if name in names:
            first, *others = sorted(names[name], key=len)
            shown[f"{first} (= {', '.join(others)})" if others else first] = curve
    return shown


def _repeats(name: str, other: str, curves: Mapping[str, Curve]) -> bool:
    """Return whether a curve is another one; of learning rates, whether all but its first and last value are.

    Lightning's LearningRateMonitor notes them a step later than `LoggingCallback` does, and the first one before it.
    """
    curve, of = curves[name], curves[other]
    if _is_rate(name) and _is_rate(other):
        found = set(of.values)
        return found.issuperset(curve.values[1:-1]) and not found.isdisjoint(curve.values)
    return (curve.steps, curve.values) == (of.steps, of.values)


def _is_rate(name: str) -> bool:
    return name == "lr" or name.startswith(("lr/", "lr-"))


def _row(name: str, curve: Curve) -> list[str]:
    """Return the name, the last value, and the lowest and the highest with their steps."""
    (low, at_low), (high, at_high) = curve.lowest, curve.highest
    return [name, value_text(curve.last), value_text(low), str(at_low), value_text(high), str(at_high)]


def _curve_text(curve: Curve) -> str:
    _, last, low, at_low, high, at_high = _row("", curve)
    if len(curve.values) < 2:
        return last
    return f"{last}  (lowest {low} at step {at_low}, highest {high} at step {at_high})"


_SAME = {"train", "training", "val", "valid", "validation", "test", "step", "epoch", "p50", "p95"}


def _group(name: str) -> str:
    if _is_rate(name):
        return "learning rate"
    words = [word for word in name.replace("/", "_").replace("-", "_").split("_") if word.lower() not in _SAME]
    return " ".join(words) or name


def _draw(curves: Mapping[str, Curve]) -> Figure:
    return lines_figure({name: (curve.steps, curve.values) for name, curve in curves.items()}, "step")

"""How much the parameters matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from itwinai.reporting.formatting import percent_text, shortened
from itwinai.reporting.plotting import BEST, GOOD, PLAIN, label_text, legend_above, new_axes, picture_of
from itwinai.reporting.search.ranking import Standing
from itwinai.reporting.sections import Picture

SHOWN = 20
"""Most bars."""


@dataclass(frozen=True)
class Importances:
    """How much each parameter matters for one objective.

    Attributes:
        objective: name of its metric.
        values: the share of each parameter by its path, all together 1, the largest first; empty if they are not known.
        chance: the share that a parameter could have by chance: the highest that it got when the values of the
            objective were dealt out to the trials at random.
        trials: how many trials they are from.
        note: why there are none, or what to keep in mind.
    """

    objective: str
    values: Mapping[str, float] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)
    trials: int = 0
    note: str = ""

    def is_chance(self, path: str) -> bool:
        """Return whether a parameter matters no more than one without any effect may seem to."""
        return self.values.get(path, 0.0) <= self.chance.get(path, 0.0)


def importance_picture(standing: Standing, importances: Importances) -> Picture | None:
    """Return a bar for each parameter, with a mark up to which it may be chance; None if nothing is known."""
    shown = list(importances.values.items())[:SHOWN]
    if not shown:
        return None
    figure, axes = new_axes(5.0, 1.3 + 0.27 * len(shown))
    labels = [label_text(standing.names.get(path, path), 26) for path, _ in shown]
    places = range(len(shown))
    colors = [PLAIN if importances.is_chance(path) else GOOD for path, _ in shown]
    axes.barh(places, [share for _, share in shown], color=colors, height=0.62)
    chances = [min(importances.chance.get(path, 0.0), 1.0) for path, _ in shown]
    axes.vlines(chances, [at - 0.4 for at in places], [at + 0.4 for at in places], color=BEST, linewidth=1.6)
    axes.plot([], [], color=BEST, label="up to here it may be chance")
    for at, (_, share) in zip(places, shown, strict=True):
        # Beside the bar, unless the mark is there.
        end = chances[at] if 0 <= chances[at] - share < 0.15 else share
        axes.annotate(percent_text(share), (end, at), (4, 0), textcoords="offset points", va="center", fontsize="small")
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.12 * max([*chances, *(share for _, share in shown)]))
    axes.set_xlabel("share")
    axes.xaxis.set_major_formatter(lambda value, _: percent_text(value))
    legend_above(figure)
    more = f"; {len(importances.values) - SHOWN} more matter less" if len(importances.values) > SHOWN else ""
    title = f"Importance for the best values of {shortened(importances.objective, 60)}, {importances.trials:,} trials"
    return picture_of(f"{title}{more}", figure)

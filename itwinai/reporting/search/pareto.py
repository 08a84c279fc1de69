"""What several objectives cost each other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from itwinai.reporting.formatting import shortened
from itwinai.reporting.plotting import BEST, PLAIN, WIDE, beyond, dots, label_text, new_axes, picture_of
from itwinai.reporting.search.axis import objective_axis
from itwinai.reporting.search.ranking import Standing
from itwinai.reporting.sections import Picture

PAIRS = 6
"""Most pictures: all pairs of four objectives."""

APART = 0.05
"""How far apart trials of the front are whose numbers both have room, as part of an axis."""


def pareto_pictures(standing: Standing) -> Iterator[Picture]:
    """Yield a picture for each pair of objectives: the trials that no other dominates, and the others in gray.

    Two objectives have a line along the front. Of more objectives only the points are drawn: a trial of the front may
    be dominated in the two of a picture.
    """
    pairs = list(combinations(range(len(standing.record.objectives)), 2))
    if standing.ranked:
        for pair in pairs[:PAIRS]:
            yield _pair(standing, pair, with_line=len(pairs) == 1)


def _pair(standing: Standing, pair: tuple[int, int], with_line: bool) -> Picture:
    objectives = [standing.record.objectives[index] for index in pair]
    points = {number: (values[pair[0]], values[pair[1]]) for number, values in standing.values.items()}
    columns = zip(*points.values(), strict=True)
    sides = [objective_axis(values, objective) for values, objective in zip(columns, objectives, strict=True)]
    front = sorted((points[trial.number], trial.number) for trial in standing.front)
    on_front = {number for _, number in front}
    others = [point for number, point in points.items() if number not in on_front]
    figure, axes = new_axes(WIDE, 4.0) if with_line else new_axes(5.0, 3.4)
    if others:
        dots(axes, [point[0] for point in others], [point[1] for point in others], PLAIN)
    xs, ys = zip(*(point for point, _ in front), strict=True)
    if with_line:
        low = objectives[0].mode == "min"
        axes.step(xs, ys, where="post" if low else "pre", color=BEST, linewidth=1.2, alpha=0.7)
    axes.scatter(xs, ys, s=38, color=BEST, zorder=4)
    sides[0].set_on(axes, "x")
    sides[1].set_on(axes, "y")
    named: list[tuple[float, float]] = []
    for point, number in front:
        x, y = (side.place(value) for side, value in zip(sides, point, strict=True))
        if all(abs(x - other_x) > APART or abs(y - other_y) > APART for other_x, other_y in named):
            named.append((x, y))
            axes.annotate(str(number), point, (5, 5), textcoords="offset points", fontsize="small")
    names = [label_text(f"{objective.metric} ({objective.mode})", 50) for objective in objectives]
    axes.set(xlabel=names[0], ylabel=names[1])
    hidden = sum(
        any(not side.low <= value <= side.high for side, value in zip(sides, point, strict=True))
        for point in points.values()
    )
    metrics = " and ".join(shortened(objective.metric, 40) for objective in objectives)
    title = f"{metrics}: {len(front)} trials that no other dominates, with their numbers"
    return picture_of(f"{title}{beyond(hidden, 'trials')}", figure, wide=with_line)

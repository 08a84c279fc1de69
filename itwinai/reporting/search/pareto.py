"""What several objectives cost each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from itwinai.reporting.formatting import shortened
from itwinai.reporting.plotting import BEST, PLAIN, WIDE, beyond, dots, label_text, new_axes, picture_of
from itwinai.reporting.search.objective_axis import spread_of
from itwinai.reporting.search.ranking import Standing, sign_of
from itwinai.reporting.sections import Picture

PAIRS = 6
"""Most pictures: all pairs of four objectives."""

APART = 0.05
"""How far from each other trials of the front are whose numbers both have room, as part of an axis."""


def pareto_pictures(standing: Standing) -> Iterator[Picture]:
    """Yield a picture for each pair of objectives: the trials that no other dominates, and the others in grey.

    Two objectives have a line along the front. Of more objectives only the points are drawn: a trial of the front may
    be dominated in the two of a picture.
    """
    pairs = list(combinations(range(len(standing.record.objectives)), 2))
    if standing.ranked:
        for first, second in pairs[:PAIRS]:
            yield _pair(standing, first, second, with_line=len(pairs) == 1)


def _pair(standing: Standing, first: int, second: int, with_line: bool) -> Picture:
    objectives = (standing.record.objectives[first], standing.record.objectives[second])
    points = {number: (values[first], values[second]) for number, values in standing.values.items()}
    spreads = [
        spread_of([point[axis] for point in points.values()], objective) for axis, objective in enumerate(objectives)
    ]
    front = sorted((points[trial.number], trial.number) for trial in standing.front)
    on_front = {number for _, number in front}
    others = [point for number, point in points.items() if number not in on_front]
    figure, axes = new_axes(WIDE, 4.0) if with_line else new_axes(5.0, 3.4)
    if others:
        dots(axes, [x for x, _ in others], [y for _, y in others], PLAIN)
    line = _stairs([point for point, _ in front], sign_of(objectives[0]))
    if with_line:
        axes.plot(*zip(*line, strict=True), color=BEST, linewidth=1.2, alpha=0.7)
    xs, ys = zip(*(point for point, _ in front), strict=True)
    axes.scatter(xs, ys, s=38, color=BEST, zorder=4)
    for spread, vertical in zip(spreads, (False, True), strict=True):
        spread.apply(axes, vertical)
    named: list[tuple[float, float]] = []
    for point, number in front:
        x, y = (spread.place(value) for spread, value in zip(spreads, point, strict=True))
        if all(abs(x - other_x) > APART or abs(y - other_y) > APART for other_x, other_y in named):
            named.append((x, y))
            axes.annotate(str(number), point, (5, 5), textcoords="offset points", fontsize="small")
    names = [label_text(f"{objective.metric} ({objective.mode})", 50) for objective in objectives]
    axes.set(xlabel=names[0], ylabel=names[1])
    hidden = sum(
        any(not spread.low <= value <= spread.high for spread, value in zip(spreads, point, strict=True))
        for point in points.values()
    )
    metrics = " and ".join(shortened(objective.metric, 40) for objective in objectives)
    title = f"{metrics}: {len(front)} trials that no other dominates, with their numbers"
    return picture_of(f"{title}{beyond(hidden, 'trials')}", figure, wide=with_line)


def _stairs(points: Sequence[tuple[float, float]], sign: float) -> list[tuple[float, float]]:
    """Return the line that parts what is dominated from what is not.

    Args:
        points: of the front, in order of their first value.
        sign: 1 if the first value is to be small, -1 if large.
    """
    line: list[tuple[float, float]] = []
    for point in points:
        if line:
            (x, y), (next_x, next_y) = line[-1], point
            line.append((next_x, y) if sign > 0 else (x, next_y))
        line.append(point)
    return line

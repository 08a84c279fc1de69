"""How many times as fast each cell has become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from itwinai.benchmark.comparison.compare import ComparedCell, Verdict
from itwinai.benchmark.report.style import BAR, REFERENCE, Drawn, limited_ratios, mark_cut
from itwinai.reporting.plotting import COLOURS, WIDE, axis_limits, legend_above, new_axes
from itwinai.reporting.search.style import lettering

MOST = 18
"""Cells that a picture has room for."""

_LOOKS: Mapping[Verdict, tuple[str, str, str]] = {
    "faster": (COLOURS[0], ">", "B is faster"),
    "slower": (COLOURS[5], "<", "B is slower"),
    "=": (REFERENCE, "|", "no difference could be shown"),
    "?": (REFERENCE, "o", "single runs"),
}
"""Colour, marker and meaning of what has become of a cell: not told by colour alone."""


def ratio_pictures(cells: Sequence[ComparedCell], names: Sequence[str]) -> list[Drawn]:
    """Return pictures of the throughput of B by that of A, with 95 % intervals; all have the same axis.

    Args:
        cells: what was compared.
        names: what the cells are called.
    """
    ratios = [one.throughput for one in cells]
    means = [1.0, *(ratio.mean for ratio in ratios)]
    ends = [end for ratio in ratios for end in (ratio.low, ratio.high) if end is not None]
    low, high = axis_limits(limited_ratios(ends, means))
    shown = list(zip(cells, names, strict=True))
    return [
        _picture(shown[first : first + MOST], (max(low, 0.0), high), first // MOST)
        for first in range(0, len(shown), MOST)
    ]


def _picture(shown: Sequence[tuple[ComparedCell, str]], limits: tuple[float, float], number: int) -> Drawn:
    figure, axes = new_axes(WIDE, 1.2 + 0.24 * len(shown))
    axes.set_xlim(*limits)
    axes.axvline(1.0, color=REFERENCE, linewidth=1.0, linestyle="--")
    seen: dict[Verdict, None] = {}
    for place, (one, _) in enumerate(shown):
        colour, marker, _ = _LOOKS[one.verdict]
        seen[one.verdict] = None
        if one.throughput.low is not None and one.throughput.high is not None:
            mean, low, high = one.throughput.mean, one.throughput.low, one.throughput.high
            axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color=colour, **BAR)
            mark_cut(axes, place, (low, high), colour, across=True)
        axes.plot(one.throughput.mean, place, color=colour, marker=marker, markersize=8, markeredgewidth=2)
        axes.annotate(
            one.verdict,
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            color=colour,
            fontsize="small",
        )
    for verdict in seen:
        colour, marker, meaning = _LOOKS[verdict]
        axes.plot([], [], color=colour, marker=marker, markersize=8, markeredgewidth=2, linestyle="", label=meaning)
    axes.set_yticks(range(len(shown)), [lettering(name, 48) for _, name in shown])
    axes.invert_yaxis()
    axes.set_xlabel("throughput of B by that of A")
    legend_above(figure)
    title = "Throughput of B by that of A, with 95 % intervals" if number == 0 else f"More cells ({number + 1})"
    return Drawn(f"ratios-{number + 1}", title, figure)

"""A comparison of two benchmarks as text of a terminal and as a page."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from itwinai.benchmark.comparison import ComparedCell, Comparison, Verdict
from itwinai.benchmark.report.plots import BAR, REFERENCE, Drawn, limited_ratios, mark_cut
from itwinai.benchmark.report.tables import setting_columns, wrapped
from itwinai.benchmark.statistics.confidence_intervals import Estimate
from itwinai.benchmark.statistics.groups import Naming, Speed, naming_of
from itwinai.benchmark.statistics.ranking import SIGNIFICANT
from itwinai.errors import require
from itwinai.io.atomic import write_whole
from itwinai.reporting.formatting import UNKNOWN, count_text, estimate_text, number_text, origin, p_text
from itwinai.reporting.plotting import COLORS, WIDE, axis_limits, label_text, legend_above, new_axes
from itwinai.reporting.sections import Section, Table
from itwinai.reporting.tables import table_text
from itwinai.reporting.terminal import WIDTH

LEGEND = {
    "B/A": "speed of B divided by that of A, with its 95 % interval; above 1, B is faster",
    "p": "how likely so large a difference is by chance alone, corrected for the number of cells (Holm)",
    "B is": f"=: no significant difference (p is {SIGNIFICANT:g} or more); ?: unknown, with a single run",
}
"""What the columns mean."""

SHOWN = 4
"""Most sentences of a kind."""

MOST_CELLS = 18
"""Cells that a plot has room for."""

# Color, marker and meaning of a verdict: not told apart by color alone.
_LOOKS: Mapping[Verdict, tuple[str, str, str]] = {
    "faster": (COLORS[0], ">", "B is faster"),
    "slower": (COLORS[5], "<", "B is slower"),
    "=": (REFERENCE, "|", "no significant difference"),
    "?": (REFERENCE, "o", "single runs"),
}


def comparison_text(comparison: Comparison) -> str:
    """Return a comparison as lines of a terminal: findings, cells, and what else differs."""
    naming = _naming(comparison)
    lines = [f"── {_title(comparison)} ".ljust(WIDTH, "─")]
    warnings = [f"Warning: {text}" for text in _warnings(comparison, naming)]
    lines += [line for text in [*warnings, *_findings(comparison, naming)] for line in wrapped(text, "- ")]
    by_setting: dict[str, list[ComparedCell]] = {}
    for one in comparison.cells:
        by_setting.setdefault(naming.setting(one.cell), []).append(one)
    columns = ("strategy", "workers", "A", "B", "B/A", "p", "B is", "launch", "memory", "loss")
    for setting, cells in by_setting.items():
        where = f"{setting}, " if setting else ""
        lines += ["", f"{where}speed in {comparison.speed.unit}, and launch time and memory of B divided by those of A"]
        rows = [[one.cell.strategy, f"{one.cell.workers:,}", *_figures(one, comparison.speed)] for one in cells]
        lines.append(table_text(Table(columns, rows)))
    if comparison.cells:
        lines += ["", *(line for name, text in LEGEND.items() for line in wrapped(f"{name}: {text}", "- "))]
    for title, differing in _different(comparison).items():
        lines += ["", f"{title} in A and in B, where they differ"]
        for name, (a, b) in differing.items():
            lines += wrapped(f"{name}: {a or UNKNOWN} | {b or UNKNOWN}", "- ")
    return "\n".join([*lines, "─" * WIDTH])


def write_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write a comparison as a page that needs no network, and return its path.

    Args:
        comparison: of two benchmarks.
        path: of the page; an existing one is replaced as a whole.

    Raises:
        MissingPackageError: matplotlib or jinja2 is not installed.
    """
    for package in ("matplotlib", "jinja2"):
        require(package, "Install it with `pip install 'itwinai[benchmark]'`.", "The comparison of benchmarks")
    from itwinai.reporting.html import page

    about = []
    for name, facts in (("A", comparison.a.facts), ("B", comparison.b.facts)):
        about += origin(name, begun=facts.get("begun", ""), command="", version=facts.get("itwinai", ""))
    write_whole(Path(path), page(_title(comparison), comparison_sections(comparison), about=about))
    return Path(path)


def comparison_sections(comparison: Comparison) -> list[Section]:
    """Return the sections of the page of a comparison."""
    naming = _naming(comparison)
    facts = {"A": comparison.a.name, "B": comparison.b.name, "in short": " ".join(_findings(comparison, naming))}
    sections = [Section("Findings", facts, advice=list(_warnings(comparison, naming)))]
    if comparison.cells:
        settings = setting_columns([one.cell for one in comparison.cells])
        rows = [
            [*(column[index] for column in settings.values()), *_figures(one, comparison.speed)]
            for index, one in enumerate(comparison.cells)
        ]
        unit = comparison.speed.unit
        columns = (f"A, {unit}", f"B, {unit}", "B/A", "p", "B is", "launch, B/A", "memory, B/A", "loss")
        table = Table([*settings, *columns], rows, "Cells that both have measured")
        names = [naming.cells([one.cell]) for one in comparison.cells]
        pictures = [one.picture for one in ratio_plots(comparison.cells, names)]
        sections.append(Section("Throughput of B divided by that of A", LEGEND, [table], pictures=pictures))
    tables = [
        Table(("what", "A", "B"), [(name, a or UNKNOWN, b or UNKNOWN) for name, (a, b) in rows.items()], title)
        for title, rows in _different(comparison).items()
    ]
    return [*sections, Section("What else differs", tables=tables)] if tables else sections


def ratio_plots(cells: Sequence[ComparedCell], names: Sequence[str]) -> list[Drawn]:
    """Return plots of the throughput of B divided by that of A, with 95 % intervals; all have the same axis.

    Args:
        cells: what was compared.
        names: of the cells.
    """
    ratios = [one.throughput for one in cells]
    ends = [end for ratio in ratios for end in (ratio.low, ratio.high) if end is not None]
    low, high = axis_limits(limited_ratios(ends, [1.0, *(ratio.mean for ratio in ratios)]))
    shown = list(zip(cells, names, strict=True))
    starts = range(0, len(shown), MOST_CELLS)
    return [
        _ratio_plot(shown[first : first + MOST_CELLS], (max(low, 0.0), high), first // MOST_CELLS) for first in starts
    ]


def _ratio_plot(shown: Sequence[tuple[ComparedCell, str]], limits: tuple[float, float], number: int) -> Drawn:
    figure, axes = new_axes(WIDE, 1.2 + 0.24 * len(shown))
    axes.set_xlim(*limits)
    axes.axvline(1.0, color=REFERENCE, linewidth=1.0, linestyle="--")
    for place, (one, _) in enumerate(shown):
        color, marker, _ = _LOOKS[one.verdict]
        mean, low, high = one.throughput.mean, one.throughput.low, one.throughput.high
        if low is not None and high is not None:
            axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color=color, **BAR)
            mark_cut(axes, place, (low, high), color, across=True)
        axes.plot(mean, place, color=color, marker=marker, markersize=8, markeredgewidth=2)
        beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": "small"}
        axes.annotate(one.verdict, (1.01, place), color=color, **beside)
    for verdict in dict.fromkeys(one.verdict for one, _ in shown):
        color, marker, meaning = _LOOKS[verdict]
        axes.plot([], [], color=color, marker=marker, markersize=8, markeredgewidth=2, linestyle="", label=meaning)
    axes.set_yticks(range(len(shown)), [label_text(name, 48) for _, name in shown])
    axes.invert_yaxis()
    axes.set_xlabel("throughput of B divided by that of A")
    legend_above(figure)
    first = "Throughput of B divided by that of A, with 95 % intervals"
    return Drawn(f"ratios-{number + 1}", first if number == 0 else f"More cells ({number + 1})", figure)


def _title(comparison: Comparison) -> str:
    return f"Benchmark {comparison.b.name} (B) compared with {comparison.a.name} (A)"


def _naming(comparison: Comparison) -> Naming:
    shown = [one.cell for one in comparison.cells]
    return naming_of([*shown, *comparison.without, *comparison.only_a, *comparison.only_b])


def _warnings(comparison: Comparison, naming: Naming) -> Iterator[str]:
    """Yield why speeds cannot be compared."""
    unlike = [one for one in comparison.cells if one.a.threads and one.b.threads and one.a.threads != one.b.threads]
    if unlike:
        threads = ", ".join(dict.fromkeys(f"{one.a.threads} in A and {one.b.threads} in B" for one in unlike))
        yield (
            f"Workers computed with different numbers of threads ({threads}) in "
            f"{naming.cells([one.cell for one in unlike])}: their speeds cannot be compared. Measure one of them "
            "again with the --threads of the other."
        )
    differing = [one for one in comparison.cells if one.same_loss is False]
    for one in differing[:SHOWN]:
        a, b = (cell.loss.mean if cell.loss is not None else None for cell in (one.a, one.b))
        yield (
            f"{naming.cells([one.cell])} ended with a loss of {a:.4g} in A and of {b:.4g} in B: they trained something "
            "else. Do not compare their speeds until that is explained."
        )
    if more := differing[SHOWN:]:
        yield f"The same holds for {count_text(len(more), 'more cell')}: {naming.cells([one.cell for one in more])}."


def _findings(comparison: Comparison, naming: Naming) -> Iterator[str]:
    cells = comparison.cells
    if not cells:
        yield "No cell was measured in both, so there is nothing to compare."
    changed = [one for one in cells if one.verdict in ("faster", "slower")]
    if changed:
        verdicts: tuple[Verdict, ...] = ("faster", "slower")
        counts = [f"{verdict} in {number}" for verdict in verdicts if (number := comparison.count(verdict))]
        yield f"Of {count_text(len(cells), 'cell')} B is {' and '.join(counts)} (p < {SIGNIFICANT:g} for all together)."
    if trusted := [one for one in changed if one.same_loss is not False]:
        most = max(trusted, key=lambda one: max(one.throughput.mean, 1 / one.throughput.mean))
        yield (
            f"Most in {naming.cells([most.cell])}: {estimate_text(most.throughput)} times the throughput of A"
            f"{f' ({p_text(most.p)})' if most.p is not None else ''}."
        )
    if same := comparison.count("="):
        runs = min(one.throughput.n for one in cells if one.verdict == "=")
        yield f"No significant difference in {count_text(same, 'cell')}, with {count_text(runs, 'repeat')}."
    if unknown := comparison.count("?"):
        yield f"Unknown for {count_text(unknown, 'cell')} with a single run in A or in B: repeat them."
    if cells and not comparison.speed.by_samples:
        yield "The number of samples is unknown: batches per second are compared, as if batches were equally large."
    for text, which in (
        ("Without a result in A or in B", comparison.without),
        ("Only in A", comparison.only_a),
        ("Only in B", comparison.only_b),
    ):
        if which:
            yield f"{text}: {naming.cells(which)}."


def _different(comparison: Comparison) -> dict[str, Mapping[str, tuple[str, str]]]:
    both = {"Settings": comparison.settings, "Environment": comparison.facts}
    return {title: rows for title, rows in both.items() if rows}


def _figures(one: ComparedCell, speed: Speed) -> list[str]:
    return [
        _mean(speed.of(one.a)),
        _mean(speed.of(one.b)),
        estimate_text(one.throughput),
        UNKNOWN if one.p is None else p_text(one.p).removeprefix("p = ").removeprefix("p "),
        one.verdict,
        _mean(one.launch),
        _mean(one.memory),
        {None: UNKNOWN, True: "same", False: "differs"}[one.same_loss],
    ]


def _mean(estimate: Estimate | None) -> str:
    return UNKNOWN if estimate is None else number_text(estimate.mean)

"""Compare two benchmarks, and tell what has become of the speed: as text, and as a page."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from itwinai.benchmark.comparison.compare import ComparedCell, Comparison, compare
from itwinai.benchmark.statistics.contest import SIGNIFICANT
from itwinai.benchmark.statistics.estimates import Estimate
from itwinai.benchmark.statistics.groups import Naming, Speed, naming_of
from itwinai.benchmark.telling.aligned import aligned
from itwinai.benchmark.telling.amounts import UNKNOWN, estimate_text, number_text, p_text
from itwinai.errors import require
from itwinai.io.atomic import write_whole
from itwinai.reporting.formatting import count_text, origin
from itwinai.reporting.sections import Section, Table
from itwinai.reporting.terminal import WIDTH

__all__ = ["Comparison", "compare", "comparison_sections", "comparison_text", "write_comparison"]

LEGEND = {
    "B/A": "speed of B by that of A, with its 95 % interval; above 1, B is faster",
    "p": "how likely so large a difference is if there is none in truth, corrected for the number of cells (Holm)",
    "B is": f"=: no difference could be shown (p is {SIGNIFICANT:g} or more); ?: nothing can be said of a single run",
}
"""What the columns mean."""

TOLD = 4
"""Most cells of a kind that a sentence is spent on."""


def comparison_text(comparison: Comparison) -> str:
    """Return a comparison as lines of a terminal: what was found, the cells, and what else differs.

    Args:
        comparison: of two benchmarks.
    """
    naming = _naming(comparison)
    lines = [f"── {_title(comparison)} ".ljust(WIDTH, "─")]
    warnings = [f"Warning: {text}" for text in _warnings(comparison, naming)]
    lines += [line for text in [*warnings, *_words(comparison, naming)] for line in _item(text)]
    by_setting: dict[str, list[ComparedCell]] = {}
    for one in comparison.cells:
        by_setting.setdefault(naming.setting(one.cell), []).append(one)
    for setting, cells in by_setting.items():
        where = f"{setting}, " if setting else ""
        lines += ["", f"{where}speed in {comparison.speed.unit}, and launch time and memory of B by those of A"]
        rows = [([one.cell.strategy, f"{one.cell.workers:,}", *_figures(one, comparison.speed)], "") for one in cells]
        lines += aligned(("strategy", "workers", "A", "B", "B/A", "p", "B is", "launch", "memory", "loss"), rows)
    if comparison.cells:
        lines += ["", *(line for name, meaning in LEGEND.items() for line in _item(f"{name}: {meaning}"))]
    for title, differing in _different(comparison).items():
        lines += ["", f"{title} in A and in B, where they differ"]
        for name, (a, b) in differing.items():
            lines += _item(f"{name}: {a or UNKNOWN} | {b or UNKNOWN}")
    return "\n".join([*lines, "─" * WIDTH])


def write_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write a comparison as a page that needs no network; a file of that name is replaced as a whole.

    Args:
        comparison: of two benchmarks.
        path: of the page; its folder is made if it does not exist.

    Returns:
        The path.

    Raises:
        MissingPackageError: what draws the picture or makes the page is not installed.
        OSError: it could not be written; the old page is still there.
    """
    for package in ("matplotlib", "jinja2"):
        require(package, "Install it with `pip install 'itwinai[benchmark]'`.", "The comparison of benchmarks")
    from itwinai.reporting.html import page

    both = {"A": comparison.a.facts, "B": comparison.b.facts}
    about = [
        line
        for name, facts in both.items()
        for line in origin(name, begun=facts.get("begun", ""), command="", version=facts.get("itwinai", ""))
    ]
    write_whole(Path(path), page(_title(comparison), comparison_sections(comparison), about=about))
    return Path(path)


def comparison_sections(comparison: Comparison) -> list[Section]:
    """Return what a comparison has to say, for a page.

    Args:
        comparison: of two benchmarks.
    """
    from itwinai.benchmark.report.ratios import ratio_pictures
    from itwinai.benchmark.report.tables import of_figures, setting_columns

    naming = _naming(comparison)
    facts = {"A": comparison.a.name, "B": comparison.b.name, "in short": " ".join(_words(comparison, naming))}
    sections = [Section("In words", facts, advice=list(_warnings(comparison, naming)))]
    if comparison.cells:
        settings = setting_columns([one.cell for one in comparison.cells])
        rows = [
            [*(column[index] for column in settings.values()), *_figures(one, comparison.speed)]
            for index, one in enumerate(comparison.cells)
        ]
        unit = comparison.speed.unit
        columns = (f"A, {unit}", f"B, {unit}", "B/A", "p", "B is", "launch, B/A", "memory, B/A", "loss")
        table = of_figures(Table([*settings, *columns], rows, "Cells that both have measured"))
        names = [naming.cells([one.cell]) for one in comparison.cells]
        pictures = [one.picture for one in ratio_pictures(comparison.cells, names)]
        sections.append(Section("Throughput of B by that of A", LEGEND, [table], pictures=pictures))
    tables = [
        Table(("what", "A", "B"), [(name, a or UNKNOWN, b or UNKNOWN) for name, (a, b) in rows.items()], title)
        for title, rows in _different(comparison).items()
    ]
    return [*sections, Section("What else differs", tables=tables)] if tables else sections


def _title(comparison: Comparison) -> str:
    return f"Benchmark {comparison.b.name} (B) compared with {comparison.a.name} (A)"


def _naming(comparison: Comparison) -> Naming:
    shown = [one.cell for one in comparison.cells]
    return naming_of([*shown, *comparison.without, *comparison.only_a, *comparison.only_b])


def _warnings(comparison: Comparison, naming: Naming) -> Iterator[str]:
    """Yield what the speeds are worth nothing for."""
    unlike = [one for one in comparison.cells if one.a.threads and one.b.threads and one.a.threads != one.b.threads]
    if unlike:
        threads = ", ".join(dict.fromkeys(f"{one.a.threads} in A and {one.b.threads} in B" for one in unlike))
        yield (
            f"Workers computed with different numbers of threads ({threads}) in "
            f"{naming.cells([one.cell for one in unlike])}: their speeds cannot be compared. Measure one of them again "
            "with the --threads of the other."
        )
    differing = [one for one in comparison.cells if one.same_loss is False]
    for one in differing[:TOLD]:
        a, b = (cell.loss.mean if cell.loss is not None else None for cell in (one.a, one.b))
        yield (
            f"{naming.cells([one.cell])} ended with a loss of {a:.4g} in A and of {b:.4g} in B: they have trained "
            "something else, and until that is explained their speeds cannot be compared."
        )
    if more := differing[TOLD:]:
        yield f"So it is with {count_text(len(more), 'more cell')}: {naming.cells([one.cell for one in more])}."


def _words(comparison: Comparison, naming: Naming) -> Iterator[str]:
    cells = comparison.cells
    if not cells:
        yield "There is no cell that both have measured, so that there is nothing to compare."
    changed = [one for one in cells if one.verdict in ("faster", "slower")]
    if changed:
        counts = [f"{word} in {number}" for word in ("faster", "slower") if (number := comparison.count(word))]
        yield f"Of {count_text(len(cells), 'cell')} B is {' and '.join(counts)} (p < {SIGNIFICANT:g} for all together)."
    if trusted := [one for one in changed if one.same_loss is not False]:
        most = max(trusted, key=lambda one: max(one.throughput.mean, 1 / one.throughput.mean))
        yield (
            f"Most in {naming.cells([most.cell])}: {estimate_text(most.throughput)} times the throughput of A"
            f"{f' ({p_text(most.p)})' if most.p is not None else ''}."
        )
    if same := comparison.count("="):
        runs = min(one.throughput.n for one in cells if one.verdict == "=")
        yield f"No difference could be shown in {count_text(same, 'cell')}, with {count_text(runs, 'repeat')}."
    if unknown := comparison.count("?"):
        yield f"Nothing can be said of {count_text(unknown, 'cell')} with a single run in A or in B: repeat them."
    if cells and not comparison.speed.by_samples:
        yield "The runs do not tell their samples: the batches per second are compared, as if they were equally large."
    for text, which in (
        ("without a result in A or in B", comparison.without),
        ("only in A", comparison.only_a),
        ("only in B", comparison.only_b),
    ):
        if which:
            yield f"{text[:1].upper()}{text[1:]}: {naming.cells(which)}."


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


def _item(text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )

"""The page of a benchmark: sections in the order in which people ask, with plots that are also written as files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from itwinai.benchmark.records import SINGLE, BenchmarkRecord
from itwinai.benchmark.report.breakdown_plot import breakdown_plots, breakdown_table
from itwinai.benchmark.report.caveats import other_programs_text, threads_text
from itwinai.benchmark.report.findings import Findings, findings_of, relative_text, some_of
from itwinai.benchmark.report.law_plots import law_plots, law_table, prediction_table
from itwinai.benchmark.report.plots import (
    EFFICIENCY,
    LOSS,
    MOST_COMBINATIONS,
    SPEEDUP,
    Drawn,
    Look,
    Quantity,
    energy,
    launch,
    line_plots,
    looks_of,
    memory,
    throughput,
)
from itwinai.benchmark.report.tables import cells_table, failed_table, setting_columns
from itwinai.benchmark.statistics.confidence_intervals import Estimate
from itwinai.benchmark.statistics.groups import Group, Speed, groups_of, named, naming_of, speed_of, strategies_of
from itwinai.benchmark.statistics.scaling_law import FittedLaw, NoFit, fit
from itwinai.benchmark.statistics.summary import LOSS_TOLERANCE, Summary, summarize
from itwinai.errors import require
from itwinai.io.atomic import write_whole
from itwinai.reporting.formatting import count_text, estimate_text, origin
from itwinai.reporting.sections import Section, Table

PAGE = "report.html"
PICTURES = "pictures"

DOTS_PER_INCH = 200
"""Of the plots that are written as PNG: enough for print."""

Part = tuple[Section, list[Drawn]]
"""A section with its plots."""


def write_report(record: BenchmarkRecord, folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html``, which needs no network, and each plot as SVG and PNG below ``pictures``.

    Args:
        record: the benchmark.
        folder: for the files; existing ones are replaced.

    Returns:
        The path of the page.

    Raises:
        MissingPackageError: matplotlib, jinja2 or scipy is not installed.
    """
    for package in ("matplotlib", "jinja2", "scipy"):
        require(package, "Install it with `pip install 'itwinai[benchmark]'`.", "The report of a benchmark")
    from itwinai.reporting.html import page

    sections, drawn, lead = benchmark_page(record)
    path = Path(folder) / PAGE
    write_whole(path, page(f"Benchmark of {record.name}", sections, lead, _about(record)))
    pictures = Path(folder) / PICTURES
    if drawn:
        pictures.mkdir(parents=True, exist_ok=True)
    seen = Counter[str]()
    for one in drawn:
        seen[one.name] += 1
        name = one.name if seen[one.name] == 1 else f"{one.name}-{seen[one.name]}"
        (pictures / f"{name}.svg").write_text(one.picture.svg, encoding="utf-8")
        one.figure.savefig(pictures / f"{name}.png", dpi=DOTS_PER_INCH)
    return path


@dataclass(frozen=True)
class _Benchmark:
    """A benchmark with what is computed once for all sections."""

    summary: Summary
    groups: Sequence[Group]
    speed: Speed
    looks: dict[str, Look]
    laws: Sequence[FittedLaw | NoFit]


def benchmark_page(record: BenchmarkRecord) -> tuple[list[Section], list[Drawn], list[str]]:
    """Return the sections of the page, their plots, and the paragraphs at its top."""
    summary = summarize(record)
    cells = summary.cells
    laws = [fit(line) for line in summary.series]
    benchmark = _Benchmark(summary, groups_of(summary), speed_of(cells), looks_of(strategies_of(cells)), laws)
    findings = findings_of(summary, laws)
    parts = [part for part in _measured(benchmark) if part is not None] if any(one.runs for one in cells) else []
    sections = [_findings(summary, findings), *(section for section, _ in parts)]
    if cells:
        facts = _facts(relative=relative_text(summary), threads=threads_text(summary))
        sections.append(Section("All cells", facts, [cells_table(summary, benchmark.speed)]))
    if (failed := failed_table(summary)) is not None:
        sections.append(Section("Failed", tables=[failed], advice=findings.failed))
    sections += _background(summary)
    return sections, [one for _, drawn in parts for one in drawn], _lead(findings)


def _measured(benchmark: _Benchmark) -> list[Part | None]:
    """Return the sections of what was measured; None if there is nothing to show."""
    cells = benchmark.summary.cells
    reasons = list(dict.fromkeys(one.no_joules.rstrip(".") for one in cells if one.no_joules))
    no_energy = f"energy: {'; '.join(reasons[:3]) or 'the reason is unknown'}"
    no_samples = "throughput: the number of samples is unknown"
    return [
        _lines("Throughput", benchmark, throughput(benchmark.speed), no_samples),
        _lines("Speed-up", benchmark, SPEEDUP),
        _lines("Efficiency", benchmark, EFFICIENCY),
        _steps(benchmark),
        _lines("Memory per worker", benchmark, memory(cells), "memory: the system does not report it"),
        _lines("Energy per sample", benchmark, energy(cells), no_energy),
        _lines("Loss after the steps", benchmark, LOSS, "loss: the training step returns none"),
        _lines("Launch time", benchmark, launch(cells)),
        _laws(benchmark),
    ]


def _findings(summary: Summary, findings: Findings) -> Section:
    measured = [one for one in summary.cells if one.runs]
    runs = sum(len(one.runs) for one in measured)
    facts = {"measured": f"{len(measured)} of {count_text(len(summary.cells), 'cell')}, {count_text(runs, 'run')}"}
    tables = []
    if len(findings.findings) == 1:
        facts |= findings.findings[0].sentences
    else:
        tables = [Table(("about", "finding"), list(one.sentences.items()), one.name) for one in findings.findings]
    facts |= _facts(**{"not known": " ".join(findings.notes)})
    warnings = [f"Warning: {text}" for text in findings.warnings]
    advice = [*warnings, *findings.recommendations]
    return Section("Findings", facts, tables, advice=advice, missing=findings.missing)


def _lead(findings: Findings) -> list[str]:
    """Return what stands at the top: whether it is all, whether it can be trusted, and what to use."""
    cautions = []
    if findings.warnings and findings.findings:
        them = "warning" if len(findings.warnings) == 1 else f"{len(findings.warnings)} warnings"
        cautions = [f"Read the {them} below before you rely on any of it."]
    return [*findings.unfinished, *cautions, *findings.answers]


def _lines(title: str, benchmark: _Benchmark, quantity: Quantity, reason: str = "") -> Part | None:
    """Return a quantity over the number of workers; None if unknown, for which the findings have the reason."""
    summary = benchmark.summary
    measured = [one for one in summary.cells if one.runs]
    values = {one.cell: found for one in measured if (found := quantity.known(one)) is not None}
    if not values:
        return None
    if quantity is LOSS and len(values) > 1 and (same := _same_loss(list(values.values()))):
        return Section(title, {"loss": f"{same} in all cells: all train the same"}), []
    drawn = line_plots(quantity, benchmark.groups, benchmark.looks)
    without = [one for one in measured if quantity.of(one) is None]
    missing = [f"{reason}{some_of(len(without), len(measured))}"] if without and reason else []
    facts = {"not known": " ".join(summary.notes)} if without and not reason else {}
    facts |= _facts(relative=relative_text(summary)) if quantity in (SPEEDUP, EFFICIENCY) else {}
    if not drawn:
        facts |= {named(cell): estimate_text(found, quantity.unit) for cell, found in values.items()}
    combinations = len({group.axes for group in benchmark.groups})
    if combinations > MOST_COMBINATIONS:
        facts["not drawn"] = f"{combinations - MOST_COMBINATIONS} combinations of values: see all cells below"
    return Section(title, facts, pictures=[one.picture for one in drawn], missing=missing), drawn


def _same_loss(losses: Sequence[Estimate]) -> str:
    """Return the loss that all cells end with; empty if they differ by more than rounding."""
    low, high = min(one.mean for one in losses), max(one.mean for one in losses)
    return f"{low:.4g}" if high - low <= LOSS_TOLERANCE * abs(high) else ""


def _steps(benchmark: _Benchmark) -> Part | None:
    cells = benchmark.summary.cells
    drawn = breakdown_plots(benchmark.groups)
    table = breakdown_table(cells, setting_columns([one.cell for one in cells]))
    if table is None:
        return None
    facts = {"other workers": "waiting for them; communication hidden behind backward is only in the table"}
    return Section("Where a step goes", facts, [table], [one.picture for one in drawn]), drawn


def _laws(benchmark: _Benchmark) -> Part | None:
    summary = benchmark.summary
    laws = [law for law in benchmark.laws if isinstance(law, FittedLaw)]
    if not laws:
        return None
    unfitted = [law for law in benchmark.laws if isinstance(law, NoFit) and law.series.strategy != SINGLE]
    naming = naming_of([one.cell for one in summary.cells])

    def line_name(law: FittedLaw | NoFit) -> str:
        line = law.series
        setting = ", ".join(part for part in (naming.scaling(line.scaling), naming.values(line.axes)) if part)
        return f"{line.strategy}{f' ({setting})' if setting else ''}"

    tables = [
        Table(("line", "meaning"), [(line_name(law), law.words) for law in laws], "What the laws say"),
        law_table(laws, line_name),
    ]
    if summary.record.extrapolate:
        tables.append(prediction_table(laws, summary, line_name))
    if unfitted:
        rows = [(line_name(law), law.reason) for law in unfitted]
        tables.append(Table(("line", "why there is no law"), rows, "Lines without a law"))
    drawn = law_plots(benchmark.groups, laws, summary.record.extrapolate, benchmark.looks)
    return Section("Scaling law", {}, tables, [one.picture for one in drawn]), drawn


def _background(summary: Summary) -> list[Section]:
    record = summary.record
    noted = _facts(**{"threads": threads_text(summary), "used by other programs": other_programs_text(summary)})
    tables = [
        Table(("what", "value"), list(rows.items()), title)
        for title, rows in (("Settings", record.settings), ("Environment", {**record.facts, **noted}))
        if rows
    ]
    return [Section("Settings and environment", tables=tables)] if tables else []


def _about(record: BenchmarkRecord) -> list[str]:
    """Return what was run, when, with what."""
    cells = [one.cell for one in record.measurements]
    strategies = ", ".join(dict.fromkeys(cell.strategy for cell in cells))
    workers = ", ".join(map(str, sorted({cell.workers for cell in cells})))
    what = f"{strategies} with {workers} workers" if cells else ""
    facts = record.facts
    begun, command, version = (facts.get(name, "") for name in ("begun", "command", "itwinai"))
    return origin(what, begun=begun, command=command, version=version)


def _facts(**texts: str) -> dict[str, str]:
    """Return the facts that are known."""
    return {name: text for name, text in texts.items() if text}

"""All that is said about a benchmark, in the order in which people ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from itwinai.benchmark.records import SINGLE, BenchmarkRecord
from itwinai.benchmark.report.bars import breakdown_pictures, breakdown_table
from itwinai.benchmark.report.laws import law_pictures, law_table, prediction_table
from itwinai.benchmark.report.lines import MOST_COMBINATIONS, Quantity, known, line_pictures
from itwinai.benchmark.report.quantities import EFFICIENCY, LOSS, SPEEDUP, energy, launch, memory, throughput
from itwinai.benchmark.report.style import Drawn, Look, looks_of
from itwinai.benchmark.report.tables import cells_table, failed_table, of_figures, setting_columns
from itwinai.benchmark.statistics.estimates import Estimate
from itwinai.benchmark.statistics.groups import Group, Speed, groups_of, named, naming_of, speed_of, strategies_of
from itwinai.benchmark.statistics.scaling_law import FittedLaw, NoFit, fit
from itwinai.benchmark.statistics.summary import LOSS_TOLERANCE, Summary, summarize
from itwinai.benchmark.telling.amounts import estimate_text
from itwinai.benchmark.telling.doubts import others_text, threads_text
from itwinai.benchmark.telling.relative import relative_text
from itwinai.benchmark.telling.words import Words, words_of
from itwinai.reporting.formatting import count_text
from itwinai.reporting.search.leaderboard import unbroken
from itwinai.reporting.sections import Section, Table


@dataclass(frozen=True)
class _Told:
    """A benchmark with what is worked out once for all sections."""

    summary: Summary
    groups: Sequence[Group]
    speed: Speed
    looks: dict[str, Look]
    laws: Sequence[FittedLaw | NoFit]


def benchmark_page(record: BenchmarkRecord) -> tuple[list[Section], list[Drawn], list[str]]:
    """Return the sections of the page, the pictures as they are written beside it, and the paragraphs at its top.

    Args:
        record: the benchmark.
    """
    summary = summarize(record)
    cells = summary.cells
    laws = [fit(line) for line in summary.series]
    told = _Told(summary, groups_of(summary), speed_of(cells), looks_of(strategies_of(cells)), laws)
    words = words_of(summary, laws)
    parts = [part for part in _measured(told) if part is not None] if any(one.runs for one in cells) else []
    sections = [
        _in_words(told, words),
        *(section for section, _ in parts),
        *(
            [Section("All cells", {**_relative(summary), **_threads(summary)}, [cells_table(summary, told.speed)])]
            if cells
            else []
        ),
        *_failed(summary, words),
        *_background(summary),
    ]
    return sections, [one for _, drawn in parts for one in drawn], _lead(words)


def _measured(told: _Told) -> list[tuple[Section, list[Drawn]] | None]:
    """Return the sections of what was measured, each with its pictures; None where there is nothing to show."""
    cells = told.summary.cells
    reasons = list(dict.fromkeys(one.no_joules.rstrip(".") for one in cells if one.no_joules))
    no_energy = f"energy: {'; '.join(reasons[:3]) or 'nothing is known of it'}"
    return [
        _lines("Throughput", told, throughput(told.speed), "throughput: the runs do not tell their number of samples"),
        _lines("Speed-up", told, SPEEDUP),
        _lines("Efficiency", told, EFFICIENCY),
        _steps(told),
        _lines("Memory per worker", told, memory(cells), "memory: the system does not tell it"),
        _lines("Energy per sample", told, energy(cells), no_energy),
        _lines("Loss after the steps", told, LOSS, "loss: the training step returns none"),
        _lines("Launch time", told, launch(cells)),
        _laws(told),
    ]


def _in_words(told: _Told, words: Words) -> Section:
    """Return what was found; what to do about it stands at the top of the page."""
    cells = told.summary.cells
    measured = [one for one in cells if one.runs]
    runs = sum(len(one.runs) for one in measured)
    facts = {"measured": f"{len(measured)} of {count_text(len(cells), 'cell')}, {count_text(runs, 'run')}"}
    tables = []
    if len(words.findings) == 1:
        facts |= words.findings[0].told
    else:
        columns = ("about", "what was found")
        tables = [unbroken(Table(columns, list(one.told.items()), one.name)) for one in words.findings]
    if words.notes:
        facts["not known"] = " ".join(words.notes)
    warnings = [f"Warning: {text}" for text in words.warnings]
    return Section("In words", facts, tables, advice=[*warnings, *words.advice], missing=words.missing)


def _lead(words: Words) -> list[str]:
    """Return what stands at the top: whether it is all, whether it can be trusted, and what to take."""
    cautions = []
    if words.warnings and words.findings:
        them = "warning" if len(words.warnings) == 1 else f"{len(words.warnings)} warnings"
        cautions = [f"Read the {them} below before you rely on any of it."]
    return [*words.unfinished, *cautions, *words.answers]


def _relative(summary: Summary) -> dict[str, str]:
    text = relative_text(summary)
    return {"relative": text} if text else {}


def _threads(summary: Summary) -> dict[str, str]:
    text = threads_text(summary)
    return {"threads": text} if text else {}


def _lines(title: str, told: _Told, quantity: Quantity, reason: str = "") -> tuple[Section, list[Drawn]] | None:
    """Return a quantity over the number of workers; None where it is not known, for which "In words" has the reason."""
    measured = [one for one in told.summary.cells if one.runs]
    values = {one.cell: found for one in measured if (found := known(quantity, one)) is not None}
    if not values:
        return None
    if quantity is LOSS and len(values) > 1 and (same := _same_loss(list(values.values()))):
        return Section(title, {"loss": f"{same} in all cells: all train the same"}), []
    drawn = line_pictures(quantity, told.groups, told.looks)
    without = [one for one in measured if quantity.of(one) is None]
    missing = []
    if without and reason:
        some = f" ({len(without)} of {count_text(len(measured), 'cell')})" if len(without) < len(measured) else ""
        missing.append(f"{reason}{some}")
    facts = {"not known": " ".join(told.summary.notes)} if without and not reason else {}
    facts |= _relative(told.summary) if quantity in (SPEEDUP, EFFICIENCY) else {}
    if not drawn:
        facts |= {named(cell): estimate_text(found, quantity.unit) for cell, found in values.items()}
    combinations = len({group.axes for group in told.groups})
    if combinations > MOST_COMBINATIONS:
        facts["not drawn"] = f"{combinations - MOST_COMBINATIONS} combinations of values: see all cells below"
    return Section(title, facts, pictures=[one.picture for one in drawn], missing=missing), drawn


def _same_loss(losses: Sequence[Estimate]) -> str:
    """Return the loss that all cells end with; empty if they differ by more than rounding."""
    low, high = min(one.mean for one in losses), max(one.mean for one in losses)
    return f"{low:.4g}" if high - low <= LOSS_TOLERANCE * abs(high) else ""


def _steps(told: _Told) -> tuple[Section, list[Drawn]] | None:
    cells = told.summary.cells
    drawn = breakdown_pictures(told.groups)
    table = breakdown_table(cells, setting_columns([one.cell for one in cells]))
    if table is None:
        return None
    facts = {"other workers": "waiting for them; communication hidden behind backward is only in the table"}
    return Section("Where a step goes", facts, [of_figures(table)], [one.picture for one in drawn]), drawn


def _laws(told: _Told) -> tuple[Section, list[Drawn]] | None:
    laws = [law for law in told.laws if isinstance(law, FittedLaw)]
    if not laws:
        return None
    unfitted = [law for law in told.laws if isinstance(law, NoFit) and law.series.strategy != SINGLE]
    naming = naming_of([one.cell for one in told.summary.cells])

    def line_name(law: FittedLaw | NoFit) -> str:
        line = law.series
        setting = ", ".join(part for part in (naming.scaling(line.scaling), naming.values(line.axes)) if part)
        return f"{line.strategy}{f' ({setting})' if setting else ''}"

    tables = [
        unbroken(Table(("line", "in words"), [(line_name(law), law.words) for law in laws], "What the laws say")),
        unbroken(law_table(laws, line_name)),
    ]
    if told.summary.record.extrapolate:
        tables.append(of_figures(prediction_table(laws, told.summary, line_name)))
    if unfitted:
        rows = [(line_name(law), law.reason) for law in unfitted]
        tables.append(unbroken(Table(("line", "why there is no law"), rows, "Lines without a law")))
    drawn = law_pictures(told.groups, laws, told.summary.record.extrapolate, told.looks)
    return Section("Scaling law", {}, tables, [one.picture for one in drawn]), drawn


def _failed(summary: Summary, words: Words) -> list[Section]:
    table = failed_table(summary)
    return [] if table is None else [Section("Failed", tables=[table], advice=words.failed)]


def _background(summary: Summary) -> list[Section]:
    record = summary.record
    environment = {**record.facts, **_noted(summary)}
    tables = [
        Table(("what", "value"), list(rows.items()), title)
        for title, rows in (("Settings", record.settings), ("Environment", environment))
        if rows
    ]
    return [Section("Settings and environment", tables=tables)] if tables else []


def _noted(summary: Summary) -> dict[str, str]:
    """Return what was noted of the runs themselves, where it was."""
    noted = {"threads": threads_text(summary), "used by other programs": others_text(summary)}
    return {name: text for name, text in noted.items() if text}

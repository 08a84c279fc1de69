"""The findings of a benchmark in sentences: what to use, what is fastest, how far it scales, what failed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from itwinai.benchmark.records import SINGLE, Cell, Measurement
from itwinai.benchmark.report.caveats import differs_from_its_like, doubtful_figures, wrong_losses
from itwinai.benchmark.report.recommendations import recommendations
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.groups import Naming, Speed, groups_of, named, naming_of, speed_of
from itwinai.benchmark.statistics.ranking import Ranking, compared, rankings_of
from itwinai.benchmark.statistics.scaling_law import FittedLaw, NoFit
from itwinai.benchmark.statistics.summary import Axes, Completion, Summary, suspicious_losses
from itwinai.reporting.formatting import (
    count_text,
    estimate_text,
    joined,
    number_text,
    p_text,
    percent_text,
    time_text,
)

PARTS: Mapping[str, str] = {
    "compute": "compute",
    "communication": "waiting for other workers",
    "data": "waiting for data",
    "other": "other",
}
"""Names of the parts of a step."""

EFFICIENT = 0.8
"""Efficiency down to which workers count as well used."""

SHOWN = 4
"""Most sentences of a kind."""


@dataclass(frozen=True)
class Finding:
    """What was found of one group of cells.

    Attributes:
        name: of the group; empty if there is only one.
        sentences: without their full stop, by what they are about.
    """

    name: str
    sentences: Mapping[str, str]

    @property
    def text(self) -> str:
        """All of it, as one paragraph."""
        paragraph = " ".join(f"{_capital(about)}: {text}." for about, text in self.sentences.items())
        return f"{_capital(self.name)}. {paragraph}" if self.name else paragraph


@dataclass(frozen=True)
class Findings:
    """What a benchmark has found.

    Attributes:
        unfinished: how many runs are left to make; empty if all are done.
        warnings: why figures cannot be trusted.
        answers: what to use, for each group.
        findings: of each group.
        recommendations: what to try next, each with the figures that support it.
        failed: cells that have failed, and why.
        notes: what is unknown because cells are missing.
        missing: what could not be measured, and why.
    """

    unfinished: tuple[str, ...]
    warnings: tuple[str, ...]
    answers: tuple[str, ...]
    findings: tuple[Finding, ...]
    recommendations: tuple[str, ...]
    failed: tuple[str, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def paragraphs(self) -> list[str]:
        """All of them in the order of a terminal, but for ``unfinished``."""
        return [
            *(f"Warning: {text}" for text in self.warnings),
            *self.answers,
            *(finding.text for finding in self.findings),
            *self.recommendations,
            *self.failed,
            *self.notes,
            *(f"Not measured: {text}." for text in self.missing),
        ]


def findings_of(summary: Summary, laws: Sequence[FittedLaw | NoFit]) -> Findings:
    """Return the findings of a benchmark.

    Args:
        summary: the benchmark.
        laws: of its series, from `itwinai.benchmark.statistics.scaling_law.fit`.
    """
    suspicious = suspicious_losses(summary)
    groups, speed = groups_of(summary), speed_of(summary.cells)
    excluded = {one.cell for one in suspicious if differs_from_its_like(one, summary)}
    warnings = doubtful_figures(summary, speed, excluded)
    doubtful_cells = {cell for warning in warnings for cell in warning.cells}
    rankings, completion = rankings_of(groups, speed, excluded), summary.completion
    sure = [one for one in rankings if doubtful_cells.isdisjoint(cell.cell for cell in one.group.cells)]
    doubtful = [one.group.name for one in rankings if one not in sure]
    settings = {} if doubtful else dict(_settings(rankings, speed))
    findings = [Finding("settings", settings)] if settings else []
    for ranking in sure:
        law = next((law for law in laws if isinstance(law, FittedLaw) and law.series == ranking.line), None)
        sentences = dict(_sentences(ranking, speed, law, summary.record.extrapolate, excluded))
        findings.append(Finding(ranking.group.name, sentences))
    return Findings(
        unfinished=tuple(_unfinished(completion)),
        warnings=(*(warning.text for warning in warnings), *wrong_losses(suspicious, summary)),
        answers=tuple(_answers(sure, speed, excluded, doubtful)),
        findings=tuple(findings),
        recommendations=tuple(recommendations(sure, groups, speed, completion)),
        failed=tuple(_failed(summary)),
        notes=summary.notes if summary.cells else ("Nothing was run.",),
        missing=tuple(_missing(summary, speed)),
    )


def relative_text(summary: Summary, axes: Axes | None = None) -> str:
    """Return what speed-ups are relative to, if the baseline has several workers.

    Args:
        summary: the benchmark.
        axes: of the cells in the table; by default all.
    """
    baselines = [one.cell for one in summary.baselines if axes is None or one.cell.axes == axes]
    texts = dict.fromkeys(
        f"{named(cell)}, whose speed-up is set to {cell.workers:,}" for cell in baselines if cell.workers > 1
    )
    return f"Speed-ups are relative to {'; '.join(texts)}." if texts else ""


def error_of(measurement: Measurement) -> str:
    """Return the whole error of a run in one line."""
    return " ".join(measurement.error.split()) or "no error is known"


# ------------------------------------------------------------------------------------------------------ what to use


def _answers(
    rankings: Sequence[Ranking], speed: Speed, excluded: Collection[Cell], doubtful: Sequence[str]
) -> Iterator[str]:
    """Yield what to use for each group: the fastest of all numbers of workers."""
    if doubtful:
        names = joined([name for name in doubtful if name])
        yield (
            f"No recommendation{f' for {names}' if names else ''}: the measurements are doubtful, see the warnings. "
            "Rerun with a new --folder when the machine is idle."
        )
    for ranking in rankings[:SHOWN]:
        rates = _rates(ranking.group.cells, speed, excluded)
        taken, _ = min(rates, key=lambda pair: (-pair[1], pair[0].cell.workers))
        where = f"{_capital(ranking.group.name)}: use" if ranking.group.name else "Use"
        yield f"{where} {named(taken.cell)}, {estimate_text(speed.of(taken))} {speed.unit}{_beside(taken, ranking)}."


def _beside(taken: CellSummary, ranking: Ranking) -> str:
    """Return what else decides: more workers are not faster, others are as good, how well it scales."""
    texts = []
    if taken.cell.workers < ranking.best.cell.workers:
        texts.append(f"{count_text(ranking.best.cell.workers, 'worker')} are not faster")
    elif ties := ranking.ties:
        texts.append(f"no significant difference to {joined([rival.cell.cell.strategy for rival in ties])}")
    baseline = taken.baseline
    if taken.speedup is not None and baseline is not None and baseline != taken.cell and taken.cell.workers > 1:
        texts.append(
            f"a speed-up of {estimate_text(taken.speedup)} over {named(baseline)}, an efficiency of "
            f"{percent_text(taken.efficiency)}"
        )
    return "".join(f"; {text}" for text in texts)


def _rates(cells: Sequence[CellSummary], speed: Speed, excluded: Collection[Cell]) -> list[tuple[CellSummary, float]]:
    found = [(one, speed.of(one)) for one in cells if one.cell not in excluded]
    return [(one, estimate.mean) for one, estimate in found if estimate is not None]


# ------------------------------------------------------------------------------------------------------ each group


def _sentences(
    ranking: Ranking, speed: Speed, law: FittedLaw | None, extrapolate: Sequence[int], excluded: Collection[Cell]
) -> Iterator[tuple[str, str]]:
    yield "fastest", _fastest(ranking, speed)
    best = ranking.best
    if best.cell.workers > 1 and best.speedup is not None and best.cell != best.baseline:
        yield "scaling", _scaling(ranking)
    if (rival := ranking.fewer) is not None:
        yield (
            "fewer workers",
            f"{named(rival.cell.cell)} is {estimate_text(rival.ratio)} times as fast as {named(best.cell)}"
            f"{_p(rival.p)}: more workers do not help here",
        )
    if plateaus := _plateaus(ranking, speed, excluded):
        yield "more workers", plateaus
    if law is not None:
        yield "knee", _knee(law, extrapolate)
    if (breakdown := best.breakdown) is not None and (step := breakdown.step) > 0:
        shares = sorted(breakdown.parts.items(), key=lambda item: -item[1])
        texts = [f"{percent_text(seconds / step)} {PARTS[part]}" for part, seconds in shares if seconds >= 0.005 * step]
        yield "a step", f"{time_text(step)} of {named(best.cell)}: {', '.join(texts)}"


def _fastest(ranking: Ranking, speed: Speed) -> str:
    best = ranking.best
    text = f"{named(best.cell)}, {estimate_text(speed.of(best))} {speed.unit}"
    if not ranking.rivals:
        others = {line.strategy for line in ranking.group.series if any(cell.runs for cell in line.cells)}
        alone = others - {SINGLE, best.cell.strategy}
        return f"{text}; no other strategy has a result with this many workers" if alone else text
    following, ties = ranking.rivals[0], ranking.ties
    if not ties:
        return f"{text}: {estimate_text(following.ratio)} times as fast as {_next(ranking)}{_p(following.p)}"
    if any(rival.p is None for rival in ties):
        ratio = f"{number_text(following.ratio.mean)} times as fast as {_next(ranking)}"
        return f"{text}: {ratio}. With a single run this may be chance"
    names = joined([rival.cell.cell.strategy for rival in ties])
    smallest = min(rival.p for rival in ties if rival.p is not None)
    repeats = count_text(min(rival.ratio.n for rival in ties), "repeat")
    more = " or more" if len(ties) > 1 else ""
    return f"{text}. But there is no significant difference to {names} with {repeats} ({p_text(smallest)}{more})"


def _next(ranking: Ranking) -> str:
    return f"{ranking.rivals[0].cell.cell.strategy}, the next"


def _scaling(ranking: Ranking) -> str:
    best = ranking.best
    efficient = [
        cell.cell.workers
        for cell in ranking.line.cells
        if cell.cell.workers > 1 and cell.efficiency is not None and cell.efficiency.mean >= EFFICIENT
    ]
    until = f"up to {max(efficient)} workers" if efficient else "with no number of workers above 1"
    return (
        f"{named(best.cell)} has a speed-up of {estimate_text(best.speedup)} over "
        f"{named(best.baseline) if best.baseline is not None else ''}, an efficiency of "
        f"{percent_text(best.efficiency)}; at least {percent_text(EFFICIENT)} {until}"
    )


def _plateaus(ranking: Ranking, speed: Speed, excluded: Collection[Cell]) -> str:
    """Return with which strategies more workers are not faster than fewer; empty if they always are."""
    texts = []
    for line in ranking.group.series:
        best: tuple[int, float] | None = None
        slower: dict[tuple[int, float], list[tuple[int, float]]] = {}
        for one, rate in _rates(line.cells, speed, excluded):
            if best is None or rate > best[1]:
                best = one.cell.workers, rate
            else:
                slower.setdefault(best, []).append((one.cell.workers, rate))
        for (fewer, fastest), more in slower.items():
            numbers = joined([f"{workers:,}" for workers, _ in more])
            rates = joined([number_text(rate) for _, rate in more])
            texts.append(
                f"{numbers} workers are not faster than {fewer:,} with {line.strategy} ({rates} against "
                f"{number_text(fastest)} {speed.unit})"
            )
    return "; ".join(texts[:SHOWN])


def _knee(law: FittedLaw, extrapolate: Sequence[int]) -> str:
    measured = max(law.workers)
    most = max([measured, *extrapolate])
    knee = law.knee(most)
    by = f"by the law of {law.series.strategy} ({law.name})"
    if knee is None:
        return f"none up to {most:,} workers, {by}"
    beyond = ", which is extrapolated" if knee > measured else ""
    return f"at about {count_text(knee, 'worker')}{beyond}: more speed costs more than it is worth, {by}"


def _settings(rankings: Sequence[Ranking], speed: Speed) -> Iterator[tuple[str, str]]:
    """Yield which values of the axes are fastest, for each scaling."""
    for scaling in dict.fromkeys(ranking.group.scaling for ranking in rankings):
        own = [ranking for ranking in rankings if ranking.group.scaling == scaling]
        most = max(ranking.best.cell.workers for ranking in own)
        rates = _rates([ranking.best for ranking in own if ranking.best.cell.workers == most], speed, ())
        if len(rates) < 2:
            continue
        order = [cell for cell, _ in sorted(rates, key=lambda pair: -pair[1])]
        first, second = (next(one for one in own if one.best is cell) for cell in order[:2])
        (rival, *_) = compared(order[0], order[1:], speed)
        text = (
            f"{first.group.axes_name} is fastest: {named(first.best.cell)} is {estimate_text(rival.ratio)} times as "
            f"fast as {named(second.best.cell)} with {second.group.axes_name}{_p(rival.p)}"
            f"{'' if rival.differs else ', which may be chance'}"
        )
        yield first.group.scaling_name or "fastest", text


# ------------------------------------------------------------------------------------------------------ what is missing


def _unfinished(completion: Completion) -> Iterator[str]:
    if completion.unfinished:
        done = "is" if completion.done == 1 else "are"
        skipped = f", and {completion.skipped} skipped because their cells have failed" if completion.skipped else ""
        yield (
            f"{completion.done} of {count_text(completion.planned, 'run')} {done} done{skipped}; the same command with "
            "--resume makes the others."
        )


def _failed(summary: Summary) -> Iterator[str]:
    """Yield which cells have no result and why, and of which cells some runs have failed."""
    naming = naming_of([one.cell for one in summary.cells])
    failed = [one for one in summary.cells if not one.runs]
    if failed:
        have = "has" if len(failed) == 1 else "have"
        yield f"{len(failed)} of {count_text(len(summary.cells), 'cell')} {have} no result."
    kinds: dict[tuple[str, str], list[CellSummary]] = {}
    for one in failed:
        kinds.setdefault((one.failed[-1].status, error_of(one.failed[-1])), []).append(one)
    for (status, error), members in list(kinds.items())[:SHOWN]:
        cells = _cells_text([one.cell for one in members], summary, naming)
        yield f"{cells} {status}: {error.rstrip('.')}.{_output_of(members[0].failed[-1], len(members))}"
    if len(kinds) > SHOWN:
        yield f"{len(kinds) - SHOWN} other errors are in the report."
    for one in [one for one in summary.cells if one.runs and one.failed][:SHOWN]:
        error = error_of(one.failed[-1]).rstrip(".")
        some = f"{len(one.failed)} of {count_text(one.tries, 'run')} failed"
        yield f"{naming.cells([one.cell])}: {some}: {error}.{_output_of(one.failed[-1])}"


def _missing(summary: Summary, speed: Speed) -> Iterator[str]:
    """Yield what could not be measured, and why, without full stops."""
    measured = [one for one in summary.cells if one.runs]
    if not measured:
        return
    if not speed.by_samples:
        yield "samples per second: the number of samples is unknown, so batches are counted instead"
    once = [one for one in measured if len(one.runs) == 1 and not summary.completion.continues(one)]
    if once:
        have = "has" if len(once) == 1 else "have"
        which = "each cell has" if len(once) == len(measured) else f"{count_text(len(once), 'cell')} {have}"
        yield f"the effect of chance: {which} one run only. Use --repeats 3 or more"
    reasons = (one.no_joules.rstrip(".") for one in measured if one.joules_per_sample is None)
    energy = "; ".join(reason or "the reason is unknown" for reason in list(dict.fromkeys(reasons))[:2])
    quantities: dict[str, Callable[[CellSummary], object]] = {
        f"energy: {energy}": lambda one: one.joules_per_sample,
        "where a step goes: the loop of these runs does not measure it": lambda one: one.breakdown,
        "memory: the system does not report it": lambda one: one.peak_memory,
        "loss: the step returns none, so it is unknown whether all train the same": lambda one: one.loss,
    }
    for text, of in quantities.items():
        without = [one for one in measured if of(one) is None]
        if without:
            yield f"{text}{some_of(len(without), len(measured))}"


def some_of(count: int, of: int) -> str:
    """Return how many cells a sentence is about; empty if all."""
    return f" ({count} of {count_text(of, 'cell')})" if count < of else ""


def _output_of(measurement: Measurement, cells: int = 1) -> str:
    if not measurement.output:
        return ""
    return f" {'Its output' if cells == 1 else 'The output of the first of them'} is in {measurement.output}."


def _cells_text(cells: Sequence[Cell], summary: Summary, naming: Naming) -> str:
    """Return the names of cells; the strategy is enough if they are all of its cells."""
    whole, others = [], []
    for strategy, own in groupby(cells, lambda cell: cell.strategy):
        some = list(own)
        every = [one.cell for one in summary.cells if one.cell.strategy == strategy]
        if len(some) == len(every) > 1:
            whole.append(f"{strategy} ({'both' if len(every) == 2 else f'all {len(every)}'} cells)")
        else:
            others.append(naming.cells(some))
    return "; ".join([*whole, *others])


def _p(p: float | None) -> str:
    return f" ({p_text(p)})" if p is not None else ""


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"

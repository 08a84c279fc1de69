"""What a benchmark has found, in sentences: who is fastest, how far it scales, what it costs, and what to try next."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from itwinai.benchmark.records import SINGLE, Cell
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.contest import Contest, compared, contests_of
from itwinai.benchmark.statistics.course import course_of
from itwinai.benchmark.statistics.groups import Speed, groups_of, named, naming_of, speed_of
from itwinai.benchmark.statistics.scaling_law import FittedLaw, NoFit
from itwinai.benchmark.statistics.summary import Summary, SuspiciousLoss, suspicious_losses
from itwinai.benchmark.telling.advice import advice
from itwinai.benchmark.telling.amounts import estimate_text, number_text, p_text, percent_text, seconds_text, share_text
from itwinai.benchmark.telling.answers import answers, plateaus_text
from itwinai.benchmark.telling.doubts import Doubt, doubts
from itwinai.benchmark.telling.missing import failed_text, missing_text, unfinished_text
from itwinai.benchmark.telling.parts import PARTS, seconds_of, whole_of
from itwinai.reporting.formatting import count_text
from itwinai.reporting.search.formatting import joined

EFFICIENT = 0.8
"""Efficiency down to which workers are said to be well used."""

TOLD = 4
"""Most sentences of a kind."""


@dataclass(frozen=True)
class Finding:
    """What was found of one group of cells.

    Attributes:
        name: of the group; empty if there is only one.
        told: sentences without their full stop, by what they are about.
    """

    name: str
    told: Mapping[str, str]

    @property
    def text(self) -> str:
        """All of it, as one paragraph."""
        sentences = [f"{about}: {text}." for about, text in self.told.items()]
        paragraph = " ".join(f"{sentence[:1].upper()}{sentence[1:]}" for sentence in sentences)
        return f"{self.name[:1].upper()}{self.name[1:]}. {paragraph}" if self.name else paragraph


@dataclass(frozen=True)
class Words:
    """What a benchmark has found.

    Attributes:
        unfinished: how many runs are still to be made; empty if all are done.
        warnings: what makes figures worthless until it is explained.
        answers: what to take, for each group.
        findings: what was found, for each group.
        advice: what to try next, each with the figures behind it.
        failed: cells that have not ended well, and why.
        notes: what follows from cells that are missing.
        missing: what could not be measured, and why.
    """

    unfinished: tuple[str, ...]
    warnings: tuple[str, ...]
    answers: tuple[str, ...]
    findings: tuple[Finding, ...]
    advice: tuple[str, ...]
    failed: tuple[str, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...]


def in_words(summary: Summary, laws: Sequence[FittedLaw | NoFit]) -> list[str]:
    """Return what a benchmark has found as paragraphs: first whether it is all, warnings, and what to take.

    Args:
        summary: the benchmark.
        laws: what `itwinai.benchmark.statistics.scaling_law.fit` has found for its series.
    """
    words = words_of(summary, laws)
    warnings = (f"Warning: {text}" for text in words.warnings)
    findings = (finding.text for finding in words.findings)
    missing = (f"Not measured: {text}." for text in words.missing)
    return [
        *words.unfinished,
        *warnings,
        *words.answers,
        *findings,
        *words.advice,
        *words.failed,
        *words.notes,
        *missing,
    ]


def words_of(summary: Summary, laws: Sequence[FittedLaw | NoFit]) -> Words:
    """Return what a benchmark has found, by kind.

    Args:
        summary: the benchmark.
        laws: what `itwinai.benchmark.statistics.scaling_law.fit` has found for its series.
    """
    suspicious = suspicious_losses(summary)
    groups, speed = groups_of(summary), speed_of(summary.cells)
    doubted = {one.cell for one in suspicious if _differs_from_its_like(one, summary)}
    found = doubts(summary, speed, doubted)
    contests, course = contests_of(groups, speed, doubted), course_of(summary)
    doubtful = [contest for contest in contests if _is_doubtful(contest, found)]
    sure = [contest for contest in contests if contest not in doubtful]
    settings = {} if doubtful else dict(_settings(contests, speed))
    findings = [Finding("settings", settings)] if settings else []
    for contest in sure:
        law = next((law for law in laws if isinstance(law, FittedLaw) and law.series == contest.line), None)
        told = dict(_findings(contest, speed, law, summary.record.extrapolate, doubted))
        findings.append(Finding(contest.group.name, told))
    return Words(
        unfinished=tuple(unfinished_text(course)),
        warnings=(*(doubt.text for doubt in found), *_warnings(suspicious, summary)),
        answers=tuple(answers(sure, speed, doubted, [contest.group.name for contest in doubtful])),
        findings=tuple(findings),
        advice=tuple(advice(sure, groups, speed, course)),
        failed=tuple(failed_text(summary)),
        notes=summary.notes if summary.cells else ("Nothing was run.",),
        missing=tuple(missing_text(summary, speed)),
    )


def _is_doubtful(contest: Contest, found: Sequence[Doubt]) -> bool:
    """Tell whether figures of a group are doubtful: then nobody knows who of it is fastest."""
    cells = {one.cell for one in contest.group.cells}
    return any(not cells.isdisjoint(doubt.cells) for doubt in found)


def _differs_from_its_like(one: SuspiciousLoss, summary: Summary) -> bool:
    """Tell whether a loss differs not only from that of the baseline, as all may that have several workers."""
    return one.compared_with not in [(baseline.cell,) for baseline in summary.baselines]


def _warnings(suspicious: Sequence[SuspiciousLoss], summary: Summary) -> Iterator[str]:
    naming = naming_of([one.cell for one in summary.cells])
    for one in suspicious[:TOLD]:
        few = len(one.compared_with) == 1
        others = naming.cells(one.compared_with) if few else f"{len(one.compared_with)} others on the same samples"
        yield (
            f"{naming.cells([one.cell])} ended with a loss of {one.loss:.4g}, and {others} with "
            f"{one.reference:.4g}. It has trained something else, and until that is explained its speed is worth "
            + (
                "nothing: it is left out below."
                if _differs_from_its_like(one, summary)
                else "little. Dropout and batch normalization can be the reason: over several workers they are not the "
                "same."
            )
        )
    if more := suspicious[TOLD:]:
        yield f"So it is with {count_text(len(more), 'more cell')}: {naming.cells([one.cell for one in more])}."
    lost = [one.cell for one in summary.cells if one.loss is not None and not math.isfinite(one.loss.mean)]
    if lost and not suspicious:
        yield f"The loss is not a number, or infinite, of {naming.cells(lost)}: the training diverges."


def _findings(
    contest: Contest, speed: Speed, law: FittedLaw | None, extrapolate: Sequence[int], doubted: Collection[Cell]
) -> Iterator[tuple[str, str]]:
    yield "fastest", _fastest(contest, speed)
    best = contest.best
    if best.cell.workers > 1 and best.speedup is not None and best.cell != best.baseline:
        yield "scaling", _scaling(contest)
    if contest.fewer is not None:
        rival = contest.fewer
        told = f" ({p_text(rival.p)})" if rival.p is not None else ""
        yield (
            "fewer workers",
            f"{named(rival.cell.cell)} is {estimate_text(rival.ratio)} times as fast as {named(best.cell)}{told}: "
            "more workers do not pay here",
        )
    if plateaus := plateaus_text(contest, speed, doubted):
        yield "more workers", plateaus
    if law is not None:
        yield "knee", _knee(law, extrapolate)
    if (parts := best.breakdown) is not None and (whole := whole_of(parts)) > 0:
        shares = sorted(seconds_of(parts).items(), key=lambda item: -item[1])
        parts_told = [
            f"{share_text(seconds / whole)} {PARTS[part]}" for part, seconds in shares if seconds >= 0.005 * whole
        ]
        yield "a step", f"{seconds_text(whole)} of {named(best.cell)}: {', '.join(parts_told)}"


def _fastest(contest: Contest, speed: Speed) -> str:
    best = contest.best
    told = f"{named(best.cell)}, {estimate_text(speed.of(best))} {speed.unit}"
    if not contest.rivals:
        others = [line.strategy for line in contest.group.series if any(cell.runs for cell in line.cells)]
        alone = len(set(others) - {SINGLE, best.cell.strategy}) > 0
        return f"{told}; no other strategy has a result with so many workers" if alone else told
    following, ties = contest.rivals[0], contest.ties
    if not ties:
        ratio = f"{estimate_text(following.ratio)} times as fast as {following.cell.cell.strategy}, the next"
        return f"{told}: {ratio}{f' ({p_text(following.p)})' if following.p is not None else ''}"
    if any(rival.p is None for rival in ties):
        ratio = f"{number_text(following.ratio.mean)} times as fast as {following.cell.cell.strategy}, the next"
        return f"{told}: {ratio}. With a single run nobody knows whether that is more than chance"
    names = joined([rival.cell.cell.strategy for rival in ties])
    smallest = min(rival.p for rival in ties if rival.p is not None)
    repeats = min(rival.ratio.n for rival in ties)
    return (
        f"{told}. But no difference to {names} could be shown with {count_text(repeats, 'repeat')} "
        f"({p_text(smallest)}{' or more' if len(ties) > 1 else ''})"
    )


def _scaling(contest: Contest) -> str:
    best = contest.best
    well = [
        cell.cell.workers
        for cell in contest.line.cells
        if cell.cell.workers > 1 and cell.efficiency is not None and cell.efficiency.mean >= EFFICIENT
    ]
    reached = f"{named(best.cell)} has a speed-up of {estimate_text(best.speedup)} over "
    compared_with = f"{named(best.baseline)}" if best.baseline is not None else ""
    largest = max(well, default=1)
    until = f"up to {largest} workers" if largest > 1 else "with no number of workers above 1"
    efficiency = f"an efficiency of {percent_text(best.efficiency)}"
    return f"{reached}{compared_with}, {efficiency}; at least {share_text(EFFICIENT)} {until}"


def _knee(law: FittedLaw, extrapolate: Sequence[int]) -> str:
    measured = max(law.workers)
    most = max([measured, *extrapolate])
    knee = law.knee(most)
    by = f"by the law that {law.series.strategy} follows ({law.name})"
    if knee is None:
        return f"none up to {most:,} workers, {by}"
    beyond = ", which is extrapolated" if knee > measured else ""
    return f"at about {count_text(knee, 'worker')}{beyond}: with more, speed costs more than it is worth, {by}"


def _settings(contests: Sequence[Contest], speed: Speed) -> Iterator[tuple[str, str]]:
    """Yield which values of the axes are fastest, for each scaling."""
    for scaling in dict.fromkeys(contest.group.scaling for contest in contests):
        own = [contest for contest in contests if contest.group.scaling == scaling]
        most = max(contest.best.cell.workers for contest in own)
        own = [contest for contest in own if contest.best.cell.workers == most]
        if len(own) < 2:
            continue
        own.sort(key=lambda contest: -_mean(contest.best, speed))
        first, second = own[:2]
        (rival, *_) = compared(first.best, [contest.best for contest in own[1:]], speed)
        surely = "" if rival.differs else ", which may be chance"
        told = f" ({p_text(rival.p)})" if rival.p is not None else ""
        text = (
            f"{first.group.axes_name} is fastest: {named(first.best.cell)} is {estimate_text(rival.ratio)} times as "
            f"fast as {named(second.best.cell)} with {second.group.axes_name}{told}{surely}"
        )
        yield first.group.scaling_name or "fastest", text


def _mean(cell: CellSummary, speed: Speed) -> float:
    estimate = speed.of(cell)
    return estimate.mean if estimate is not None else 0.0

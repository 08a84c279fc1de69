"""Recommendations after a benchmark, each with the figures that support it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.groups import Group, Speed, batch_of, named
from itwinai.benchmark.statistics.ranking import Ranking
from itwinai.benchmark.statistics.summary import Completion
from itwinai.reporting.formatting import bytes_text, number_text, percent_text, time_text
from itwinai.reporting.recommendation import Recommendation, recommend

DATA = 0.20
COMMUNICATION = 0.25
OTHER = 0.25
"""Shares of a step from which on it pays to do something about them."""

IMBALANCE = 0.10
"""How much longer than the mean the busiest worker is busy before the others wait noticeably."""

EFFICIENT = 0.6
"""Efficiency below which the batch counts as too small, if little of a step computes."""

NOISY = 0.1
"""Half of an interval, as a share of the mean, from which on the mean is uncertain."""

LARGE_GRADIENTS = 2**20
"""Bytes of gradients below which latency counts, and not how much is sent."""


@dataclass(frozen=True)
class _Best:
    """The fastest cell of a group, with what the rules need."""

    ranking: Ranking
    groups: Sequence[Group]
    speed: Speed
    completion: Completion

    @property
    def cell(self) -> CellSummary:
        return self.ranking.best

    @property
    def name(self) -> str:
        group = self.ranking.group.name
        return f"{named(self.cell.cell)}{f' ({group})' if group else ''}"

    def part(self, part: str) -> str:
        """Return a part of the step with its share and time."""
        assert self.cell.breakdown is not None
        return f"{percent_text(self.cell.share(part) or 0.0)} of a step ({time_text(self.cell.breakdown.parts[part])})"

    @property
    def waited(self) -> float:
        """Seconds of a step that a mean worker waits for the busiest one."""
        waited = [max(one.busy) - fmean(one.busy) for one in self.cell.measured if one.busy]
        return fmean(waited) if waited else 0.0


def recommendations(
    rankings: Sequence[Ranking], groups: Sequence[Group], speed: Speed, completion: Completion
) -> list[str]:
    """Return what to try next, for the fastest cell of each group.

    Args:
        rankings: of the groups.
        groups: all groups.
        speed: unit of speeds.
        completion: whether runs are left to make.
    """
    best = [_Best(ranking, groups, speed, completion) for ranking in rankings]
    rules = (_data, _communication, _imbalance, _small_batch, _other, _noise)
    return [text for rule in rules for one in best for text in recommend(one, rule)]


def _data(best: _Best) -> Iterator[Recommendation]:
    if (best.cell.share("data") or 0.0) > DATA:
        yield Recommendation(
            f"{best.name}: {best.part('data')} waits for data",
            "Raise num_workers of the DataLoader if there are cores for it, or make samples cheaper to prepare.",
        )


def _communication(best: _Best) -> Iterator[Recommendation]:
    breakdown = best.cell.breakdown
    if breakdown is None or (best.cell.share("communication") or 0.0) <= COMMUNICATION:
        return
    if best.waited >= 0.5 * breakdown.communication:
        return  # not the exchange takes the time: see `_imbalance`
    size = fmean(one.gradient_bytes for one in best.cell.measured)
    exchange = f"with gradients of {bytes_text(size)}"
    if (hidden := breakdown.hidden) is not None:
        share = percent_text(hidden / (hidden + breakdown.communication))
        exchange += f"; {share} of the exchange is hidden behind backward"
    # Mixed precision leaves gradients in 32 bits.
    in_32_bits = all(one.gradient_bytes >= 4 * one.parameters for one in best.cell.measured)
    halve = " Gradients in bf16 halve what is sent." if size >= LARGE_GRADIENTS and in_32_bits else ""
    yield Recommendation(
        f"{best.name}: {best.part('communication')} waits for other workers, {exchange}",
        "If training allows it, use a larger batch per worker, or accumulate_grad_batches, to exchange less often."
        f"{halve}",
    )


def _imbalance(best: _Best) -> Iterator[Recommendation]:
    imbalance = best.cell.imbalance
    if imbalance is None or imbalance.mean <= IMBALANCE:
        return
    busiest = {one.busy.index(max(one.busy)) for one in best.cell.measured if one.busy}
    in_every_run = " in every run" if len(best.cell.measured) > 1 else ""
    which = f"rank {busiest.pop()}{in_every_run}" if len(busiest) == 1 else "not always the same"
    yield Recommendation(
        f"{best.name}: the busiest worker ({which}) is busy {percent_text(imbalance)} longer than the mean, and the "
        f"others wait {time_text(best.waited)} of each step for it",
        "Look for a slower device, other programs beside it, or samples of unequal size.",
    )


def _small_batch(best: _Best) -> Iterator[Recommendation]:
    """The batch is too small to be divided: computing is the smaller part of a step."""
    cell, batch, share = best.cell, batch_of(best.cell), best.cell.share("compute")
    if best.ranking.group.scaling != "strong" or cell.cell.workers == 1 or cell.efficiency is None:
        return
    if batch is None or share is None or cell.breakdown is None or share >= 0.5:
        return
    if (cell.efficiency.high or cell.efficiency.mean) >= EFFICIENT:
        return
    yield Recommendation(
        f"{best.name}: the efficiency is {percent_text(cell.efficiency)}, and a worker computes "
        f"{time_text(cell.breakdown.compute)} of a step ({percent_text(share)}) with a batch of {number_text(batch)}, "
        "which is too small to divide further",
        _weak(best),
    )


def _weak(best: _Best) -> str:
    own = best.cell.cell
    for group in best.groups:
        if group.scaling == "weak" and group.axes == own.axes:
            for cell in group.cells:
                if (cell.cell.strategy, cell.cell.workers) == (own.strategy, own.workers) and cell.efficiency:
                    return (
                        f"With weak scaling, where each worker keeps its batch, it is {percent_text(cell.efficiency)}."
                    )
    return "Measure with --scaling weak, where each worker keeps its batch."


def _other(best: _Best) -> Iterator[Recommendation]:
    if (best.cell.share("other") or 0.0) > OTHER:
        yield Recommendation(
            f"{best.name}: {best.part('other')} goes to hooks, callbacks and the loop itself",
            "ProfilingCallback shows which.",
        )


def _noise(best: _Best) -> Iterator[Recommendation]:
    estimate = best.speed.of(best.cell)
    if estimate is None or estimate.high is None or best.completion.continues(best.cell):
        return
    half = (estimate.high - estimate.mean) / estimate.mean  # the lower half may be cut off at 0
    if half > NOISY:
        yield Recommendation(
            f"{best.name}: the mean of {estimate.n} runs is known only to ± {percent_text(half)}",
            "Use more repeats, or an idle machine.",
        )

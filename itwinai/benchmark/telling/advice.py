"""What to try after a benchmark; each rule speaks only where the figures support it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.contest import Contest
from itwinai.benchmark.statistics.course import Course
from itwinai.benchmark.statistics.groups import Group, Speed, batch_of, named
from itwinai.benchmark.telling.amounts import bytes_text, number_text, percent_text, seconds_text, share_text
from itwinai.benchmark.telling.parts import seconds_of, share_of

DATA = 0.20
COMMUNICATION = 0.25
OTHER = 0.25
"""Shares of a step from which on it pays to do something about them."""

IMBALANCE = 0.10
"""How much longer than the mean the busiest worker is busy, from which on the others wait for it noticeably."""

EFFICIENT = 0.6
"""Efficiency below which a batch of many workers is said to be too small, if little of a step computes."""

NOISY = 0.1
"""Half of an interval, as a share of the mean, from which on repeats say little."""

LARGE_GRADIENTS = 2**20
"""Bytes of gradients below which latency counts, and not how much is sent."""


def advice(contests: Sequence[Contest], groups: Sequence[Group], speed: Speed, course: Course) -> list[str]:
    """Return what to try, each with the figures behind it: for the fastest cell of each group.

    Args:
        contests: who is fastest in which group.
        groups: all groups.
        speed: what speeds are told in.
        course: how far the benchmark has come.
    """
    rules: list[Callable[[Contest], Iterator[str]]] = [
        _data,
        _communication,
        _imbalance,
        lambda contest: _small_batch(contest, groups),
        _other,
        lambda contest: _noise(contest, speed, course),
    ]
    return [sentence for rule in rules for contest in contests for sentence in rule(contest)]


def _data(contest: Contest) -> Iterator[str]:
    share = share_of(contest.best.breakdown, "data")
    if share is not None and share > DATA:
        yield (
            f"{_cell(contest)}: {_part(contest.best, 'data')} waits for data. Raise num_workers of the DataLoader if "
            "there are cores for it, or make a sample cheaper to prepare."
        )


def _communication(contest: Contest) -> Iterator[str]:
    best = contest.best
    share = share_of(best.breakdown, "communication")
    if share is None or best.breakdown is None or share <= COMMUNICATION:
        return
    if _waited(best) >= 0.5 * best.breakdown.communication:
        return  # the exchange is not what takes the time: see `_imbalance`
    size = fmean(one.gradient_bytes for one in best.measured)
    exchange = f"with gradients of {bytes_text(size)}"
    if (hidden := best.breakdown.hidden) is not None:
        beside = hidden / (hidden + best.breakdown.communication)
        exchange += f", of whose exchange {share_text(beside)} is hidden behind backward"
    halve = " Gradients in bf16 halve what is sent." if size >= LARGE_GRADIENTS and _is_single(best) else ""
    yield (
        f"{_cell(contest)}: {_part(best, 'communication')} waits for other workers, {exchange}. If training allows it, "
        f"take a larger batch per worker, or accumulate_grad_batches, to exchange less often.{halve}"
    )


def _imbalance(contest: Contest) -> Iterator[str]:
    best = contest.best
    if best.imbalance is None or best.imbalance.mean <= IMBALANCE:
        return
    busiest = {one.busy.index(max(one.busy)) for one in best.measured if one.busy}
    repeats = len(best.measured) > 1
    which = f"rank {busiest.pop()}{' in every run' if repeats else ''}" if len(busiest) == 1 else "not always the same"
    yield (
        f"{_cell(contest)}: the busiest worker ({which}) is busy {percent_text(best.imbalance)} longer than the mean, "
        f"and the others wait {seconds_text(_waited(best))} of each step for it. Look for a slower device, for other "
        "programs beside it, or for samples of unequal size."
    )


def _small_batch(contest: Contest, groups: Sequence[Group]) -> Iterator[str]:
    """Yield that the batch is too small to be divided, where computing has become the smaller part of a step."""
    best, batch = contest.best, batch_of(contest.best)
    share = share_of(best.breakdown, "compute")
    if contest.group.scaling != "strong" or best.cell.workers == 1 or best.efficiency is None:
        return
    if batch is None or share is None or best.breakdown is None or share >= 0.5:
        return
    if (best.efficiency.high or best.efficiency.mean) >= EFFICIENT:
        return
    yield (
        f"{_cell(contest)}: the efficiency is {percent_text(best.efficiency)}, and a worker computes "
        f"{seconds_text(best.breakdown.compute)} of a step ({share_text(share)}), with a batch of "
        f"{number_text(batch)}: too little to divide further. {_weak(contest, groups)}"
    )


def _weak(contest: Contest, groups: Sequence[Group]) -> str:
    for group in groups:
        if group.scaling == "weak" and group.axes == contest.group.axes:
            for cell in group.cells:
                alike = (cell.cell.strategy, cell.cell.workers)
                if alike == (contest.best.cell.strategy, contest.best.cell.workers) and cell.efficiency is not None:
                    return (
                        f"With weak scaling, where the batch of a worker stays, it is {percent_text(cell.efficiency)}."
                    )
    return "See with --scaling weak what it is if the batch of a worker stays."


def _other(contest: Contest) -> Iterator[str]:
    share = share_of(contest.best.breakdown, "other")
    if share is not None and share > OTHER:
        yield (
            f"{_cell(contest)}: {_part(contest.best, 'other')} goes to hooks, callbacks and the loop itself. "
            "ProfilingCallback tells which."
        )


def _noise(contest: Contest, speed: Speed, course: Course) -> Iterator[str]:
    estimate = speed.of(contest.best)
    if estimate is None or estimate.high is None or course.goes_on(contest.best):
        return
    half = (estimate.high - estimate.mean) / estimate.mean  # the lower half may be cut off at 0
    if half > NOISY:
        yield (
            f"{_cell(contest)}: the mean of {estimate.n} runs is known to ± {share_text(half)} only. Take more "
            "repeats, or a machine with nothing else to do."
        )


def _cell(contest: Contest) -> str:
    return f"{named(contest.best.cell)}{f' ({contest.group.name})' if contest.group.name else ''}"


def _part(cell: CellSummary, part: str) -> str:
    if cell.breakdown is None:
        return ""
    share = share_of(cell.breakdown, part) or 0.0
    return f"{share_text(share)} of a step ({seconds_text(seconds_of(cell.breakdown)[part])})"


def _waited(cell: CellSummary) -> float:
    """Return the seconds of a step that a mean worker waits for the busiest one."""
    waited = [max(one.busy) - fmean(one.busy) for one in cell.measured if one.busy]
    return fmean(waited) if waited else 0.0


def _is_single(cell: CellSummary) -> bool:
    """Tell whether gradients have 32 bits, which mixed precision leaves them."""
    return all(one.gradient_bytes >= 4 * one.parameters for one in cell.measured)

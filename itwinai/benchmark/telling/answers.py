"""The short answer of a benchmark: what to take; and where more workers bring nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from itwinai.benchmark.records import Cell
from itwinai.benchmark.statistics.cell_summary import CellSummary
from itwinai.benchmark.statistics.contest import Contest
from itwinai.benchmark.statistics.groups import Speed, named
from itwinai.benchmark.telling.amounts import estimate_text, number_text, percent_text
from itwinai.reporting.formatting import count_text
from itwinai.reporting.search.formatting import joined

TOLD = 4
"""Most groups that have an answer of their own."""


def answers(
    contests: Sequence[Contest], speed: Speed, doubted: Collection[Cell], doubtful: Sequence[str] = ()
) -> Iterator[str]:
    """Yield what to take, for each group up to `TOLD`: the fastest of all numbers of workers.

    Args:
        contests: who is fastest in which group.
        speed: what speeds are told in.
        doubted: cells that take no part.
        doubtful: names of the groups whose figures are doubtful: of these nothing is recommended.
    """
    if doubtful:
        names = joined([name for name in doubtful if name])
        yield (
            f"No recommendation{f' for {names}' if names else ''}: the measurements are doubtful, see the warnings. "
            "Rerun with a new --folder when the machine is idle."
        )
    for contest in contests[:TOLD]:
        rates = [(one, rate) for one in contest.group.cells if (rate := _rate(one, speed, doubted)) is not None]
        taken, _ = min(rates, key=lambda pair: (-pair[1], pair[0].cell.workers))
        where = f"{contest.group.name[:1].upper()}{contest.group.name[1:]}: take" if contest.group.name else "Take"
        yield f"{where} {named(taken.cell)}, {estimate_text(speed.of(taken))} {speed.unit}{_beside(taken, contest)}."


def plateaus_text(contest: Contest, speed: Speed, doubted: Collection[Cell]) -> str:
    """Return with which strategies more workers are not faster than fewer; empty if they always are.

    Args:
        contest: of a group.
        speed: what speeds are told in.
        doubted: cells that take no part.
    """
    told = []
    for line in contest.group.series:
        best: tuple[int, float] | None = None
        slower: dict[tuple[int, float], list[tuple[int, float]]] = {}
        for one in line.cells:
            if (rate := _rate(one, speed, doubted)) is None:
                continue
            if best is None or rate > best[1]:
                best = one.cell.workers, rate
            else:
                slower.setdefault(best, []).append((one.cell.workers, rate))
        for (fewer, fastest), more in slower.items():
            numbers = joined([f"{workers:,}" for workers, _ in more])
            rates = joined([number_text(rate) for _, rate in more])
            told.append(
                f"{numbers} workers are not faster than {fewer:,} with {line.strategy} ({rates} against "
                f"{number_text(fastest)} {speed.unit})"
            )
    return "; ".join(told[:TOLD])


def _rate(cell: CellSummary, speed: Speed, doubted: Collection[Cell]) -> float | None:
    estimate = speed.of(cell) if cell.cell not in doubted else None
    return None if estimate is None else estimate.mean


def _beside(taken: CellSummary, contest: Contest) -> str:
    """Return what else decides: how well it scales, or that more workers bring nothing, or that others are as good."""
    told = []
    if taken.cell.workers < contest.best.cell.workers:
        told.append(f"{count_text(contest.best.cell.workers, 'worker')} are not faster")
    elif ties := contest.ties:
        told.append(f"no difference to {joined([rival.cell.cell.strategy for rival in ties])} could be shown")
    baseline = taken.baseline
    if taken.speedup is not None and baseline is not None and baseline != taken.cell and taken.cell.workers > 1:
        told.append(
            f"a speed-up of {estimate_text(taken.speedup)} over {named(baseline)}, an efficiency of "
            f"{percent_text(taken.efficiency)}"
        )
    return "".join(f"; {text}" for text in told)

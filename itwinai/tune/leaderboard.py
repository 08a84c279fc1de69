"""The trials of a search in the order of what they have reached: as CSV, for pages, for a terminal."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from itwinai.io.atomic import write_whole
from itwinai.reporting.formatting import count_text, key_of, listed, shortened
from itwinai.reporting.search.leaderboard import leaderboard_table
from itwinai.reporting.search.ranking import Standing, counts, paths_of, standing_of
from itwinai.reporting.sections import Table
from itwinai.reporting.tables import table_text, without_columns
from itwinai.reporting.terminal import WIDTH
from itwinai.trials.records import SearchRecord, TrialRecord

__all__ = ["leaderboard_table", "leaderboard_text", "write_leaderboard"]

FAILED_SHOWN = 5

CELLS = (40, 24, 14)
"""Most characters of a cell: the first with which a table fits."""

_FIRST = ("rank", "trial", "name", "status")
_THEN = ("reports", "seconds", "failures")
_LAST = ("checkpoint", "folder", "error")


def write_leaderboard(record: SearchRecord, path: str | os.PathLike[str]) -> None:
    """Write all trials as CSV, the best first; a file of that name is replaced as a whole.

    The columns are ``rank`` (empty for trials that have reached nothing), ``trial`` (its number), ``name``, ``status``,
    with several objectives ``front`` (1 for the Pareto front), a column for each objective by its name, ``reports``,
    ``seconds``, ``failures``, one for each parameter by its path in the config, ``checkpoint``, ``folder`` and
    ``error``. A parameter or objective of the same name as another column is called ``parameter:NAME`` or
    ``objective:NAME``. Numbers have all their digits; what is neither number nor text is JSON; the cell of a parameter
    that a trial does not have is empty.

    Args:
        record: the search.
        path: of the file; its folder is created if it does not exist.

    Raises:
        OSError: it could not be written; the old file is still there.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(_rows(standing_of(record)))
    write_whole(Path(path), text.getvalue())


def leaderboard_text(record: SearchRecord, top: int = 10, width: int = WIDTH) -> str:
    """Return the best trials as aligned lines for a terminal, with how many more there are and why trials failed.

    Args:
        record: the search.
        top: how many trials.
        width: of a line, in characters. Values are cut and the last parameters left out where they do not fit.
    """
    standing = standing_of(record)
    lines = []
    if standing.ranked:
        first = 2 + len(record.objectives)
        parameters = range(first, first + len(standing.names))
        lines += _fitting(leaderboard_table(standing, top), parameters, width)
    else:
        metrics = " and ".join(objective.metric for objective in record.objectives)
        lines.append(f"No trial has reported {metrics}.")
    more = [*standing.ranked[top:], *standing.rest]
    if more:
        many = f"... and {len(more):,} more" if standing.ranked else f"Of {len(record.trials):,} trials"
        lines.append(f"{many}: {counts(more)}")
    return "\n".join([*lines, *_failed(record.trials, width)])


def _rows(standing: Standing) -> Iterator[Sequence[Any]]:
    objectives, paths = standing.record.objectives, paths_of(standing.record)
    several = ("front",) if len(objectives) > 1 else ()
    own = [*_FIRST, *several, *_THEN, *_LAST]
    metrics = [_column(objective.metric, "objective", own) for objective in objectives]
    parameters = [_column(path, "parameter", [*own, *metrics]) for path in paths]
    yield [*_FIRST, *several, *metrics, *_THEN, *parameters, *_LAST]
    ranks: list[int | str] = [*range(1, len(standing.ranked) + 1), *[""] * len(standing.rest)]
    for rank, trial in zip(ranks, [*standing.ranked, *standing.rest], strict=True):
        values = standing.values.get(trial.number, ("",) * len(objectives))
        front = [standing.fronts[trial.number] + 1 if trial.number in standing.fronts else ""] if several else []
        yield [
            *(rank, trial.number, trial.name, trial.status),
            *front,
            *values,
            *(len(trial.reports), trial.seconds, trial.failures),
            *(_cell(trial.parameters[path]) if path in trial.parameters else "" for path in paths),
            *(trial.checkpoint, trial.folder, trial.error),
        ]


def _column(name: str, kind: str, taken: Sequence[str]) -> str:
    return f"{kind}:{name}" if name in taken else name


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else key_of(value)


def _fitting(table: Table, parameters: Sequence[int], width: int) -> list[str]:
    """Return a table in lines that are no longer than ``width``, if that can be: shorter cells, fewer parameters."""
    for most in CELLS:
        cut = Table(
            [shortened(text, most) for text in table.columns],
            [[shortened(text, most) for text in row] for row in table.rows],
        )
        shown, gone = without_columns(cut, width, parameters)
        if not gone:
            break
    more = [f"{count_text(len(gone), 'more parameter')}: see the CSV file"] if gone else []
    return [*table_text(shown, width).splitlines(), *more]


def _failed(trials: Sequence[TrialRecord], width: int) -> list[str]:
    failed = [trial for trial in trials if trial.status == "failed"]
    lines = [f"trial {trial.number} failed: {trial.error or 'no error is known'}" for trial in failed[:FAILED_SHOWN]]
    if more := failed[FAILED_SHOWN:]:
        lines.append(f"and so did trials {listed((trial.number for trial in more), 8)}")
    return [shortened(line, width) for line in lines]

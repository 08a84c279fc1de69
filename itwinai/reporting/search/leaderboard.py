"""The best trials, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from itwinai.reporting.formatting import shortened, span_text, value_text
from itwinai.reporting.search.ranking import Standing, standing_of
from itwinai.reporting.sections import Table
from itwinai.trials.records import SearchRecord, TrialRecord

CELL = 40
"""Most characters of a value."""


def leaderboard_table(record: SearchRecord | Standing, top: int = 10) -> Table:
    """Return the best trials of a search.

    The columns are rank, trial, the objectives, the parameters by the shortest end of their path that no other has,
    status, reports and time. With several objectives there is the front instead of the rank: 1 is the Pareto front, and
    each further one is dominated only by those before it.

    Args:
        record: the search.
        top: how many trials.
    """
    standing = record if isinstance(record, Standing) else standing_of(record)
    objectives = standing.record.objectives
    columns = [
        "rank" if len(objectives) == 1 else "front",
        "trial",
        *(objective.metric for objective in objectives),
        *standing.names.values(),
        "status",
        "reports",
        "time",
    ]
    shown = standing.ranked[:top]
    rows = [_row(standing, trial, place) for place, trial in enumerate(shown, start=1)]
    count = len(standing.record.trials)
    return Table(columns, rows, f"The best {len(shown)} of {count:,} trials" if count > 1 else "The only trial")


def _row(standing: Standing, trial: TrialRecord, place: int) -> Sequence[str]:
    several = len(standing.record.objectives) > 1
    return [
        str(standing.fronts[trial.number] + 1 if several else place),
        str(trial.number),
        *(value_text(value) for value in standing.values[trial.number]),
        *(
            shortened(value_text(trial.parameters[path]), CELL) if path in trial.parameters else ""
            for path in standing.names
        ),
        trial.status,
        str(len(trial.reports)),
        span_text(trial.seconds),
    ]

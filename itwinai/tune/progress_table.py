"""The table in which a terminal shows a search, as much of it as fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from itwinai.reporting.formatting import shortened, span_text, value_text
from itwinai.reporting.sections import Table
from itwinai.reporting.tables import rich_table, without_columns
from itwinai.trials.records import TrialRecord
from itwinai.tune.progress import SearchProgress, View, cleaned, last_report

if TYPE_CHECKING:
    from rich.console import RenderableType

_CELL = 16
"""Most characters of a name or a value."""
_BEST_ROWS = 3
"""Number of best trials that are always shown, however many run."""
_STYLES = {"failed": "red", "stopped": "dim", "finished": "dim"}


def frame(view: View, progress: SearchProgress, size: tuple[int, int]) -> RenderableType:
    """Return the table.

    Args:
        view: the search.
        progress: how far it is.
        size: columns and lines of the terminal.
    """
    from rich.console import Group
    from rich.text import Text

    width, height = size

    def line(text: str, style: str = "") -> Text:
        return Text(cleaned(text), style=style, no_wrap=True, overflow="ellipsis")

    lines: list[RenderableType] = [
        line(f"{view.record.name}  {progress.counts()}", "bold"),
        line("   ".join(filter(None, [view.best_text(), progress.times()]))),
    ]
    trials, more = _shown(view, height - len(lines) - 3)  # the headings, a note, and the line of the cursor
    if trials:
        parameters = range(2, 2 + len(view.names))
        table, hidden = without_columns(_table_of(view, trials), width, parameters)
        lines.append(rich_table(table, _styles(view, trials)))
        notes = [f"{more} more running" if more else "", f"not shown: {', '.join(hidden)}" if hidden else ""]
        if note := "; ".join(filter(None, notes)):
            lines.append(line(note, "dim"))
    return Group(*lines)


def _shown(view: View, room: int) -> tuple[list[TrialRecord], int]:
    """Return the trials that run, before the best of the others, and how many that run are left out."""
    running = [trial for trial in view.record.trials if trial.status == "running"]
    others = [trial for trial in view.ranked if trial.status != "running"]
    room = max(room, 1)
    for_best = min(len(others), max(room - len(running), min(_BEST_ROWS, room // 2)))
    shown = running[: room - for_best]
    return [*shown, *others[:for_best]], len(running) - len(shown)


def _table_of(view: View, trials: Sequence[TrialRecord]) -> Table:
    record = view.record
    single = len(record.objectives) == 1
    metrics = [objective.metric for objective in record.objectives]
    columns = ["trial", "status", *map(_cell, view.names.values()), *map(_cell, metrics), *["best"] * single]
    rows = []
    for trial in trials:
        own = [_cell(value_text(trial.parameters[path])) if path in trial.parameters else "" for path in view.names]
        last = [(metric, last_report(trial, [metric])) for metric in metrics]
        values = ["" if report is None else value_text(report.metrics[metric]) for metric, report in last]
        best = record.values(trial)
        reached = [("" if best is None else value_text(best[0]))] * single
        end = [str(len(trial.reports)), span_text(trial.seconds)]
        rows.append([str(trial.number), trial.status, *own, *values, *reached, *end])
    return Table([*columns, "reports", "time"], rows)


def _styles(view: View, trials: Sequence[TrialRecord]) -> list[str]:
    best = None if view.leader is None else view.leader[0].number
    return ["bold green" if trial.number == best else _STYLES.get(trial.status, "") for trial in trials]


def _cell(text: str) -> str:
    return shortened(cleaned(text), _CELL)

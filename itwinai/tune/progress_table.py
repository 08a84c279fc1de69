"""The table in which a terminal shows a search, as much of it as fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from itwinai.reporting.formatting import shortened, span_text, value_text
from itwinai.trials.records import TrialRecord
from itwinai.tune.progress import SearchProgress, View, cleaned, last_report

if TYPE_CHECKING:
    from rich.console import JustifyMethod, RenderableType
    from rich.table import Table

_CELL = 16
"""Most characters of a name or a value."""
_GAP = 2
_BEST_ROWS = 3
"""So many of the best trials are shown in any case, however many run."""
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
        columns, hidden = _fitting(_columns(view, trials), width)
        lines.append(_table(columns, _styles(view, trials)))
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


class _Column:
    """A column of the table.

    Args:
        heading: what stands above it.
        cells: one per trial.
        is_text: whether it is no numbers.
        may_go: whether it is left out where there is no room.
    """

    def __init__(self, heading: str, cells: Sequence[str], is_text: bool = False, may_go: bool = False) -> None:
        self.heading = heading
        self.cells = cells
        self.is_text = is_text
        self.may_go = may_go
        self.width = max(map(len, [heading, *cells]))


def _columns(view: View, trials: Sequence[TrialRecord]) -> list[_Column]:
    record = view.record
    columns = [
        _Column("trial", [str(trial.number) for trial in trials]),
        _Column("status", [trial.status for trial in trials], is_text=True),
    ]
    for path, name in view.names.items():
        cells = [_cell(value_text(trial.parameters[path])) if path in trial.parameters else "" for trial in trials]
        columns.append(_Column(_cell(name), cells, is_text=True, may_go=True))
    for objective in record.objectives:
        reports = [last_report(trial, [objective.metric]) for trial in trials]
        cells = ["" if report is None else value_text(report.metrics[objective.metric]) for report in reports]
        columns.append(_Column(_cell(objective.metric), cells))
    if len(record.objectives) == 1:
        values = [record.values(trial) for trial in trials]
        columns.append(_Column("best", ["" if value is None else value_text(value[0]) for value in values]))
    columns.append(_Column("reports", [str(len(trial.reports)) for trial in trials]))
    columns.append(_Column("time", [span_text(trial.seconds) for trial in trials]))
    return columns


def _fitting(columns: Sequence[_Column], width: int) -> tuple[list[_Column], list[str]]:
    """Return the columns that have room, and the headings of the others: of parameters, the last first."""
    shown = list(columns)
    hidden: list[str] = []
    for column in reversed(columns):
        if sum(other.width + _GAP for other in shown) - _GAP <= width:
            break
        if column.may_go:
            shown.remove(column)
            hidden.insert(0, column.heading)
    return shown, hidden


def _table(columns: Sequence[_Column], styles: Sequence[str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        justify: JustifyMethod = "left" if column.is_text else "right"
        table.add_column(Text(column.heading), justify=justify, no_wrap=True, overflow="ellipsis")
    for cells, style in zip(zip(*(column.cells for column in columns), strict=True), styles, strict=True):
        table.add_row(*(Text(cell) for cell in cells), style=style)
    return table


def _styles(view: View, trials: Sequence[TrialRecord]) -> list[str]:
    best = None if view.leader is None else view.leader[0].number
    return ["bold green" if trial.number == best else _STYLES.get(trial.status, "") for trial in trials]


def _cell(text: str) -> str:
    return shortened(cleaned(text), _CELL)

"""How `itwinai check` shows what it finds: a row for each check as soon as it is known."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Sequence

from typing_extensions import Self

from itwinai.checks.report import CheckReport, CheckResult
from itwinai.cli.doctor.progress import ProgressLine
from itwinai.errors import require

_WORDS = {"pass": "pass", "fail": "FAIL", "not applicable": "n/a", "expected failure": "known"}
_STYLES = {"pass": "green", "fail": "bold red", "not applicable": "dim", "expected failure": "yellow"}
_WIDEST = 120


class CheckDisplay:
    """Prints results as they come, and below them what is being done.

    Args:
        names: of all checks that will run.

    Raises:
        MissingPackageError: rich is not installed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        require("rich", "Install it with `pip install rich`.", "itwinai check")
        from rich.console import Console

        width = min(shutil.get_terminal_size().columns, _WIDEST) if sys.stdout.isatty() else _WIDEST
        self._console = Console(highlight=False, width=width, soft_wrap=False)
        self._name_width = max(map(len, names))
        self._progress = ProgressLine(sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.clear()

    def head(self, module: str, strategies: Sequence[str]) -> None:
        """Print what is checked."""
        self._console.print(f"{module}, in one process and under {', '.join(strategies)}\n")

    def doing(self, text: str) -> None:
        """Say what is being done from now on."""
        self._progress.start(text)
        self._progress.tick()

    def tick(self) -> None:
        """Redraw the line that says it."""
        self._progress.tick()

    def done(self, result: CheckResult) -> None:
        """Print the row of a check."""
        from rich.table import Table
        from rich.text import Text

        self._progress.clear()
        row = Table.grid(padding=(0, 2, 0, 0))
        row.add_column(width=self._name_width)
        row.add_column(width=5)
        row.add_column(width=6, justify="right")
        row.add_column()
        style = _STYLES[result.status]
        place = f"{result.at}: " if result.at else ""
        told = Text(f"{place}{result.cause or result.detail}", style="" if result.status == "fail" else "dim")
        told.stylize("bold", 0, len(place))
        row.add_row(result.name, Text(_WORDS[result.status], style=style), f"{result.seconds:.1f} s", told)
        if result.mend:
            row.add_row("", "", "", f"-> {result.mend}")
        self._console.print(row)

    def conclude(self, report: CheckReport) -> None:
        """Print what came out of all of it."""
        counts = Counter(_WORDS[result.status] for result in report.results)
        named = {"pass": "passed", "FAIL": "failed", "n/a": "not applicable", "known": "known to fail"}
        told = ", ".join(f"{counts[word]} {text}" for word, text in named.items() if counts[word])
        self._console.print(f"\n{told}, in {report.seconds:.0f} s", style="bold" if report.failed else "")

"""What it takes to make leaderboard and page of a large search: ``python -m tests.performance.search_report``.

The records are made up (`tests.support.searches`): a random search in which half of the trials were stopped early and
some failed. Each row is the median of some repeats in one process, in CPU time of that process, which other programs
hardly disturb; what is imported for the first of them (matplotlib, optuna and what these load) has a row of its own,
measured in a process that has just been started.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from itwinai.reporting.html import page
from itwinai.reporting.search.sections import search_sections
from itwinai.trials.records import SearchRecord
from itwinai.tune.importance import importances
from itwinai.tune.leaderboard import leaderboard_text, write_leaderboard
from itwinai.tune.record_file import read_record, write_record
from itwinai.tune.report import write_report
from tests.performance.report import describe_machine
from tests.support.searches import LOSS, RANGES, SPEED, search

GOAL_SECONDS = 10.0
GOAL_BYTES = 5_000_000
"""For leaderboard and page of a search with one objective."""

_IMPORTS = "import matplotlib.figure, matplotlib.backends.backend_svg, optuna.importance, itwinai.loggers.folder_logger"


def steps(record: SearchRecord, folder: Path) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name; the page is made in three ways for its parts to be seen."""
    found = [importances(record, objective) for objective in record.objectives]
    sections = search_sections(record, found)
    return {
        "leaderboard, CSV": lambda: write_leaderboard(record, folder / "leaderboard.csv"),
        "leaderboard, terminal": lambda: leaderboard_text(record),
        "record, written": lambda: write_record(record, folder / "search.json"),
        "record, read": lambda: read_record(folder / "search.json"),
        "page, importances": lambda: [importances(record, objective) for objective in record.objectives],
        "page, pictures and tables": lambda: search_sections(record, found),
        "page, HTML": lambda: page("search", sections),
        "page, all": lambda: write_report(record, folder / "report.html"),
    }


def seconds_of(step: Callable[[], object], repeats: int) -> float:
    """Return the median of the CPU times of a step."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        step()
        times.append(time.process_time() - began)
    return statistics.median(times)


def measure(record: SearchRecord, repeats: int) -> tuple[dict[str, float], dict[str, int]]:
    """Return the seconds of each step, and the bytes of each file."""
    with tempfile.TemporaryDirectory() as folder:
        timed = {name: seconds_of(step, repeats) for name, step in steps(record, Path(folder)).items()}
        sizes = {path.name: path.stat().st_size for path in sorted(Path(folder).iterdir())}
    return timed, sizes


def import_seconds() -> float:
    """Return the CPU time that a fresh Python needs to import what a report needs."""
    line = f"import time; began = time.process_time(); {_IMPORTS}; print(time.process_time() - began)"
    return float(subprocess.run([sys.executable, "-c", line], check=True, capture_output=True, text=True).stdout)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows])


def main() -> None:
    """Measure a search with one objective and one with two, and print both in one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--reports", type=int, default=36, help="of a trial that is not stopped")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for name, value in describe_machine().items():
        print(f"- {name}: {value}")
    record = search(options.trials, options.reports)
    reports = sum(len(trial.reports) for trial in record.trials)
    print(f"- {options.trials:,} trials, {reports:,} reports, {len(RANGES)} parameters\n")
    one = measure(record, options.repeats)
    two = measure(search(options.trials, options.reports, objectives=(LOSS, SPEED)), options.repeats)
    rows = [[f"{name}, s", f"{one[0][name]:.2f}", f"{two[0][name]:.2f}"] for name in one[0]]
    rows += [[f"{name}, MB", f"{one[1][name] / 1e6:.2f}", f"{two[1][name] / 1e6:.2f}"] for name in one[1]]
    imports = import_seconds()
    print(table(["what", "one objective", "two objectives"], [*rows, ["imports, once, s", f"{imports:.2f}", ""]]))
    taken = one[0]["leaderboard, CSV"] + one[0]["page, all"] + imports
    reached = taken <= GOAL_SECONDS and one[1]["report.html"] <= GOAL_BYTES
    print(
        f"\nLeaderboard and page of one objective, imports included: {taken:.1f} s of CPU (goal: {GOAL_SECONDS:g} s), "
        f"{one[1]['report.html'] / 1e6:.1f} MB (goal: {GOAL_BYTES / 1e6:g} MB): {'reached' if reached else 'MISSED'}"
    )


if __name__ == "__main__":
    main()

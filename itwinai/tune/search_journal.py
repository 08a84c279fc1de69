"""The file that keeps the state of a search, so that it outlives the process that searches.

Each event adds a line, a JSON object with what is known from then on. Reading all lines in order gives the present
state; the search keeps its own state in the same way while it runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from itwinai.io.line_file import LineFile
from itwinai.io.versioned_json import finite
from itwinai.trials.records import Report, SearchRecord, TrialRecord
from itwinai.tune.record_file import record_from

REPORTS = "reports.jsonl"
"""Name of the file, in the folder of the search."""

Line = Mapping[str, Any]


@dataclass
class SearchHistory:
    """Where a search stands.

    Attributes:
        seconds: that it has taken, over all its starts.
        trials: the trials, by Ray's id.
        search: what it is, with the names of the fields of `SearchRecord`.
    """

    seconds: float = 0.0
    trials: dict[str, TrialRecord] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)

    def apply(self, line: Line) -> None:
        """Apply a line."""
        self.seconds = line["at"]
        if "search" in line:
            self.search = dict(line["search"])
        elif "report" in line:
            self.trials[line["trial"]] = _with_report(self.trials[line["trial"]], line)
        elif "trial" in line:
            reports = self.trials[line["trial"]].reports if line["trial"] in self.trials else ()
            self.trials[line["trial"]] = TrialRecord(**line["is"], reports=reports)


class SearchJournal:
    """Keeps a file and the `SearchHistory` that it leads to together.

    What has been written before is read when this is created. Each line is written at once.

    Args:
        folder: of the search.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        path = Path(folder, REPORTS)
        self._file = LineFile(path, seconds=0, records=1)  # cuts off half a line that an earlier process has left
        self.history = _read(path) if path.exists() else SearchHistory()

    def write_search(self, record: SearchRecord, at: float) -> None:
        """Write what the search is.

        Args:
            record: the search; its trials, time and folder are not taken from it.
            at: seconds that the search has taken.
        """
        self._write({"at": at, "search": {name: getattr(record, name) for name in _OF_SEARCH}})

    def write_trial(self, trial: str, record: TrialRecord, at: float) -> None:
        """Write what is known of a trial, but for its reports.

        Args:
            trial: Ray's id of it.
            record: the trial.
            at: seconds that the search has taken.
        """
        known = {name: value for name, value in vars(record).items() if name != "reports"}
        self._write({"at": at, "trial": trial, "is": known})

    def write_report(self, trial: str, report: Report, checkpoint: str | None, at: float) -> None:
        """Write a report. Those of the same trial with the same number or a higher one count no longer.

        A trial that resumes from a checkpoint repeats what it has done since then, with another outcome perhaps.

        Args:
            trial: Ray's id of the trial.
            report: what it has reported.
            checkpoint: path of its best checkpoint; None if it is the same as before.
            at: seconds that the search has taken.
        """
        line: dict[str, Any] = {"at": at, "trial": trial, "number": self.history.trials[trial].number}
        line |= {"report": report.number, "seconds": report.seconds, "metrics": dict(report.metrics)}
        self._write(line if checkpoint is None else {**line, "checkpoint": checkpoint})

    def write_time(self, at: float) -> None:
        """Write how long the search has taken."""
        self._write({"at": at})

    def _write(self, line: dict[str, Any]) -> None:
        from itwinai.run_info.serialization import plain

        written = finite(plain(line))
        self._file.append(written)
        self.history.apply(_with_numbers(written))


def read_search(folder: str | os.PathLike[str]) -> SearchRecord:
    """Return where a search stands that another process resumes, or has ended.

    Args:
        folder: of the search.

    Raises:
        FileNotFoundError: no search has been in the folder.
    """
    return record_of(_read(Path(folder, REPORTS)), str(folder))


def record_of(history: SearchHistory, folder: str) -> SearchRecord:
    """Return a search as a record.

    Args:
        history: where it stands.
        folder: where everything is.
    """
    trials = sorted(history.trials.values(), key=lambda trial: trial.number)
    return record_from({**history.search, "seconds": history.seconds, "folder": folder}, trials)


_OF_SEARCH = ("name", "objectives", "parameters", "settings", "ranges")


def _with_report(trial: TrialRecord, line: Line) -> TrialRecord:
    report = Report(line["report"], line["seconds"], line["metrics"], line["at"])
    before: Sequence[Report] = trial.reports
    if before and before[-1].number >= report.number:
        before = [other for other in before if other.number < report.number]
    return replace(
        trial,
        reports=(*before, report),
        seconds=max(trial.seconds, report.seconds),
        checkpoint=line.get("checkpoint", trial.checkpoint),
    )


def _read(path: Path) -> SearchHistory:
    history = SearchHistory()
    for line in _lines(path):
        history.apply(line)
    return history


def _lines(path: Path) -> Iterator[Line]:
    with path.open(encoding="utf-8") as file:
        for text in file:
            if text.endswith("\n"):  # the last line may be half of one
                yield _with_numbers(json.loads(text))


def _with_numbers(line: dict[str, Any]) -> Line:
    """Return a line with numbers in the place of the texts for those that are not finite."""
    if "metrics" in line:
        line["metrics"] = {name: float(value) for name, value in line["metrics"].items()}
    return line

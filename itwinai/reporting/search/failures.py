"""The trials that failed, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from itwinai.reporting.formatting import parameters_text, shortened, span_text
from itwinai.reporting.search.ranking import Standing
from itwinai.reporting.sections import Section, Table
from itwinai.trials.records import TrialRecord

SHOWN = 50
"""Most trials that are listed."""


def failures_section(standing: Standing) -> Section | None:
    """Return the trials that failed with their errors, and the errors by how often they came; None if none failed."""
    failed = [trial for trial in standing.record.trials if trial.status == "failed"]
    if not failed:
        return None
    kinds = kinds_of_errors(failed)
    counted = [(f"{count:,}", error) for error, count in kinds]
    rows = [
        (
            str(trial.number),
            shortened(trial.error, 300),
            parameters_text(trial.parameters, standing.names),
            str(len(trial.reports)),
            span_text(trial.seconds),
            trial.folder,
        )
        for trial in failed[:SHOWN]
    ]
    title = f"{len(rows)} of {len(failed):,} trials that failed" if len(failed) > SHOWN else "Trials that failed"
    tables = [Table(("trial", "error", "parameters", "reports", "time", "folder"), rows, title)]
    if len(kinds) < len(failed):
        tables.insert(0, Table(("trials", "error"), counted[:SHOWN], "Errors, by how often they came"))
    return Section("Failed trials", tables=tables)


def kinds_of_errors(failed: Sequence[TrialRecord]) -> list[tuple[str, int]]:
    """Return the errors and how often they came, the most frequent first.

    Errors that differ in numbers only, such as addresses and sizes, count as one.
    """
    first: dict[str, str] = {}
    kinds = Counter[str]()
    for trial in failed:
        kind = re.sub(r"\d+(\.\d+)?", "#", trial.error)
        first.setdefault(kind, shortened(trial.error, 200) or "no error is known")
        kinds[kind] += 1
    return [(first[kind], count) for kind, count in kinds.most_common()]

"""What a search has found, and the files of its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itwinai.trials.records import SearchRecord, TrialRecord

BEST_CONFIG, LEADERBOARD, REPORT, RECORD = "best_config.yaml", "leaderboard.csv", "report.html", "search.json"


@dataclass(frozen=True, repr=False)
class SearchResult:
    """What a search has found.

    Attributes:
        record: all its trials.
        best_config: the config that `itwinai fit` accepts as it is, with the best trial's parameters; None for a search
            over a function, or without a trial that has reported.
        interrupted: whether it was interrupted, and can be resumed.
    """

    record: SearchRecord
    best_config: dict[str, Any] | None
    interrupted: bool

    def __repr__(self) -> str:
        found = f"best_value={self.best_value}, best_parameters={self.best_parameters}"
        return f"SearchResult({found}, trials={len(self.record.trials)}, folder={str(self.folder)!r})"

    @property
    def best(self) -> TrialRecord | None:
        """The best trial; with several objectives the first of the Pareto front."""
        ranked = self.record.ranked()
        return ranked[0] if ranked else None

    @property
    def best_parameters(self) -> dict[str, Any]:
        """The parameters of the best trial, by path."""
        return dict(self.best.parameters) if self.best else {}

    @property
    def best_value(self) -> float | None:
        """What the best trial has reached in the first objective."""
        values = self.record.values(self.best) if self.best else None
        return values[0] if values else None

    @property
    def best_checkpoint(self) -> str | None:
        """Path of the best trial's checkpoint."""
        return (self.best.checkpoint or None) if self.best else None

    @property
    def folder(self) -> Path:
        """Where everything is."""
        return Path(self.record.folder)

"""Loggers that write files into a folder of the run: CSV, JSONL."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lightning.pytorch.loggers import CSVLogger

from itwinai.loggers.sinks.base import Sink

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from matplotlib.figure import Figure


class FolderSink(Sink):
    """Files, and figures as PNG, in the folder of the run; a folder of its own for each worker."""

    takes: ClassVar[frozenset[str]] = frozenset({"file", "figure", "rank_metrics"})

    def __init__(self, logger: Logger) -> None:
        super().__init__(logger)
        self.of_ranks: dict[int, Logger] = {}

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        folder = Path(str(self.logger.log_dir))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def file(self, path: Path) -> None:
        if path.resolve().parent != self.folder.resolve():
            shutil.copyfile(path, self.folder / path.name)

    def figure(self, name: str, figure: Figure, step: int) -> None:
        path = self.folder / "figures" / f"{name}-step-{step}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)

    def open_ranks(self, ranks: int) -> None:
        self.of_ranks = {rank: self.rank_logger(rank) for rank in range(ranks)}

    def rank_metrics(self, rank: int, metrics: Mapping[str, float], step: int) -> None:
        self.of_ranks[rank].log_metrics(dict(metrics), step)

    def rank_logger(self, rank: int) -> Logger:
        """Return a logger for the values of one worker."""
        return CSVLogger(self.folder, name="", version=f"rank_{rank}")

    def finish(self, status: str) -> None:
        for logger in self.of_ranks.values():
            logger.finalize(status)
        self.of_ranks = {}

    def place(self) -> str:
        return str(self.folder)

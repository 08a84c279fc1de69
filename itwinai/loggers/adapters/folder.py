"""Loggers that write files into a folder of the run: CSV, JSONL."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lightning.pytorch.loggers import CSVLogger
from typing_extensions import override

from itwinai.loggers.adapters.base import RankedAdapter

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from matplotlib.figure import Figure


class FolderAdapter(RankedAdapter):
    """Files, and figures as PNG, in the folder of the run; a folder of its own for each worker."""

    takes: ClassVar[frozenset[str]] = frozenset({"file", "figure", "rank_metrics"})

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        folder = Path(str(self.logger.log_dir))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @override
    def file(self, path: Path) -> None:
        if path.resolve().parent != self.folder.resolve():
            shutil.copyfile(path, self.folder / path.name)

    @override
    def figure(self, name: str, figure: Figure, step: int) -> None:
        path = self.folder / "figures" / f"{name}-step-{step}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)

    @override
    def rank_logger(self, rank: int) -> Logger:
        return CSVLogger(self.folder, name="", version=f"rank_{rank}")

    @override
    def place(self) -> str:
        return str(self.folder)

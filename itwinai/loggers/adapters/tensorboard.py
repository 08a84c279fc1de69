"""TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from itwinai.loggers.adapters.folder import FolderAdapter

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import Logger
    from matplotlib.figure import Figure

    from itwinai.run_info.run import RunFacts


class TensorBoardAdapter(FolderAdapter):
    """Facts as text, figures as images; a run of its own for each worker, below that of the run."""

    @property
    def _writer(self) -> Any:
        assert isinstance(self.logger, TensorBoardLogger)
        return self.logger.experiment

    @override
    def facts(self, trainer: Trainer, facts: RunFacts) -> None:
        # As hyperparameters they would make a second, different set beside those of the module.
        self._writer.add_text("facts", _code_block(json.dumps(facts.flat(), indent=2, default=str)))

    @override
    def file(self, path: Path) -> None:
        super().file(path)
        if path.suffix in (".yaml", ".yml", ".json", ".txt"):
            self._writer.add_text(path.stem, _code_block(path.read_text()))

    @override
    def figure(self, name: str, figure: Figure, step: int) -> None:
        self._writer.add_figure(name, figure, step, close=False)

    @override
    def rank_logger(self, rank: int) -> Logger:
        return TensorBoardLogger(self.folder, name="", version=f"rank_{rank}", default_hp_metric=False)

    @override
    def place(self) -> str:
        return f"tensorboard --logdir {self.folder.parent}"


def _code_block(text: str) -> str:
    """Return a text that TensorBoard, which takes it for Markdown, shows as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())

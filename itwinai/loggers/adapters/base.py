"""What can be given to any logger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loggers import Logger
    from matplotlib.figure import Figure

    from itwinai.run_info.run import RunFacts


class LoggerAdapter:
    """Logs to one logger what Lightning's interface has no method for. Call all methods on rank 0.

    Args:
        logger: the logger.

    Attributes:
        takes: the names of the methods that do something for this kind of logger, of ``file``, ``figure``, ``model``
            and ``rank_metrics``.
    """

    takes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def facts(self, trainer: Trainer, facts: RunFacts) -> None:
        """Log the facts of a run.

        Args:
            trainer: its trainer.
            facts: the facts.
        """
        self.logger.log_hyperparams(facts.flat())

    def file(self, path: Path) -> None:
        """Keep a file with the run."""

    def hand_over(self, files: Sequence[Path], base: Path, patience: float) -> None:
        """Keep files that the run has written, if the logger keeps files elsewhere than in the folder of the run.

        Args:
            files: the files.
            base: the folder that paths in the logger are relative to.
            patience: most seconds that it may take.

        Raises:
            LoggerError: it has taken longer.
        """

    def figure(self, name: str, figure: Figure, step: int) -> None:
        """Log a figure of matplotlib.

        Args:
            name: what it shows; slashes make groups.
            figure: the figure.
            step: the number of the training step.
        """

    def model(self, module: LightningModule, example: Any) -> None:
        """Keep a trained module with the run.

        Args:
            module: the module, on the CPU.
            example: input of its ``forward``, from which its signature is read; None where there is none.
        """

    def open_ranks(self, ranks: int) -> None:
        """Begin the runs of single workers, within the run.

        Args:
            ranks: their number.
        """

    def rank_metrics(self, rank: int, metrics: Mapping[str, float], step: int) -> None:
        """Log what a single worker has measured, in its own run, after `open_ranks`.

        Args:
            rank: the worker.
            metrics: its values.
            step: the number of the training step.
        """

    def finish(self, status: str) -> None:
        """End the runs of single workers.

        Args:
            status: "success" or "failed".
        """

    def place(self) -> str:
        """Return where the logged values are, or how to view them."""
        return str(self.logger.save_dir or "")


class RankedAdapter(LoggerAdapter):
    """An adapter that gives each worker a logger of its own."""

    def __init__(self, logger: Logger) -> None:
        super().__init__(logger)
        self.of_ranks: dict[int, Logger] = {}

    def rank_logger(self, rank: int) -> Logger:
        """Return a logger for the values of one worker."""
        raise NotImplementedError

    @override
    def open_ranks(self, ranks: int) -> None:
        self.of_ranks = {rank: self.rank_logger(rank) for rank in range(ranks)}

    @override
    def rank_metrics(self, rank: int, metrics: Mapping[str, float], step: int) -> None:
        self.of_ranks[rank].log_metrics(dict(metrics), step)

    @override
    def finish(self, status: str) -> None:
        for logger in self.of_ranks.values():
            logger.finalize(status)
        self.of_ranks = {}

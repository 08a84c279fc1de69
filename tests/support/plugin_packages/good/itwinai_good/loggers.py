"""Two loggers with names."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger


class NotesLogger(CSVLogger):
    """Lightning's CSV logger in a folder of its own."""

    def __init__(self, save_dir: str, name: str = "notes") -> None:
        super().__init__(save_dir, f"{name}-notes")


class BareLogger(Logger):
    """A logger of no kind that itwinai knows."""

    version = 0

    def __init__(self, save_dir: str, name: str = "bare") -> None:
        super().__init__()
        self._save_dir, self._name = save_dir, name

    @property
    def name(self) -> str:
        return self._name

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

"""A logger that keeps nothing, for modules that call methods of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from typing_extensions import override


class _Nothing:
    """Has any attribute, may be called with anything, and is nothing again."""

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):  # as pickle asks for
            raise AttributeError(name)
        return _Nothing()

    def __call__(self, *args: Any, **options: Any) -> _Nothing:
        return self


class SilentLogger(Logger):
    """Takes what is logged, and any call of a method that some logger has, as ``self.logger.experiment.add_image()``.

    Args:
        folder: what is told to those who ask where the logger writes.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    @property
    @override
    def name(self) -> str:
        return "check"

    @property
    @override
    def version(self) -> int:
        return 0

    @property
    @override
    def save_dir(self) -> str:
        return self._folder

    @property
    def experiment(self) -> Any:
        """Something that has all methods, which do nothing."""
        return _Nothing()

    @override
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep nothing."""

    @override
    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        """Keep nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Nothing()

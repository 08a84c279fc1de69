"""A logger with a name."""

from __future__ import annotations

from lightning.pytorch.loggers import CSVLogger


class NotesLogger(CSVLogger):
    """Lightning's CSV logger in a folder of its own."""

    def __init__(self, save_dir: str, name: str = "notes") -> None:
        super().__init__(save_dir, f"{name}-notes")

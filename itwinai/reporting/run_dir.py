"""Where the files of a run go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path:
    """Return the folder of this run: where its first logger writes, or the trainer's ``default_root_dir``.

    All workers have to call it; the folder is rank 0's. It may not exist yet.
    """
    folder = trainer.default_root_dir
    if trainer.is_global_zero and trainer.loggers:
        logger = trainer.loggers[0]
        log_dir = getattr(logger, "log_dir", None)
        if isinstance(log_dir, str):
            folder = log_dir
        else:
            version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
            folder = str(Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version))
    return Path(trainer.strategy.broadcast(folder))

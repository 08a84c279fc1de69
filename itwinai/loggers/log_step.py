"""When values go to the loggers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itwinai.compat import lightning_loops

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def is_log_step(trainer: Trainer) -> bool:
    """Return whether the values of the training step in work go to the loggers, as Lightning decides it."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    due = every != 0 and (log_step(trainer) + 1) % every == 0
    return due or (every != 0 and trainer.should_stop) or bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def log_step(trainer: Trainer) -> int:
    """Return the number that the loggers give to the training step in work."""
    return lightning_loops.stepped_batches(trainer.fit_loop.epoch_loop)

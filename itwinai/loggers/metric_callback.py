"""Callbacks that have values of their own for the loggers, under any training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from itwinai.compat import lightning_loops
from itwinai.loggers.log_step import is_log_step, log_step

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class ReportingCallback(Callback):
    """A callback whose values go to the loggers at log steps.

    Our training loop asks for `values_at_log_step`, and hands them on together with those of the module. Under
    Lightning's own loop this class does it, in ``on_train_batch_end``.
    """

    def values_at_log_step(self, trainer: Trainer, batch: Any) -> dict[str, float]:
        """Return the values.

        Args:
            trainer: the trainer; all workers are asked.
            batch: that of the step.
        """
        raise NotImplementedError

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log under Lightning's own loop, which does not ask for values."""
        if is_log_step(trainer) and not lightning_loops.is_accumulating(trainer):
            values = self.values_at_log_step(trainer, batch)
            for logger in trainer.loggers if values else ():
                logger.log_metrics(values, log_step(trainer))

    def skips_hook(self, hook: str) -> bool:
        """Return whether a hook need not be called: our loop asks for values instead."""
        return hook == "on_train_batch_end"

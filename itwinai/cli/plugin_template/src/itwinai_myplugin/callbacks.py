"""Callbacks that configs and flags know by their names."""

from __future__ import annotations

import lightning as L


class MyPluginLossLimit(L.Callback):
    """End a run whose training loss is above a limit.

    Args:
        limit: the largest loss at the end of an epoch.
    """

    def __init__(self, limit: float = 100.0) -> None:
        self.limit = limit

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare; the logged loss is the same on all workers."""
        if not float(trainer.callback_metrics["train_loss"]) <= self.limit:
            raise RuntimeError(f"the loss is above {self.limit:g}")

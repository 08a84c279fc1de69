"""A small regression whose metrics tell what a trial has done, for tests of trials."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCHES, BATCH = 4, 8


class Regression(L.LightningModule):
    """Fit a line.

    Args:
        lr: learning rate of SGD.
        momentum: of SGD.
        width: of a hidden layer.
        fail_at: epoch in which training raises an error, -1 for none.
        decay: factor on the learning rate after each epoch.
        die_once: a file that does not exist; then the process is killed in epoch 2, and makes it.
        wait_for: a file; epoch 2 begins when it exists.
    """

    def __init__(
        self,
        lr: float = 0.05,
        momentum: float = 0.0,
        width: int = 4,
        fail_at: int = -1,
        decay: float = 0.5,
        die_once: str = "",
        wait_for: str = "",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        # Which trial these weights come from: it is copied with them.
        self.register_buffer("origin", torch.tensor(lr))
        self.net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))

    def on_train_epoch_start(self) -> None:
        """Do what the test has asked for."""
        if self.current_epoch == 2 and self.hparams.die_once and not os.path.exists(self.hparams.die_once):
            Path(self.hparams.die_once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while self.current_epoch == 2 and self.hparams.wait_for and not os.path.exists(self.hparams.wait_for):
            time.sleep(0.02)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        if self.current_epoch == self.hparams.fail_at:
            raise ValueError("as the test wants it")
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]), sync_dist=True)

    def on_train_epoch_end(self) -> None:
        """Log what is known only here."""
        self.log("late", float(self.current_epoch))
        self.log("origin", self.origin)
        self.log("lr", float(self.optimizers().param_groups[0]["lr"]))

    def configure_optimizers(self) -> Any:
        """Return SGD with a schedule."""
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=self.hparams.momentum)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, self.hparams.decay)]


class Points(L.LightningDataModule):
    """Points near a line.

    Args:
        batch_size: of each worker.
    """

    def __init__(self, batch_size: int = BATCH) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Draw the points, the same ones always."""
        draw = torch.Generator().manual_seed(0)
        inputs = torch.randn(BATCHES * BATCH, 3, generator=draw)
        self.points = TensorDataset(inputs, inputs.sum(1, keepdim=True) + 0.1)

    def train_dataloader(self) -> DataLoader:
        """Return the points in random order."""
        return DataLoader(self.points, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the points."""
        return DataLoader(self.points, self.batch_size)

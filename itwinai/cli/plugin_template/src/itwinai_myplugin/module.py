"""The network and how it is trained: an ordinary LightningModule."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor, nn


class MyPluginModule(L.LightningModule):
    """Predict a number from eight.

    Args:
        hidden: size of the hidden layer.
        lr: learning rate of Adam.
    """

    def __init__(self, hidden: int = 32, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(8, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return predictions of shape (batch,) for inputs of shape (batch, 8)."""
        return self.net(inputs).squeeze(-1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        return self._assess("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss of one validation batch."""
        self._assess("val", batch)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the predictions of one batch."""
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr, eps=1e-4)

    def _assess(self, name: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        loss = nn.functional.mse_loss(self(inputs), targets)
        self.log(f"{name}_loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

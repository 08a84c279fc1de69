"""The model that the searches of the benchmark train, as a LightningModule with its data."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.performance import model
from tests.performance.model import Network, make_loader, mse_loss


class Regression(L.LightningModule):
    """The network, with the loss logged as users do.

    Args:
        lr: learning rate.
    """

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        self.lr = lr
        self.network = Network()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        x, y = batch
        loss = mse_loss(self.network(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss."""
        x, y = batch
        self.log("val_loss", mse_loss(self.network(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Batches(L.LightningDataModule):
    """Batches in memory.

    Args:
        length: number of batches of an epoch; a tenth as many, at least one, are for validation.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def train_dataloader(self) -> DataLoader:
        """Return the batches."""
        return make_loader(model.Batches(self.length))

    def val_dataloader(self) -> DataLoader:
        """Return some batches."""
        return make_loader(model.Batches(max(1, self.length // 10)))

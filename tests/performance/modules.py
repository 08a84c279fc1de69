"""Write the training as LightningModules, which lightning and itwinai run unchanged."""

from __future__ import annotations

import time
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.performance.model import Batches, make_loader, make_network, make_optimizer, mse_loss


class Regression(L.LightningModule):
    """The network, and nothing logged.

    Args:
        model: which network.
    """

    def __init__(self, model: str = "mlp") -> None:
        super().__init__()
        self.network = make_network(model)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return mse_loss(self.network(x), y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return mse_loss(self.network(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.network)


class LoggedRegression(Regression):
    """Logs its loss on every step and epoch.

    Args:
        progress_bar: show it in the progress bar as well.
    """

    def __init__(self, progress_bar: bool) -> None:
        super().__init__()
        self.progress_bar = progress_bar

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=self.progress_bar)
        return loss


class MeteredRegression(Regression):
    """Logs several values per epoch, as means over all workers.

    Args:
        metrics: number of values.
    """

    def __init__(self, metrics: int) -> None:
        super().__init__()
        self.names = [f"metric_{index}" for index in range(metrics)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for name in self.names:
            self.log(name, loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss


class StampedRegression(Regression):
    """Writes down when its first training step begins.

    Args:
        stamp: file for the time, by the monotonic clock that all processes of a machine share.
    """

    def __init__(self, stamp: str) -> None:
        super().__init__()
        self.stamp = Path(stamp)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.global_rank == 0 and not self.stamp.exists():
            self.stamp.write_text(repr(time.monotonic()))
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


class BatchData(L.LightningDataModule):
    """Serves a few batches."""

    def train_dataloader(self) -> DataLoader:
        return make_loader(Batches(8))

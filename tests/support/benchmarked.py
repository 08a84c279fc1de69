"""A model for benchmarks that can fail in several ways, and its data."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SAMPLES, BATCH, WIDTH = 96, 16, 12


class Model(L.LightningModule):
    """A regression.

    Args:
        mode: ``ends`` as it should; ``raises`` an error in its fourth step; ``hangs`` there; ``waits`` 10 ms in each
            step.
        width: of its input.
    """

    def __init__(self, mode: str = "ends", width: int = WIDTH) -> None:
        super().__init__()
        self.mode = mode
        self.net = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.mode == "raises" and batch_idx == 3:
            raise ValueError("as the test wants it")
        while self.mode == "hangs" and batch_idx == 3:
            time.sleep(0.1)
        if self.mode == "waits":
            time.sleep(0.01)
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        raise AssertionError("a benchmark measures training")

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        total = int(self.trainer.estimated_stepping_batches)  # of the user's run, and not endless
        # It waits for a value that only the validation logs.
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


class Data(L.LightningDataModule):
    """Points of a linear function.

    Args:
        batch_size: of a batch.
    """

    def __init__(self, batch_size: int = BATCH) -> None:
        super().__init__()
        self.batch_size = batch_size
        generator = torch.Generator().manual_seed(5)
        x = torch.randn(SAMPLES, WIDTH, generator=generator)
        self.points = TensorDataset(x, x.sum(1, keepdim=True))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.points, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.points, self.batch_size)

"""The data: an ordinary LightningDataModule."""

from __future__ import annotations

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


class MyPluginDataModule(L.LightningDataModule):
    """Draw samples, the same each time: eight numbers, and the sine of their sum. Read yours in `setup`.

    Args:
        batch_size: samples of a batch, on each worker.
        samples: samples to train on; a quarter as many validate, and as many are predicted.
    """

    def __init__(self, batch_size: int = 32, samples: int = 512) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        """Make the datasets."""
        self.train, self.val = _draw(self.hparams.samples, seed=0), _draw(self.hparams.samples // 4, seed=1)

    def train_dataloader(self) -> DataLoader:
        """Return the samples to train on, in random order."""
        return DataLoader(self.train, batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the samples to validate on."""
        return DataLoader(self.val, batch_size=self.hparams.batch_size)

    predict_dataloader = val_dataloader


def _draw(samples: int, seed: int) -> TensorDataset:
    inputs = torch.randn(samples, 8, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs.sum(dim=1).sin())

"""Points of a ring of normal distributions, each with noise for the generator, as an ordinary LightningDataModule."""

from __future__ import annotations

import math

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


class RingDataModule(L.LightningDataModule):
    """Draw points, the same each time.

    Args:
        batch_size: points of a batch, on each worker.
        samples: points to train on; 2000 validate.
        modes: number of modes on the ring.
        deviation: standard deviation of each.
        latent: numbers of noise for a point.
    """

    def __init__(
        self, batch_size: int = 256, samples: int = 25600, modes: int = 8, deviation: float = 0.05, latent: int = 4
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        """Draw the points."""
        self.train, self.val = self._draw(self.hparams.samples, seed=0), self._draw(2000, seed=1)

    def train_dataloader(self) -> DataLoader:
        """Return the points to train on, in random order."""
        return DataLoader(self.train, batch_size=self.hparams.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """Return noise that the generator has not seen."""
        return DataLoader(self.val, batch_size=self.hparams.batch_size)

    predict_dataloader = val_dataloader

    def _draw(self, samples: int, seed: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(seed)
        mode = torch.randint(self.hparams.modes, (samples,), generator=generator)
        angle = mode * (2 * math.pi / self.hparams.modes)
        points = torch.stack([angle.cos(), angle.sin()], dim=1)
        points += self.hparams.deviation * torch.randn(samples, 2, generator=generator)
        return TensorDataset(points, torch.randn(samples, self.hparams.latent, generator=generator))

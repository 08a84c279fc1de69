"""The handwritten digits that come with scikit-learn, as an ordinary LightningDataModule."""

from __future__ import annotations

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

# 1797 images in all. The training set is a multiple of 128, so that the last global batch of an epoch is full
# with every usual batch size and number of workers.
TRAIN, VAL, TEST = 1280, 256, 261


class DigitsDataModule(L.LightningDataModule):
    """Serve the 1797 images in three fixed parts.

    Args:
        batch_size: samples per worker and step.
        split_seed: seed of the split into training, validation and test images.
        num_workers: processes that load data, per worker; the images are in memory, so 0 is the fastest.
    """

    def __init__(self, batch_size: int = 64, split_seed: int = 0, num_workers: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        """Read the images and split them."""
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
        dataset = TensorDataset(images, torch.tensor(digits.target))
        generator = torch.Generator().manual_seed(self.hparams.split_seed)
        self.train, self.val, self.test = random_split(dataset, [TRAIN, VAL, TEST], generator=generator)

    def train_dataloader(self) -> DataLoader:
        """Return the training images in random order."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the validation images in their order."""
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader:
        """Return the test images in their order."""
        return self._loader(self.test)

    def _loader(self, dataset: Dataset, shuffle: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.hparams.batch_size,
            shuffle=shuffle,
            num_workers=self.hparams.num_workers,
        )

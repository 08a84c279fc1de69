"""1,797 scanned digits, which come with scikit-learn."""

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Subset, TensorDataset


class DigitsData(L.LightningDataModule):
    """Images of 8x8 pixels and the digits that they show.

    Args:
        batch_size: samples of a batch.
    """

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Read the images, and divide them: 70 % to train, 15 % to validate, 15 % to test."""
        images, digits = load_digits(return_X_y=True)
        pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
        everything = TensorDataset(pixels, torch.tensor(digits))
        order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0)).tolist()
        first, second = int(0.7 * len(order)), int(0.85 * len(order))
        self.train = Subset(everything, order[:first])
        self.val = Subset(everything, order[first:second])
        self.test = Subset(everything, order[second:])

    def train_dataloader(self) -> DataLoader:
        """Return the images to train with."""
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the images to validate with."""
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> DataLoader:
        """Return the images to test with."""
        return DataLoader(self.test, self.batch_size)

    def predict_dataloader(self) -> DataLoader:
        """Return the images whose digits are wanted."""
        return self.test_dataloader()

"""An hourly series with a day, a week and noise in it, in windows. Put your own series in its place."""

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def series(hours: int) -> Tensor:
    """Return the series: replace this function to forecast your own."""
    random = np.random.default_rng(0)
    hour = np.arange(hours)
    day = np.sin(2 * np.pi * hour / 24) + 0.5 * np.sin(4 * np.pi * hour / 24)
    week = 0.7 * np.sin(2 * np.pi * hour / 168)
    drift = 0.05 * np.cumsum(random.normal(size=hours)) * np.exp(-hour / hours)
    values = day + week + drift + 0.2 * random.normal(size=hours)
    return torch.tensor((values - values.mean()) / values.std(), dtype=torch.float32)


class Windows(Dataset):
    """Parts of a series: what is known, and what is to be forecast."""

    def __init__(self, values: Tensor, past: int, horizon: int) -> None:
        self.values, self.past, self.horizon = values, past, horizon

    def __len__(self) -> int:
        return len(self.values) - self.past - self.horizon + 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        now = index + self.past
        return self.values[index:now], self.values[now : now + self.horizon]


class SeriesData(L.LightningDataModule):
    """Windows of a series, divided by time: the first part to train, then to validate, the last to test.

    Args:
        past: number of values that the model sees.
        horizon: number of values that it forecasts; as in the model.
        batch_size: windows of a batch.
        hours: length of the series.
    """

    def __init__(self, past: int = 72, horizon: int = 24, batch_size: int = 64, hours: int = 4000) -> None:
        super().__init__()
        self.past, self.horizon, self.batch_size, self.hours = past, horizon, batch_size, hours

    def setup(self, stage: str) -> None:
        """Make the series, and cut it."""
        values = series(self.hours)
        first, second = int(0.7 * self.hours), int(0.85 * self.hours)
        self.train, self.val, self.test = (
            Windows(part, self.past, self.horizon) for part in (values[:first], values[first:second], values[second:])
        )

    def train_dataloader(self) -> DataLoader:
        """Return the windows to train with."""
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the windows to validate with."""
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> DataLoader:
        """Return the windows to test with."""
        return DataLoader(self.test, self.batch_size)

    def predict_dataloader(self) -> DataLoader:
        """Return the windows to forecast."""
        return self.test_dataloader()

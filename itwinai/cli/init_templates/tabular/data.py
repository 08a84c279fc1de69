"""A table of numbers in a CSV file, of which one column is predicted. Name your own file in config.yaml."""

from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset


def write_example(path: Path) -> None:
    """Write a table of invented houses and their prices."""
    random = np.random.default_rng(0)
    count = 4000
    area = random.uniform(30, 250, count)
    rooms = np.clip(np.round(area / 28 + random.normal(size=count)), 1, None)
    age = random.uniform(0, 100, count)
    floor = random.integers(0, 10, count)
    distance = random.gamma(2.0, 4.0, count)
    energy = np.clip(40 + 1.5 * age + random.normal(scale=30, size=count), 10, None)
    price = 3.2 * area * np.exp(-distance / 15) + 8 * rooms - 0.4 * energy + 2 * floor
    price = 100 + price + random.normal(scale=15, size=count)
    columns = np.column_stack([area, rooms, age, floor, distance, energy, price])
    header = "area,rooms,age,floor,distance,energy,price"
    np.savetxt(path, columns, fmt="%.2f", delimiter=",", header=header, comments="")


class TableData(L.LightningDataModule):
    """Rows of a CSV file, each column scaled to mean 0 and standard deviation 1.

    Args:
        path: of the file; its first line has the names. If there is no file, one with an example is written.
        target: name of the column to predict.
        batch_size: rows of a batch.
    """

    def __init__(self, path: str = "houses.csv", target: str = "price", batch_size: int = 64) -> None:
        super().__init__()
        self.path, self.target, self.batch_size = Path(path), target, batch_size

    def prepare_data(self) -> None:
        """Write the example, on one worker."""
        if not self.path.exists():
            write_example(self.path)

    def setup(self, stage: str) -> None:
        """Read the rows, and divide them: 70 % to train, 15 % to validate, 15 % to test."""
        names = self.path.read_text().partition("\n")[0].strip().split(",")
        table = np.loadtxt(self.path, delimiter=",", skiprows=1)
        order = np.random.default_rng(0).permutation(len(table))
        first, second = int(0.7 * len(order)), int(0.85 * len(order))
        known = table[order[:first]]  # the others are not known yet
        scaled = torch.tensor((table - known.mean(axis=0)) / known.std(axis=0), dtype=torch.float32)
        column = names.index(self.target)
        inputs = [number for number in range(len(names)) if number != column]
        self.train, self.val, self.test = (
            TensorDataset(scaled[rows][:, inputs], scaled[rows, column])
            for rows in (order[:first], order[first:second], order[second:])
        )

    def train_dataloader(self) -> DataLoader:
        """Return the rows to train with."""
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the rows to validate with."""
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> DataLoader:
        """Return the rows to test with."""
        return DataLoader(self.test, self.batch_size)

    def predict_dataloader(self) -> DataLoader:
        """Return the rows to predict."""
        return self.test_dataloader()

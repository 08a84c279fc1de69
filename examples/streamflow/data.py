"""Windows of the records of many basins, as an ordinary LightningDataModule."""

from __future__ import annotations

import lightning as L
import numpy as np
import torch
from basins import YEAR, Basins, generate_basins
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

TRAIN_YEARS, VAL_YEARS, TEST_YEARS = 8, 2, 2  # one after the other, as a forecast would see them
Sample = tuple[Tensor, Tensor, Tensor, Tensor]


class Windows(Dataset[Sample]):
    """Windows of days.

    A sample holds the inputs of all days, shape (days, 12): rain and snow, temperature, potential evaporation and the
    attributes of the basin, all standardised; the discharge of the days after the warm-up, in mm per day; mean and
    standard deviation of the root of the basin's discharge in the training years; and the number of the basin.

    Args:
        basins: all records.
        starts: first day of each window; every basin has all of them.
        days: length of a window.
        warm_up: number of its first days that are only to tell the state of the basin.
    """

    def __init__(self, basins: Basins, starts: range, days: int, warm_up: int) -> None:
        train_days = TRAIN_YEARS * YEAR
        weather = basins.weather
        # Roots, of rain and of discharge: the few floods would otherwise be most of what there is to see.
        inputs = np.stack([np.sqrt(weather.precipitation), weather.temperature, weather.evaporation], axis=2)
        known = inputs[:train_days]
        inputs = (inputs - known.mean(axis=(0, 1))) / known.std(axis=(0, 1))
        attributes = (basins.attributes - 0.5) * np.sqrt(12)  # they are spread evenly from 0 to 1
        root = np.sqrt(basins.discharge[:train_days])
        scale = np.stack([root.mean(axis=0), root.std(axis=0)], axis=1)
        self.inputs, self.attributes = _tensor(inputs.swapaxes(0, 1)), _tensor(attributes)
        self.discharge, self.scale = _tensor(basins.discharge.T), _tensor(scale)
        self.starts, self.days, self.warm_up = starts, days, warm_up

    def __len__(self) -> int:
        return len(self.inputs) * len(self.starts)

    def __getitem__(self, index: int) -> Sample:
        basin, number = divmod(index, len(self.starts))
        start = self.starts[number]
        end = start + self.days
        attributes = self.attributes[basin].expand(self.days, -1)
        inputs = torch.cat([self.inputs[basin, start:end], attributes], dim=1)
        return inputs, self.discharge[basin, start + self.warm_up : end], self.scale[basin], torch.tensor(basin)


class StreamflowDataModule(L.LightningDataModule):
    """Generate the basins, and serve windows of their records.

    Args:
        batch_size: windows per worker and step.
        basins: number of basins; the model has to know it, too.
        days: length of a window: a year, as the snow of last winter is the water of this spring.
        warm_up: number of its first days whose discharge is not to be predicted.
        windows: per basin and epoch, for training; they overlap.
        seed: of basins and weather.
        num_workers: processes that load data, per worker; the records are in memory, so 0 is the fastest.
    """

    def __init__(
        self,
        batch_size: int = 32,
        basins: int = 64,
        days: int = 365,
        warm_up: int = 185,
        windows: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        """Generate the records, and cut them into windows; takes less than a second."""
        options = self.hparams
        basins = generate_basins(options.basins, TRAIN_YEARS + VAL_YEARS + TEST_YEARS, options.seed)
        last = TRAIN_YEARS * YEAR - options.days
        train_starts = range(0, last + 1, max(1, last // max(1, options.windows - 1)))[: options.windows]
        self.train = Windows(basins, train_starts, options.days, options.warm_up)
        self.val = Windows(basins, self._tiles(TRAIN_YEARS, VAL_YEARS), options.days, options.warm_up)
        self.test = Windows(basins, self._tiles(TRAIN_YEARS + VAL_YEARS, TEST_YEARS), options.days, options.warm_up)

    def train_dataloader(self) -> DataLoader:
        """Return the training windows in random order."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return windows that predict each day of the validation years once."""
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader:
        """Return windows that predict each day of the test years once."""
        return self._loader(self.test)

    def _tiles(self, first_year: int, years: int) -> range:
        """Return starts of windows whose predicted days lie side by side; the warm-up reaches into the years before."""
        days, warm_up = self.hparams.days, self.hparams.warm_up
        first, end = first_year * YEAR - warm_up, (first_year + years) * YEAR
        return range(first, end - days + 1, days - warm_up)

    def _loader(self, dataset: Windows, shuffle: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.hparams.batch_size,
            shuffle=shuffle,
            num_workers=self.hparams.num_workers,
        )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(array, dtype=torch.float32)

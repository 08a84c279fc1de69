"""Gridded stores as an ordinary LightningDataModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from itwinai.errors import ConfigurationError
from itwinai_drought.data.dataset import CellWindows, share_cache
from itwinai_drought.data.samplers import CellWindowSampler
from itwinai_drought.data.splits import PARTS, Period, split_cells, split_days
from itwinai_drought.data.statistics import Statistics, training_statistics
from itwinai_drought.data.store import GridStore
from itwinai_drought.data.windows import Windows


class DroughtDataModule(L.LightningDataModule):
    """Serve windows of days of the cells of a grid, read from Zarr or NetCDF when they are needed.

    Training, validation and test have neither cells nor days in common, with the days of the warm-up. Prediction covers
    all cells and the whole time, or ``predict_period``.

    Args:
        store: path of a Zarr store or NetCDF file, or several with the same grid, such as forcings, maps and targets.
        forcings: variables of shape (time, lat, lon) that are known.
        statics: variables of shape (lat, lon).
        targets: variables of shape (time, lat, lon) to predict. The model has to know all three, too.
        masks: maps that are not 0 in cells without data; those that the store does not have are ignored, except the
            first. Cells whose static maps have missing values are left out as well.
        names: what variables are called in the store; Hython's short names and Wflow's standard names are known.
        select: index along further dimensions, such as ``{"layer": 0}``.
        periods: first and last day of ``train``, ``val`` and ``test``. None divides the time axis 60:20:20.
        predict_period: first and last day of the prediction, with its warm-up; None for the whole time axis.
        held_out_cells: part of the blocks of cells for ``val`` and ``test``.
        block: side of the blocks of cells that are held out together, in cells.
        buffer: width of the border around held-out blocks that is not trained on, in cells.
        days: length of a window.
        warm_up: its first days, which are to tell the state of the cell: soil, snow and groundwater.
        stride: days between the starts of two training windows.
        cell_fraction: part of the training cells in an epoch.
        window_fraction: part of the training windows of each of them in an epoch.
        mixed: blocks that are mixed in training; see `CellWindowSampler`.
        batch_size: windows per worker and step.
        num_workers: processes that load data, per worker. With a store that fits into ``cache_mb``, 0 is the fastest.
        cache_mb: memory for blocks of the store on each node, in MB; the node's workers and their loader processes
            divide it among them.
        statistics_blocks: most blocks of each variable that means and standard deviations are computed from.
        seed: of the split of cells and of the sampler.
    """

    def __init__(
        self,
        store: str | list[str],
        forcings: Sequence[str] = ("precip", "pet", "temp"),
        statics: Sequence[str] = ("thetaS", "thetaR", "KsatVer", "c"),
        targets: Sequence[str] = ("vwc", "actevap", "q"),
        masks: Sequence[str] = ("mask_missing",),
        names: Mapping[str, str] | None = None,
        select: Mapping[str, int] | None = None,
        periods: Mapping[str, Sequence[str]] | None = None,
        predict_period: Sequence[str] | None = None,
        held_out_cells: Mapping[str, float] | None = None,
        block: int = 4,
        buffer: int = 1,
        days: int = 365,
        warm_up: int = 180,
        stride: int = 1,
        cell_fraction: float = 1.0,
        window_fraction: float = 1.0,
        mixed: int = 64,
        batch_size: int = 128,
        num_workers: int = 0,
        cache_mb: float = 512.0,
        statistics_blocks: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._parts: dict[str, CellWindows] = {}

    @property
    def options(self) -> Any:
        """The arguments, by name."""
        return self.hparams

    def setup(self, stage: str) -> None:
        """Open the store, and split it; the statistics are computed for training only."""
        options = self.options
        workers = self.trainer.num_devices if self.trainer else 1
        self.store = GridStore(options.store, options.names, options.select, options.cache_mb / workers)
        self.valid = self._valid_cells()
        self.periods = split_days(self.store.times, options.periods or _default_periods(self.store.times))
        if missing := set(PARTS) - set(self.periods):
            raise ConfigurationError(f"periods has no {', '.join(sorted(missing))}; name first and last day of each.")
        fractions = {"val": 0.15, "test": 0.2} if options.held_out_cells is None else options.held_out_cells
        self.cells = split_cells(self.valid, fractions, options.block, options.buffer, options.seed)
        self._parts = {}
        if stage == "fit":
            self.statistics = self._statistics()

    def part(self, cells: str | NDArray[np.int64], period: str | Period) -> CellWindows:
        """Return tiles of a period in some cells: each of its days after the first warm-up is predicted once.

        Args:
            cells: ``train``, ``val`` or ``test``, or numbers of cells.
            period: the same of periods, or a period.
        """
        options = self.options
        numbers = self.cells[cells] if isinstance(cells, str) else cells
        days = self.periods[period] if isinstance(period, str) else period
        windows = Windows(days, options.days, options.warm_up, options.days - options.warm_up)
        return CellWindows(self.store, numbers, windows, options.forcings, options.statics, options.targets, once=True)

    def train_dataloader(self) -> DataLoader:
        """Return windows of the training cells and days, in random order."""
        options = self.options
        windows = Windows(self.periods["train"], options.days, options.warm_up, options.stride)
        dataset = CellWindows(
            self.store, self.cells["train"], windows, options.forcings, options.statics, options.targets
        )
        sampler = CellWindowSampler(
            dataset, options.cell_fraction, options.window_fraction, options.mixed, options.seed
        )
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> DataLoader:
        """Return each validation day of each validation cell once."""
        return self._loader(self.part("val", "val"))

    def test_dataloader(self) -> DataLoader:
        """Return each test day of each test cell once."""
        return self._loader(self.part("test", "test"))

    def predict_dataloader(self) -> DataLoader:
        """Return all cells with data, over the whole time or ``predict_period``; without targets."""
        options = self.options
        period = Period(0, len(self.store.times))
        if options.predict_period is not None:
            period = split_days(self.store.times, {"predict": options.predict_period})["predict"]
        windows = Windows(period, options.days, options.warm_up, options.days - options.warm_up)
        return self._loader(
            CellWindows(self.store, np.flatnonzero(self.valid), windows, options.forcings, options.statics, ())
        )

    def _valid_cells(self) -> NDArray[np.bool_]:
        options = self.options
        valid = np.ones(self.store.grid, dtype=bool)
        for number, name in enumerate(options.masks):
            if number == 0 or name in self.store.dataset:
                values = self.store.read_map(name)
                valid &= np.isfinite(values) & (values == 0)
        for name in options.statics:
            valid &= np.isfinite(self.store.read_map(name))
        if not valid.any():
            raise ConfigurationError(
                f"No cell has data: {', '.join(options.masks)} or a static map leaves every cell out. Masks have to be "
                "0 where there is data."
            )
        return valid

    def _statistics(self) -> Statistics:
        options = self.options
        return training_statistics(
            self.store,
            options.forcings,
            options.statics,
            options.targets,
            self.cells["train"],
            self.periods["train"],
            blocks=options.statistics_blocks,
            seed=options.seed,
        )

    def _loader(self, dataset: CellWindows, sampler: CellWindowSampler | None = None) -> DataLoader:
        workers = self.options.num_workers
        return DataLoader(
            dataset,
            batch_size=self.options.batch_size,
            sampler=sampler,
            num_workers=workers,
            worker_init_fn=share_cache if workers else None,
            persistent_workers=workers > 0,
        )


def _default_periods(times: NDArray[np.datetime64]) -> dict[str, tuple[str, str]]:
    days = times.astype("M8[D]").astype(str)
    first, second = int(0.6 * len(days)), int(0.8 * len(days))
    return {
        "train": (days[0], days[first - 1]),
        "val": (days[first], days[second - 1]),
        "test": (days[second], days[-1]),
    }

"""Samples of a cell and a window of days, read when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from itwinai_drought.data.store import GridStore
from itwinai_drought.data.windows import Windows

Sample = dict[str, Tensor]


class CellWindows(Dataset[Sample]):
    """All windows of all cells; sample ``i`` is window ``i % windows`` of cell ``i // windows``.

    A sample holds, in the units of the store:

    - ``forcings``: shape (days, forcings); missing values are NaN.
    - ``statics``: shape (statics,).
    - ``targets``: shape (days after the warm-up, targets); NaN where there is nothing to compare with.
    - ``warm_up``: how many of the days are warm-up.
    - ``cell``: number of the cell, counted by rows.
    - ``day``: index of the first predicted day in the store's time axis.

    Args:
        store: where they are read from.
        cells: numbers of the cells.
        windows: of each cell.
        forcings: names of the variables over time that are known.
        statics: names of the maps.
        targets: names of the variables over time to predict; none for prediction.
        once: whether days that the window before has predicted are NaN among the targets, so that metrics count each
            day once. Right for windows that are tiles.
    """

    def __init__(
        self,
        store: GridStore,
        cells: NDArray[np.int64],
        windows: Windows,
        forcings: Sequence[str],
        statics: Sequence[str],
        targets: Sequence[str],
        *,
        once: bool = False,
    ) -> None:
        self.store, self.cells, self.windows, self.once = store, cells, windows, once
        self.forcings, self.statics, self.targets = list(forcings), list(statics), list(targets)
        maps = [store.read_map(name).reshape(-1)[cells] for name in statics]
        self._maps = np.stack(maps, axis=1) if maps else np.empty((len(cells), 0), np.float32)

    def __len__(self) -> int:
        return len(self.cells) * len(self.windows)

    def __getitem__(self, index: int) -> Sample:
        place, number = divmod(index, len(self.windows))
        cell, start = int(self.cells[place]), self.windows.start(number)
        stop, first = start + self.windows.length, start + self.windows.warm_up
        read = self.store.read
        targets = [read(name, first, stop, cell) for name in self.targets]
        sample = {
            "forcings": _columns([read(name, start, stop, cell) for name in self.forcings]),
            "statics": torch.from_numpy(self._maps[place]),
            "warm_up": torch.tensor(self.windows.warm_up),
            "cell": torch.tensor(cell),
            "day": torch.tensor(first),
        }
        if targets:
            sample["targets"] = _columns(targets)
            if self.once:
                sample["targets"][: self.windows.repeated(number)] = torch.nan
        return sample

    @property
    def coordinates(self) -> Mapping[str, NDArray]:
        """Where and when each sample's prediction is: ``cell``, ``lat``, ``lon`` and the first predicted ``day``.

        `PredictionWriter` writes them beside the predictions.
        """
        dataset = self.store.dataset
        rows, columns = np.divmod(self.cells, self.store.grid[1])
        each = len(self.windows)
        starts = np.array([self.windows.start(number) for number in range(each)]) + self.windows.warm_up
        return {
            "cell": np.repeat(self.cells, each),
            "lat": np.repeat(dataset["lat"].values[rows], each),
            "lon": np.repeat(dataset["lon"].values[columns], each),
            "day": np.tile(self.store.times[starts].astype("M8[D]").astype(np.int64), len(self.cells)),
        }


def share_cache(worker_id: int) -> None:
    """Give a process of a DataLoader its part of the memory for blocks; a ``worker_init_fn``."""
    worker = get_worker_info()
    assert worker is not None
    assert isinstance(worker.dataset, CellWindows)
    worker.dataset.store.cache_mb /= worker.num_workers


def _columns(series: Sequence[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.stack(series, axis=1))

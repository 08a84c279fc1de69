"""`measure_speed`: cells and days per second of the surrogate and of the model that it replaces, on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from itwinai_drought.model import DroughtLSTM
from itwinai_drought.simulation.grid import Block, Grid
from itwinai_drought.simulation.hydrology import HydrologicalModel
from itwinai_drought.simulation.landscape import Landscape
from itwinai_drought.simulation.weather import WeatherGenerator

SIZES = (1, 16, 64, 256, 1024, 4096)

_BATCH = 64  # cells that the LSTM computes at once: its states stay in the processor's cache


@dataclass(frozen=True)
class Speed:
    """How long a year takes.

    Attributes:
        cells: number of cells that are computed together.
        model: seconds that the hydrological model takes.
        surrogate: seconds that the LSTM takes.
    """

    cells: int
    model: float
    surrogate: float

    @property
    def ratio(self) -> float:
        """How many times faster the surrogate is."""
        return self.model / self.surrogate


def measure_speed(module: DroughtLSTM, sizes: Sequence[int] = SIZES, days: int = 365, repeats: int = 3) -> list[Speed]:
    """Time both on the same weather, each on one thread, and take the fastest of some repeats.

    Args:
        module: the surrogate.
        sizes: numbers of cells.
        days: length of the series.
        repeats: of each measurement.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_measure(module.eval(), cells, days, repeats) for cells in sizes]
    finally:
        torch.set_num_threads(threads)


def _measure(module: DroughtLSTM, cells: int, days: int, repeats: int) -> Speed:
    grid = Grid(1, cells)
    block = Block(slice(0, 1), slice(0, cells))
    maps = Landscape(grid, 0).maps(block)
    dates = pd.date_range("2001-01-01", periods=days)
    (weather,) = WeatherGenerator(grid, 0).segments(block, maps, dates, days)
    model = HydrologicalModel(maps)
    forcings = torch.from_numpy(np.stack([getattr(weather, name) for name in module.options.forcings], axis=2))
    forcings = forcings.float().transpose(0, 1).contiguous()
    statics = torch.zeros(cells, len(module.options.statics))

    def surrogate() -> None:
        with torch.inference_mode():
            for part, of_part in zip(forcings.split(_BATCH), statics.split(_BATCH), strict=True):
                module(part, of_part)

    return Speed(cells, _fastest(lambda: model.run(weather, model.start()), repeats), _fastest(surrogate, repeats))


def _fastest(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)

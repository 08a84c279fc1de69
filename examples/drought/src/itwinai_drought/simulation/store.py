"""`write_store`: an invented region's weather, maps and water as a Zarr store, written block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import zarr

from itwinai_drought.simulation.grid import Block, Grid
from itwinai_drought.simulation.hydrology import SUBSTEPS, HydrologicalModel
from itwinai_drought.simulation.landscape import Landscape, Maps
from itwinai_drought.simulation.weather import Weather, WeatherGenerator
from itwinai_drought.zarr_output import GridWriter, new_store

_CELLS = 4096  # of a block: many enough for numpy to be fast, few enough for memory

DYNAMIC: dict[str, tuple[str, str]] = {
    "precip": ("mm/day", "precipitation"),
    "pet": ("mm/day", "potential evaporation"),
    "temp": ("degC", "air temperature"),
    "vwc": ("m3/m3", "volumetric water content of the root zone"),
    "actevap": ("mm/day", "actual evaporation"),
    "q": ("mm/day", "runoff"),
}
"""Variables with a time, in the order of forcings and targets: units and long name."""

STATIC: dict[str, tuple[str, str, str]] = {
    "elevation": ("elevation", "m", "elevation"),
    "Slope": ("slope", "m/m", "slope"),
    "thetaS": ("theta_s", "m3/m3", "water content of saturated soil"),
    "thetaR": ("theta_r", "m3/m3", "residual water content"),
    "KsatVer": ("k_sat", "mm/day", "vertical hydraulic conductivity of saturated soil at the surface"),
    "c": ("c", "1", "Brooks-Corey exponent of the conductivity of unsaturated soil"),
    "RootingDepth": ("rooting_depth", "mm", "thickness of the root zone"),
    "SoilThickness": ("soil_thickness", "mm", "thickness of the soil"),
}
"""Maps: attribute of `Maps`, units and long name."""


@dataclass(frozen=True)
class Region:
    """What is simulated.

    Attributes:
        grid: the cells.
        start: first day, as ISO date.
        years: length of the record.
        seed: of everything that is drawn.
        spin_up: years before the first day that the model has to forget its initial state in.
        chunks: length of the store's chunks along time, latitude and longitude.
    """

    grid: Grid
    start: str = "1990-01-01"
    years: int = 20
    seed: int = 0
    spin_up: int = 2
    chunks: tuple[int, int, int] = (365, 20, 20)

    @property
    def time(self) -> pd.DatetimeIndex:
        """Days of the record."""
        first = pd.Timestamp(self.start)
        return pd.date_range(first, first + pd.DateOffset(years=self.years), freq="D", inclusive="left")

    @property
    def spin_up_time(self) -> pd.DatetimeIndex:
        """Days before those of the record."""
        first = pd.Timestamp(self.start)
        return pd.date_range(first - pd.DateOffset(years=self.spin_up), first, freq="D", inclusive="left")


def write_store(
    path: Path, region: Region, *, overwrite: bool = False, progress: Callable[[int, int], None] | None = None
) -> float:
    """Simulate a region and write it to a Zarr store (format 3, as xarray reads it).

    Forcings are rounded to the store's float32 before the model sees them, so that the model, given what the store
    holds, computes what the store holds. The store appears when it is complete. Memory depends on the length of the
    chunks, not on the size of the region or the number of years.

    Args:
        path: of the store, a folder.
        region: what to simulate.
        overwrite: replace a store that exists.
        progress: is called after each block with the number of cells that are done, and of all.

    Returns:
        The largest error of the water balance of any cell over the whole record, in mm.

    Raises:
        ConfigurationError: the store exists.
    """
    grid = region.grid
    with new_store(path, overwrite=overwrite) as root:
        writer = GridWriter(root, grid.lat, grid.lon, region.time.to_numpy(), region.chunks)
        arrays = {name: writer.series(name, _attributes(*about)) for name, about in DYNAMIC.items()}
        arrays |= {name: writer.map(name, _attributes(*about)) for name, (_, *about) in STATIC.items()}
        meaning = {"long_name": "no data", "flag_values": [0, 1], "flag_meanings": "land lake"}
        arrays["mask_missing"] = writer.map("mask_missing", meaning, dtype="int8")

        landscape, weather = Landscape(grid, region.seed), WeatherGenerator(grid, region.seed)
        worst, done, total = 0.0, 0, grid.rows * grid.columns
        for block in grid.blocks(region.chunks[1:], _CELLS):
            maps = landscape.maps(block)
            _write_maps(arrays, block, maps)
            worst = max(worst, _write_days(arrays, block, maps, weather, region))
            done += block.shape[0] * block.shape[1]
            if progress is not None:
                progress(done, total)
        root.attrs.update(
            {
                "Conventions": "CF-1.11",
                "title": "Simulated weather and water of an invented region",
                "source": "itwinai-drought: stochastic weather generator, and a conceptual model after HBV and SBM",
                "seed": region.seed,
                "spin_up_years": region.spin_up,
                "substeps_per_day": SUBSTEPS,
                "water_balance_error_mm": worst,
            }
        )
    return worst


def _attributes(units: str, long_name: str) -> dict[str, str]:
    return {"units": units, "long_name": long_name}


def _write_maps(arrays: Mapping[str, zarr.Array], block: Block, maps: Maps) -> None:
    for name, (attribute, _, _) in STATIC.items():
        values = getattr(maps, attribute).astype(np.float32)
        arrays[name][block.rows, block.columns] = np.where(maps.lake, np.nan, values).reshape(block.shape)
    arrays["mask_missing"][block.rows, block.columns] = maps.lake.astype(np.int8).reshape(block.shape)


def _write_days(
    arrays: Mapping[str, zarr.Array], block: Block, maps: Maps, generator: WeatherGenerator, region: Region
) -> float:
    """Simulate and write all days of a block; return the largest error of the water balance, in mm."""
    model = HydrologicalModel(maps)
    state = model.start()
    spin_up, record = region.spin_up_time, region.time
    days = region.chunks[0]
    balance, before, first = np.zeros(len(maps.lake)), state.total(), -len(spin_up)
    # The spin-up is cut to segments such that those of the record begin where chunks do.
    for weather in generator.segments(block, maps, spin_up.append(record), days, first=len(spin_up) % days):
        weather = Weather(*(one.astype(np.float32).astype(np.float64) for one in vars(weather).values()))
        water = model.run(weather, state)
        length = len(weather.precip)
        balance += (weather.precip - water.actevap - water.q).sum(axis=0)
        if first >= 0:
            for name, values in {**vars(weather), **vars(water)}.items():
                masked = np.where(maps.lake, np.nan, values).astype(np.float32)
                arrays[name][first : first + length, block.rows, block.columns] = masked.reshape(length, *block.shape)
        first += length
    return float(np.abs(balance - (state.total() - before)).max())

"""`write_store`: an invented region's weather, maps and water as a Zarr store, written block by block."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from itwinai.errors import ConfigurationError
from itwinai.io.atomic import part_name
from itwinai_drought.simulation.grid import Block, Grid
from itwinai_drought.simulation.hydrology import SUBSTEPS, HydrologicalModel
from itwinai_drought.simulation.landscape import Landscape, Maps
from itwinai_drought.simulation.weather import Weather, WeatherGenerator

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
    if path.exists() and not overwrite:
        raise ConfigurationError(f"{path} exists. Give another name, delete it, or pass --overwrite.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(part_name(path.name))
    try:
        error = _write(part, region, progress)
        if path.exists():
            shutil.rmtree(path)
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return error


def _write(path: Path, region: Region, progress: Callable[[int, int], None] | None) -> float:
    grid = region.grid
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs.update(
        {
            "Conventions": "CF-1.11",
            "title": "Simulated weather and water of an invented region",
            "source": "itwinai-drought: stochastic weather generator and a conceptual model after HBV and SBM",
            "seed": region.seed,
            "spin_up_years": region.spin_up,
            "substeps_per_day": SUBSTEPS,
            **{name: value for name, value in asdict(grid).items() if name in ("south", "west", "spacing")},
        }
    )
    arrays = _create_arrays(root, region)
    landscape, weather = Landscape(grid, region.seed), WeatherGenerator(grid, region.seed)
    worst, done, total = 0.0, 0, grid.rows * grid.columns
    for block in grid.blocks(region.chunks[1:], _CELLS):
        maps = landscape.maps(block)
        _write_maps(arrays, block, maps)
        worst = max(worst, _write_days(arrays, block, maps, weather, region))
        done += block.shape[0] * block.shape[1]
        if progress is not None:
            progress(done, total)
    root.attrs["water_balance_error_mm"] = worst
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other implementations may not read it: they read the rest
        zarr.consolidate_metadata(root.store)
    return worst


def _create_arrays(root: zarr.Group, region: Region) -> dict[str, zarr.Array]:
    grid, time = region.grid, region.time
    days, rows, columns = region.chunks
    _coordinate(root, "lat", grid.lat, {"units": "degrees_north", "standard_name": "latitude"})
    _coordinate(root, "lon", grid.lon, {"units": "degrees_east", "standard_name": "longitude"})
    since = {"units": f"days since {time[0]:%Y-%m-%d}", "calendar": "proleptic_gregorian", "standard_name": "time"}
    _coordinate(root, "time", np.arange(len(time)), since)

    space = {
        "shape": (grid.rows, grid.columns),
        "chunks": (min(rows, grid.rows), min(columns, grid.columns)),
        "dimension_names": ("lat", "lon"),
    }
    arrays = {}
    for name, (units, long_name) in DYNAMIC.items():
        arrays[name] = root.create_array(
            name,
            shape=(len(time), *space["shape"]),
            chunks=(min(days, len(time)), *space["chunks"]),
            dtype="float32",
            fill_value=np.nan,
            dimension_names=("time", "lat", "lon"),
            attributes={"units": units, "long_name": long_name},
        )
    for name, (_, units, long_name) in STATIC.items():
        attributes = {"units": units, "long_name": long_name}
        arrays[name] = root.create_array(name, dtype="float32", fill_value=np.nan, attributes=attributes, **space)
    meaning = {"long_name": "no data", "flag_values": [0, 1], "flag_meanings": "land lake"}
    arrays["mask_missing"] = root.create_array("mask_missing", dtype="int8", fill_value=0, attributes=meaning, **space)
    return arrays


def _coordinate(root: zarr.Group, name: str, values: NDArray[Any], attributes: dict[str, Any]) -> None:
    array = root.create_array(
        name, shape=values.shape, dtype=values.dtype, dimension_names=(name,), attributes=attributes
    )
    array[:] = values


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

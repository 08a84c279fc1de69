"""A small store whose every value is known: two years of cells whose soil is one linear reservoir."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

DAYS, ROWS, COLUMNS = 730, 8, 12
STATICS = ["thetaS", "thetaR", "KsatVer", "c"]


def make_dataset(days: int = DAYS, rows: int = ROWS, columns: int = COLUMNS) -> xr.Dataset:
    """Return forcings, maps and targets: the soil is one linear reservoir, whose size is a map."""
    random = np.random.default_rng(0)
    time = pd.date_range("2001-01-01", periods=days)
    shape = (days, rows, columns)
    season = np.cos(2 * np.pi * (time.dayofyear.to_numpy() - 200) / 365.25)[:, None, None]
    precip = random.gamma(0.3, 10.0, shape)
    temp = 10 + 10 * season + random.normal(0, 2, shape)
    pet = np.clip(2 + 2 * season + random.normal(0, 0.3, shape), 0, None)
    size = random.uniform(100, 300, (rows, columns))
    water, vwc, actevap, q = size / 2, np.empty(shape), np.empty(shape), np.empty(shape)
    for day in range(days):
        actevap[day] = np.minimum(pet[day], water) * np.clip(water / size, 0, 1)
        q[day] = 0.02 * water
        water = np.clip(water + precip[day] - actevap[day] - q[day], 0, None)
        vwc[day] = water / 1000
    maps = {name: random.normal(size=(rows, columns)) for name in STATICS[1:]} | {"thetaS": size / 1000}
    mask = np.zeros((rows, columns), np.int8)
    mask[0, 0] = mask[5, 7] = 1
    moving = {"precip": precip, "pet": pet, "temp": temp, "vwc": vwc, "actevap": actevap, "q": q}
    dataset = xr.Dataset(
        {name: (("time", "lat", "lon"), values.astype(np.float32)) for name, values in moving.items()}
        | {name: (("lat", "lon"), values.astype(np.float32)) for name, values in maps.items()},
        coords={"time": time, "lat": 46 + 0.1 * np.arange(rows), "lon": 11 + 0.1 * np.arange(columns)},
    ).where(mask == 0)
    return dataset.assign(mask_missing=(("lat", "lon"), mask))


def write(dataset: xr.Dataset, path: Path, chunks: tuple[int, int, int] = (100, 4, 4)) -> str:
    """Write a dataset in chunks of so many days, rows and columns."""
    moving = [name for name in dataset.data_vars if "time" in dataset[name].dims]
    if path.suffix == ".nc":
        sizes = dict(zip(("time", "lat", "lon"), chunks, strict=True))
        encoding = {name: {"chunksizes": tuple(sizes[dim] for dim in dataset[name].dims)} for name in moving}
        dataset.to_netcdf(path, engine="h5netcdf", encoding=encoding)
    else:
        dataset.to_zarr(path, encoding={name: {"chunks": chunks} for name in moving}, consolidated=False)
    return str(path)

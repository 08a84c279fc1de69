"""`new_store`: a Zarr store on a grid that appears when it is complete."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from itwinai.errors import ConfigurationError
from itwinai.io.atomic import part_name


class GridWriter:
    """An open Zarr group whose arrays have the dimensions time, lat and lon, as xarray reads them.

    Args:
        root: the group.
        lat: latitude of each row of cells.
        lon: longitude of each column of cells.
        time: days, or the first day of each month.
        chunks: length of chunks along time, lat and lon.
    """

    def __init__(
        self,
        root: zarr.Group,
        lat: NDArray[np.floating[Any]],
        lon: NDArray[np.floating[Any]],
        time: NDArray[np.datetime64],
        chunks: tuple[int, int, int],
    ) -> None:
        self.root = root
        self._shape = (len(time), len(lat), len(lon))
        self._chunks = tuple(max(1, min(pair)) for pair in zip(chunks, self._shape, strict=True))
        days = time.astype("M8[D]")
        since = {"units": f"days since {days[0]}", "calendar": "proleptic_gregorian", "standard_name": "time"}
        self._coordinate("time", (days - days[0]).astype(np.int64), since)
        self._coordinate("lat", lat, {"units": "degrees_north", "standard_name": "latitude"})
        self._coordinate("lon", lon, {"units": "degrees_east", "standard_name": "longitude"})

    def _coordinate(self, name: str, values: NDArray[Any], attributes: Mapping[str, Any]) -> None:
        array = self.root.create_array(
            name, shape=values.shape, dtype=values.dtype, dimension_names=(name,), attributes=dict(attributes)
        )
        array[:] = values

    def series(self, name: str, attributes: Mapping[str, Any]) -> zarr.Array:
        """Add a variable of shape (time, lat, lon); what is not written is missing."""
        return self.root.create_array(
            name,
            shape=self._shape,
            chunks=self._chunks,
            dtype="float32",
            fill_value=np.nan,
            dimension_names=("time", "lat", "lon"),
            attributes=dict(attributes),
        )

    def map(self, name: str, attributes: Mapping[str, Any], dtype: str = "float32") -> zarr.Array:
        """Add a variable of shape (lat, lon)."""
        return self.root.create_array(
            name,
            shape=self._shape[1:],
            chunks=self._chunks[1:],
            dtype=dtype,
            fill_value=np.nan if dtype.startswith("float") else 0,
            dimension_names=("lat", "lon"),
            attributes=dict(attributes),
        )


@contextmanager
def new_store(path: Path, *, overwrite: bool = False) -> Iterator[zarr.Group]:
    """Open a new Zarr store (format 3) beside its place, and move it there if the block ends without an error.

    Args:
        path: of the store, a folder.
        overwrite: replace a store that exists.

    Raises:
        ConfigurationError: there is one.
    """
    if path.exists() and not overwrite:
        raise ConfigurationError(f"{path} exists. Give another name, delete it, or pass --overwrite.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(part_name(path.name))
    try:
        root = zarr.open_group(part, mode="w", zarr_format=3)
        yield root
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that other implementations may not read it: they read the rest
            zarr.consolidate_metadata(root.store)
        if path.exists():
            shutil.rmtree(path)
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)

"""Stores of gridded variables, of which only blocks that samples need are in memory."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from itwinai.errors import ConfigurationError
from itwinai_drought.data.names import find_dimension, find_variable

# Days and cells of a block where a store is not cut into chunks, or into chunks larger than this.
LARGEST_BLOCK = (730, 64, 64)


class GridStore:
    """Read cells of variables of shape (time, lat, lon) through blocks that are kept while they are in use.

    A block is a chunk of the store: to get one value, a chunk is read and decompressed anyway. Blocks leave memory when
    others need their place, so that a process holds ``cache_mb`` of them, whatever the size of the store.

    A store is opened by each process when it first reads: it can be pickled, and is safe to use after a fork.

    Args:
        paths: Zarr stores and NetCDF files, with the same grid. Their variables are taken together.
        names: what the variables are called in the store, where that is not the name that the config uses.
        select: index along further dimensions, such as ``{"layer": 0}`` for the first layer of the soil.
        cache_mb: memory for blocks, in MB.
    """

    def __init__(
        self,
        paths: str | Sequence[str],
        names: Mapping[str, str] | None = None,
        select: Mapping[str, int] | None = None,
        cache_mb: float = 256.0,
    ) -> None:
        self.paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self.names = dict(names or {})
        self.select = dict(select or {})
        self.cache_mb = cache_mb
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._dataset: xr.Dataset | None = None
        self._variables: dict[str, xr.Variable] = {}
        self._blocks: OrderedDict[tuple[str, int, int, int], NDArray[np.float32]] = OrderedDict()
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_dataset": None, "_variables": {}, "_blocks": OrderedDict(), "_bytes": 0}

    @property
    def dataset(self) -> xr.Dataset:
        """The open store, with dimensions called ``time``, ``lat`` and ``lon``; nothing of it is loaded."""
        if self._process != os.getpid():  # a fork: it shares the parent's file handles, and has its own memory to fill
            self._forget()
        if self._dataset is None:
            self._dataset = _open(self.paths, self.select)
        return self._dataset

    @property
    def times(self) -> NDArray[np.datetime64]:
        """The days, ascending."""
        return self.dataset["time"].values.astype("M8[ns]")

    @property
    def grid(self) -> tuple[int, int]:
        """Number of cells along lat and lon."""
        sizes = self.dataset.sizes
        return sizes["lat"], sizes["lon"]

    def block_shape(self, name: str) -> tuple[int, int, int]:
        """Return days, rows and columns of a block of a variable."""
        variable = self._variable(name)
        chunks = variable.encoding.get("chunks") or variable.encoding.get("chunksizes") or variable.shape
        days, rows, columns = (
            min(chunk, size, most) for chunk, size, most in zip(chunks, variable.shape, LARGEST_BLOCK, strict=True)
        )
        return days, rows, columns

    def read(self, name: str, start: int, stop: int, cell: int) -> NDArray[np.float32]:
        """Return consecutive days of a variable in one cell; missing values are NaN.

        Args:
            name: the variable, as the config calls it.
            start: the first day.
            stop: the day after the last.
            cell: number of the cell, counted by rows.
        """
        days, rows, columns = self.block_shape(name)
        row, column = divmod(cell, self.grid[1])
        (block_row, row), (block_column, column) = divmod(row, rows), divmod(column, columns)
        pieces = []
        for block_day in range(start // days, (stop - 1) // days + 1):
            block = self._block(name, block_day, block_row, block_column)
            first = block_day * days
            pieces.append(block[row, column, max(0, start - first) : stop - first])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def read_map(self, name: str) -> NDArray[np.float32]:
        """Return a static map, shape (lat, lon); missing values are NaN.

        Raises:
            ConfigurationError: it has another shape.
        """
        variable = self.dataset[find_variable(name, self._names_there(), self.names)]
        if set(variable.dims) != {"lat", "lon"}:
            raise ConfigurationError(_wrong_dimensions(name, variable.dims, ("lat", "lon")))
        return variable.transpose("lat", "lon").values.astype(np.float32)

    def blocks(self, name: str) -> Iterator[tuple[slice, slice, slice]]:
        """Yield the days, rows and columns of all blocks of a variable."""
        shape, sizes = self._variable(name).shape, self.block_shape(name)
        for index in np.ndindex(*(-(-size // step) for size, step in zip(shape, sizes, strict=True))):
            yield _slices(index, sizes)

    def read_block(self, name: str, days: slice, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Return part of a variable, shape (days, rows, columns), without keeping it."""
        return np.asarray(self._variable(name)[days, rows, columns].values, dtype=np.float32)

    def _block(self, name: str, day: int, row: int, column: int) -> NDArray[np.float32]:
        """Return a block with its days along the last axis, where a cell's series lies in one piece."""
        key = (name, day, row, column)
        if (known := self._blocks.get(key)) is not None:
            self._blocks.move_to_end(key)
            return known
        part = self.read_block(name, *_slices((day, row, column), self.block_shape(name)))
        block = np.ascontiguousarray(part.transpose(1, 2, 0))
        self._blocks[key] = block
        self._bytes += block.nbytes
        while self._bytes > self.cache_mb * 1e6 and len(self._blocks) > 1:
            self._bytes -= self._blocks.popitem(last=False)[1].nbytes
        return block

    def _variable(self, name: str) -> xr.Variable:
        dataset = self.dataset  # before the names: after a fork it forgets them
        if name not in self._variables:
            array = dataset[find_variable(name, self._names_there(), self.names)]
            if set(array.dims) != {"time", "lat", "lon"}:
                raise ConfigurationError(_wrong_dimensions(name, array.dims, ("time", "lat", "lon")))
            if array.dims != ("time", "lat", "lon"):
                array = _transposed(array)
            self._variables[name] = array.variable
        return self._variables[name]

    def _names_there(self) -> list[str]:
        return [str(name) for name in self.dataset.data_vars]


def _open(paths: Sequence[str], select: Mapping[str, int]) -> xr.Dataset:
    opened = []
    for path in paths:
        if not Path(path).exists() and "://" not in str(path):
            raise ConfigurationError(
                f"There is no store at '{path}'. Make one with: itwinai drought simulate, or say where yours is.",
                argument="store",
            )
        opened_one = _open_one(path)
        found = {find_dimension(name, list(map(str, opened_one.sizes))): name for name in ("time", "lat", "lon")}
        dataset = opened_one.rename({old: new for old, new in found.items() if old and old != new})
        opened.append(dataset.isel({name: index for name, index in select.items() if name in dataset.dims}))
    for dataset in opened[1:]:
        for name in ("lat", "lon", "time"):
            sizes = dataset.sizes.get(name), opened[0].sizes.get(name)
            if None not in sizes and sizes[0] != sizes[1]:
                raise ConfigurationError(
                    f"The stores have {sizes[1]} and {sizes[0]} values of '{name}': they are of different grids or "
                    "times, and cannot be taken together. Regrid or cut them first."
                )
    dataset = xr.merge(opened, join="override", compat="override") if len(opened) > 1 else opened[0]
    missing = {"time", "lat", "lon"} - set(map(str, dataset.dims))
    if missing:
        raise ConfigurationError(
            f"The store has no dimension {', '.join(sorted(missing))}; it has {', '.join(map(str, dataset.dims))}. "
            "Rename its dimensions with xarray."
        )
    if not dataset.indexes["time"].is_monotonic_increasing:
        raise ConfigurationError("The store's days are not in order. Sort them with xarray: dataset.sortby('time').")
    return dataset


def _open_one(path: str) -> xr.Dataset:
    """Open a file or store, of which variables are read when they are indexed: without chunks there is no dask."""
    if Path(path).suffix in (".nc", ".nc4", ".netcdf"):
        return xr.open_dataset(path, engine="h5netcdf", chunks=None)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Failed to open Zarr store with consolidated metadata"
        )  # it is opened all the same
        return xr.open_zarr(path, chunks=None)


def _transposed(array: xr.DataArray) -> xr.DataArray:
    """Return a variable as (time, lat, lon), with its chunks in the same order; nothing is loaded."""
    order = [array.dims.index(name) for name in ("time", "lat", "lon")]
    chunks = array.encoding.get("chunks") or array.encoding.get("chunksizes")
    moved = array.transpose("time", "lat", "lon")
    moved.encoding = {"chunks": tuple(chunks[one] for one in order)} if chunks else {}
    return moved


def _slices(index: Sequence[int], sizes: Sequence[int]) -> tuple[slice, slice, slice]:
    days, rows, columns = (slice(one * size, (one + 1) * size) for one, size in zip(index, sizes, strict=True))
    return days, rows, columns


def _wrong_dimensions(name: str, there: Sequence[Any], wanted: Sequence[str]) -> str:
    further = [str(one) for one in there if one not in wanted]
    hint = f" Choose one index of {', '.join(further)}, with select: {{{further[0]}: 0}}." if further else ""
    return f"'{name}' has the dimensions ({', '.join(map(str, there))}), and needs ({', '.join(wanted)}).{hint}"

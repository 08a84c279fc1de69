"""`write_grid`: a file of predictions, whose rows are cells and windows, as variables on a grid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from itwinai.errors import ConfigurationError
from itwinai_drought.data.names import find_variable
from itwinai_drought.data.store import GridStore
from itwinai_drought.zarr_output import GridWriter, new_store

_CHUNKS = (365, 20, 20)


def write_grid(predictions: Path, store: GridStore, output: Path, *, overwrite: bool = False) -> list[str]:
    """Write predictions to a Zarr store with the coordinates time, lat and lon.

    Days that several windows predict have the value of the window that begins first. Cells and days without
    prediction are missing. Rows of cells are written one band after the other, so that memory depends
    on the width of the grid and the number of days, not on the number of cells.

    Args:
        predictions: what ``itwinai predict --output predictions.zarr`` has written: a column of shape (samples, days)
            for each target, and the coordinates ``cell`` and ``day`` of each sample.
        store: what was predicted from; its grid and the units of its variables are taken over.
        output: path of the new store.
        overwrite: replace a store that exists.

    Returns:
        The names of the variables.

    Raises:
        ConfigurationError: the file is none of such predictions, or the store is of another grid.
    """
    samples = _open(predictions)
    targets = {str(name): array for name, array in samples.data_vars.items() if array.ndim == 2}
    if not targets:
        raise ConfigurationError(
            f"{predictions} has no column with a series for each sample; it has {', '.join(map(str, samples))}. "
            "predict_step has to return a dict with a tensor of shape (batch, days) for each target."
        )
    cell, day = samples["cell"].values, samples["day"].values.astype("M8[D]")
    rows, columns = store.grid
    if len(cell) and cell.max() >= rows * columns:
        raise ConfigurationError(
            f"{predictions} has predictions of cell {cell.max()}, and the store has {rows} x {columns} cells. Give the "
            "store that was predicted from."
        )
    days = {array.shape[1] for array in targets.values()}
    time = np.arange(day.min(), day.max() + max(days))
    dataset = store.dataset
    with new_store(output, overwrite=overwrite) as root:
        writer = GridWriter(root, dataset["lat"].values, dataset["lon"].values, time, _CHUNKS)
        arrays = {name: writer.series(name, _attributes(store, name)) for name in targets}
        for first, last, chosen in _bands(cell, rows, columns):
            for name, array in targets.items():
                band = np.full((len(time), (last - first) * columns), np.nan, np.float32)
                _place(band, array[chosen].values, cell[chosen] - first * columns, (day[chosen] - time[0]).astype(int))
                arrays[name][:, first:last] = band.reshape(len(time), last - first, columns)
        root.attrs.update({"Conventions": "CF-1.11", "title": "Predictions", "source": str(predictions.name)})
    return list(targets)


def _open(path: Path) -> xr.Dataset:
    if path.suffix != ".zarr" or not path.exists():
        raise ConfigurationError(
            f"{path} is no Zarr store. Write one with: itwinai predict -c config.yaml --ckpt ... --output "
            "predictions.zarr"
        )
    samples = xr.open_zarr(path, chunks=None)
    samples = samples.reset_coords([name for name in samples.coords if name not in samples.dims])
    missing = {"cell", "day"} - set(samples.variables)
    if missing:
        raise ConfigurationError(
            f"{path} does not say which cells and days it holds: it has no {', '.join(sorted(missing))}. The dataset's "
            "attribute coordinates has to name them, as that of CellWindows does."
        )
    return samples


def _attributes(store: GridStore, name: str) -> dict[str, str]:
    """Return units and long name of a variable, where the store has it."""
    try:
        variable = store.dataset[find_variable(name, list(map(str, store.dataset.data_vars)), store.names)]
    except ConfigurationError:
        return {}
    return {key: variable.attrs[key] for key in ("units", "long_name") if key in variable.attrs}


def _bands(cell: NDArray[np.int64], rows: int, columns: int) -> Iterator[tuple[int, int, slice]]:
    """Yield first row, last row and samples of bands of rows; samples come in the order of their cells."""
    if np.any(np.diff(cell) < 0):
        raise ConfigurationError("The predictions are not in the order of their cells, as CellWindows has them.")
    for first in range(0, rows, _CHUNKS[1]):
        last = min(first + _CHUNKS[1], rows)
        begin, end = np.searchsorted(cell, [first * columns, last * columns])
        if begin < end:
            yield first, last, slice(int(begin), int(end))


def _place(
    band: NDArray[np.float32], series: NDArray[np.float32], cell: NDArray[np.int64], start: NDArray[np.int64]
) -> None:
    """Write each series to its cell and days, windows that begin first last."""
    length = series.shape[1]
    for begin in np.unique(start)[::-1]:
        chosen = start == begin
        band[begin : begin + length, cell[chosen]] = series[chosen].T

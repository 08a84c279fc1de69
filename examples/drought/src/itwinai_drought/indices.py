"""Drought indices: how unusually dry a month is for its place and season, in standard deviations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from itwinai.errors import ConfigurationError
from itwinai_drought.data.names import find_variable
from itwinai_drought.data.store import GridStore
from itwinai_drought.zarr_output import GridWriter, new_store

_CELLS = 2048  # whose days are in memory at once


@dataclass(frozen=True)
class Index:
    """A standardised index.

    The monthly values of each calendar month in the calibration period get a distribution; what it says of a value is
    turned into the value of a standard normal distribution with the same probability.

    Attributes:
        long_name: in full.
        inputs: variables that it is computed from.
        combine: what is standardised, of the inputs.
        distribution: name in scipy.stats, of those that xclim fits.
        origin: lower end of the distribution, in the unit of what is standardised.
        zeros: whether zeros have a probability of their own, as dry months have.
    """

    long_name: str
    inputs: tuple[str, ...]
    distribution: str
    combine: Callable[..., xr.DataArray] = field(default=lambda value: value)
    origin: float = 0.0
    zeros: bool = False


INDICES: Mapping[str, Index] = {
    # McKee et al. (1993, 8th Conference on Applied Climatology); gamma after Thom (1958).
    "spi": Index("standardised precipitation index", ("precip",), "gamma", zeros=True),
    # Vicente-Serrano et al. (2010, Journal of Climate 23). The lower end of its log-logistic distribution is given: no
    # place loses more than 10 mm/day in a month. Three free parameters on a handful of years would follow the noise.
    "spei": Index(
        "standardised precipitation evapotranspiration index",
        ("precip", "pet"),
        "fisk",
        combine=lambda precip, pet: precip - pet,
        origin=-10.0,
    ),
    # Hao and AghaKouchak (2013, Advances in Water Resources 57).
    "ssmi": Index("standardised soil moisture index", ("vwc",), "gamma"),
    # Shukla and Wood (2008, Geophysical Research Letters 35), of the runoff of each cell.
    "sri": Index("standardised runoff index", ("q",), "gamma", zeros=True),
}
"""The indices by name, with their sources."""


def write_indices(
    store: GridStore,
    output: Path,
    *,
    reference: GridStore | None = None,
    calibration: Sequence[str] | None = None,
    months: int = 3,
    overwrite: bool = False,
) -> list[str]:
    """Compute the indices that a store has the variables for, by xclim, and write them to a Zarr store.

    Memory depends on the number of days, not on that of cells.

    Args:
        store: daily variables: a simulation, or predictions on a grid.
        output: path of the new store, with the dimensions time (first days of months), lat and lon.
        reference: store whose values calibrate the indices; by default the store itself. To compare predictions with
            the truth, calibrate both with the truth: a model that is always too dry then shows droughts.
        calibration: first and last day of the calibration period, in the reference; by default all of it. 30 years are
            usual.
        months: over how many months each value is a mean. Months with a missing day are missing.
        overwrite: replace a store that exists.

    Returns:
        The names of the indices.

    Raises:
        ConfigurationError: the store has the variables of no index, the reference is of another grid, or has not a
            value for each calendar month in the calibration period.
    """
    reference = reference or store
    chosen = [name for name, index in INDICES.items() if _has(store, index) and _has(reference, index)]
    if not chosen:
        needed = "; ".join(f"{name} needs {', '.join(index.inputs)}" for name, index in INDICES.items())
        raise ConfigurationError(
            f"No index can be computed from {', '.join(map(str, store.dataset.data_vars))}: {needed}."
        )
    if store.grid != reference.grid:
        raise ConfigurationError(f"The store has {store.grid} cells, and its reference {reference.grid}.")
    first, last = calibration or _ends(reference)
    dataset = store.dataset
    first_days = _first_days(store)
    with new_store(output, overwrite=overwrite) as root:
        writer = GridWriter(
            root,
            dataset["lat"].values,
            dataset["lon"].values,
            first_days,
            (len(first_days), *store.block_shape(_first_input(chosen))[1:]),
        )
        for name in chosen:
            index = INDICES[name]
            attributes = {"long_name": f"{index.long_name}, {months} months", "units": "1"}
            attributes |= {"distribution": index.distribution, "calibration": f"{first} to {last}"}
            array = writer.series(name, attributes)
            for rows, columns in _blocks(store, index.inputs[0]):
                values = index.combine(*(_monthly(store, one, rows, columns) for one in index.inputs))
                known = values
                if reference is not store:
                    known = index.combine(*(_monthly(reference, one, rows, columns) for one in index.inputs))
                computed = standardized(values, known.sel(time=slice(first, last)), index, months)
                array[:, rows, columns] = computed.transpose("time", "lat", "lon").values.astype(np.float32)
        root.attrs.update({"Conventions": "CF-1.11", "title": "Drought indices", "months": months})
    return chosen


def standardized(values: xr.DataArray, calibration: xr.DataArray, index: Index, months: int) -> xr.DataArray:
    """Return an index of monthly values.

    Args:
        values: monthly means, with the dimension time.
        calibration: monthly means that the distributions are fitted to, with the same further dimensions.
        index: which one.
        months: over how many months each value is a mean.

    Raises:
        ConfigurationError: a calendar month has fewer than two values in the calibration period.
    """
    from xclim.indices.stats import standardized_index, standardized_index_fit_params

    per_month = calibration.isel(time=slice(months - 1, None)).time.dt.month.to_index().value_counts()
    if len(per_month) < 12 or per_month.min() < 2:
        raise ConfigurationError(
            "Each calendar month needs at least two values in the calibration period, to fit a distribution to them; "
            "30 are usual. Give a longer period, or a reference with more years."
        )
    options: dict[str, Any] = {"freq": "MS", "window": months, "dist": index.distribution, "method": "APP"}
    options |= {"zero_inflated": index.zeros, "fitkwargs": {"floc": index.origin}}
    parameters = standardized_index_fit_params(calibration, **options)
    return standardized_index(values, **options, cal_start=None, cal_end=None, params=parameters)


def _has(store: GridStore, index: Index) -> bool:
    there = [str(name) for name in store.dataset.data_vars]
    try:
        return all(find_variable(name, there, store.names) for name in index.inputs)
    except ConfigurationError:
        return False


def _first_input(names: Sequence[str]) -> str:
    return INDICES[names[0]].inputs[0]


def _ends(store: GridStore) -> tuple[str, str]:
    days = store.times.astype("M8[D]").astype(str)
    return str(days[0]), str(days[-1])


def _first_days(store: GridStore) -> NDArray[np.datetime64]:
    months = store.times.astype("M8[M]")
    return np.arange(months[0], months[-1] + 1).astype("M8[D]")


def _blocks(store: GridStore, name: str) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of blocks of cells, whole chunks each."""
    _, rows, columns = store.block_shape(name)
    height, width = store.grid
    columns *= max(1, min(_CELLS // (rows * columns), -(-width // columns)))
    for row in range(0, height, rows):
        for column in range(0, width, columns):
            yield slice(row, min(row + rows, height)), slice(column, min(column + columns, width))


def _monthly(store: GridStore, name: str, rows: slice, columns: slice) -> xr.DataArray:
    """Return monthly means of a block; a month of which a day is missing is missing."""
    values = store.read_block(name, slice(None), rows, columns).astype(np.float64)
    of_day = store.times.astype("M8[M]")
    first_days = _first_days(store)
    place = (of_day - of_day[0]).astype(int)
    starts = np.searchsorted(place, np.arange(len(first_days)))
    days = np.diff([*starts, len(place)])
    expected = pd.DatetimeIndex(first_days).days_in_month.to_numpy()
    with np.errstate(invalid="ignore"):
        means = np.add.reduceat(values, starts, axis=0) / days[:, None, None]
    means[days != expected] = np.nan
    return xr.DataArray(means, dims=("time", "lat", "lon"), coords={"time": first_days.astype("M8[ns]")})

"""Figures of predictions: series of some cells, maps of the score, predicted against true, maps of a drought."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from itwinai.errors import ConfigurationError
from itwinai.reporting.plotting import BEST, COLOR_MAP, COLORS, new_figure
from itwinai_drought.data.names import find_variable
from itwinai_drought.data.store import GridStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_NO_DATA = "#d9d9d9"
_DRY_TO_WET = "BrBG"
_BINS = 120
_ROWS = 20  # of cells that are read at once

Map = NDArray[np.float64]


def series_figure(truth: GridStore, predicted: GridStore, cells: Sequence[int], days: int = 730) -> Figure:
    """Draw true and predicted series of some cells, each in a column, and each target in a row.

    Args:
        truth: the store that was predicted from.
        predicted: predictions on its grid.
        cells: their numbers, counted by rows.
        days: the last so many days that are predicted are shown.
    """
    targets, offset = _targets(truth, predicted), _offset(truth, predicted)
    length = len(predicted.times)
    start = max(0, length - days)
    figure = new_figure(3.4 * len(cells) + 0.6, 1.7 * len(targets) + 0.6)
    axes = figure.subplots(len(targets), len(cells), sharex=True, sharey="row", squeeze=False)
    time = predicted.times[start:]
    for row, (target, units) in zip(axes, targets.items(), strict=True):
        for one, cell in zip(row, cells, strict=True):
            true = truth.read(target, offset + start, offset + length, cell)
            (of_truth,) = one.plot(time, true, color="black", lw=0.9, label="true")
            values = predicted.read(target, start, length, cell)
            (of_model,) = one.plot(time, values, color=BEST, lw=0.9, alpha=0.9, label="predicted")
            one.spines[["top", "right"]].set_visible(False)
            one.margins(x=0)
            _few_dates(one)
        row[0].set_ylabel(f"{target} [{units}]")
    for one, cell in zip(axes[0], cells, strict=True):
        one.set_title(_place(truth, cell), fontsize="medium")
    figure.legend(handles=[of_truth, of_model], loc="outside upper center", ncols=2, frameon=False)
    return figure


def scores_figure(truth: GridStore, predicted: GridStore) -> Figure:
    """Draw a map of the NSE of each target; cells that are not predicted are grey."""
    scores = {target: nash_sutcliffe(truth, predicted, target) for target in _targets(truth, predicted)}
    lowest = min((float(np.nanquantile(one, 0.02)) for one in scores.values() if np.isfinite(one).any()), default=0.0)
    lowest = max(0.0, np.floor(lowest * 10) / 10)
    figure, axes = _maps(truth, len(scores))
    for one, (target, score) in zip(axes, scores.items(), strict=True):
        image = _draw_map(one, truth, score, cmap=COLOR_MAP, vmin=lowest, vmax=1.0)
        middle = np.nanmedian(score) if np.isfinite(score).any() else np.nan
        one.set_title(f"{target}, median {middle:.2f}", fontsize="medium")
    below = any(np.nanmin(one, initial=1.0) < lowest for one in scores.values())
    figure.colorbar(image, ax=axes, label="NSE", shrink=0.85, extend="min" if below else "neither")
    return figure


def density_figure(truth: GridStore, predicted: GridStore) -> Figure:
    """Draw predicted against true values of each target, all cells and days, as the density of points."""
    targets = _targets(truth, predicted)
    figure = new_figure(3.2 * len(targets) + 0.8, 3.1)
    axes = figure.subplots(1, len(targets), squeeze=False)[0]
    for one, (target, units) in zip(axes, targets.items(), strict=True):
        counts, limits = _density(truth, predicted, target)
        shown = np.ma.masked_equal(counts.T, 0)
        extent = (limits[0], limits[1], limits[0], limits[1])
        image = one.imshow(shown, origin="lower", extent=extent, norm="log", cmap=COLOR_MAP, interpolation="none")
        one.plot(limits, limits, color="black", lw=0.7)
        one.set(title=f"{target} [{units}]", xlabel="true", ylabel="predicted" if one is axes[0] else "")
        one.locator_params(nbins=5)
        one.spines[["top", "right"]].set_visible(False)
        figure.colorbar(image, ax=one, shrink=0.85, label="days" if one is axes[-1] else "")
    return figure


def drought_figure(truth: xr.Dataset, predicted: xr.Dataset, name: str = "ssmi", month: str | None = None) -> Figure:
    """Draw maps of a drought index in a month, true and predicted.

    Args:
        truth: indices of the truth, as `write_indices` writes them.
        predicted: indices of the predictions, calibrated with the truth.
        name: the index.
        month: such as 2009-07; by default the driest of those that are predicted.
    """
    both = np.intersect1d(truth["time"].values, predicted["time"].values[predicted[name].notnull().any(("lat", "lon"))])
    if not len(both):
        raise ConfigurationError(f"Truth and predictions have no month of {name} in common.")
    known = predicted[name].sel(time=both).notnull()
    means = truth[name].sel(time=both).where(known).mean(("lat", "lon"))
    if month is None:
        date = both[np.nanargmin(means.values)]
    elif (date := np.datetime64(month, "M").astype("M8[ns]")) not in both:
        raise ConfigurationError(f"{month} is not predicted; months are {_month(both[0])} to {_month(both[-1])}.")
    figure, axes = _maps(truth, 2)
    for one, dataset, title in zip(axes, (truth, predicted), ("true", "predicted"), strict=True):
        values = dataset[name].sel(time=date).values
        image = _draw_map(one, truth, values, cmap=_DRY_TO_WET, vmin=-3, vmax=3)
        one.set_title(f"{title}, {_month(date)}", fontsize="medium")
    label = str(truth[name].attrs.get("long_name", name))
    figure.colorbar(image, ax=axes, label=label.replace(", ", "\n"), shrink=0.85, extend="both")
    return figure


def drought_series_figure(truth: xr.Dataset, predicted: xr.Dataset) -> Figure:
    """Draw the mean over the predicted cells of each index, true and predicted, with droughts shaded."""
    names = [name for name in truth.data_vars if name in predicted]
    figure = new_figure(7.5, 1.7 * len(names) + 0.5)
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for one, name in zip(axes, names, strict=True):
        where = predicted[name].notnull().any("time")
        true = truth[name].where(where).mean(("lat", "lon"))
        values = predicted[name].mean(("lat", "lon"))
        one.fill_between(true["time"], np.minimum(true, 0), 0, color=COLORS[1], alpha=0.35, lw=0)
        one.fill_between(true["time"], np.maximum(true, 0), 0, color=COLORS[4], alpha=0.35, lw=0)
        one.plot(true["time"], true, color="black", lw=0.9, label="true")
        one.plot(values["time"], values, color=BEST, lw=1.2, label="predicted")
        one.set_ylabel(str(name).upper())
        one.margins(x=0)
        one.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def nash_sutcliffe(truth: GridStore, predicted: GridStore, target: str) -> Map:
    """Return the NSE of each cell over the predicted days, shape (lat, lon); NaN where there is none.

    The Nash-Sutcliffe efficiency (1970, Journal of Hydrology 10) is 1 for a perfect prediction, and 0 for one that is
    no better than the cell's mean.
    """
    score = np.full(truth.grid, np.nan)
    for rows, true, values in _bands(truth, predicted, target):
        known = np.isfinite(true) & np.isfinite(values)
        days = np.maximum(known.sum(axis=0), 1)
        true, values = np.where(known, true, 0.0), np.where(known, values, 0.0)
        deviation = np.where(known, true - true.sum(axis=0) / days, 0.0)
        variation = (deviation**2).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            efficiency = 1 - ((true - values) ** 2).sum(axis=0) / variation
        score[rows] = np.where((variation > 0) & known.any(axis=0), efficiency, np.nan)
    return score


def _targets(truth: GridStore, predicted: GridStore) -> dict[str, str]:
    """Return the units of the predicted variables, by name."""
    there = [str(name) for name in truth.dataset.data_vars]
    found = {}
    for name in map(str, predicted.dataset.data_vars):
        if predicted.dataset[name].ndim == 3:
            attributes = truth.dataset[find_variable(name, there, truth.names)].attrs
            found[name] = str(attributes.get("units", ""))
    if not found:
        raise ConfigurationError(
            "The predictions have no variable of shape (time, lat, lon). Use: itwinai drought grid."
        )
    return found


def _offset(truth: GridStore, predicted: GridStore) -> int:
    """Return the place of the first predicted day among those of the truth."""
    offset = int(np.searchsorted(truth.times, predicted.times[0]))
    days = truth.times[offset : offset + len(predicted.times)]
    if truth.grid != predicted.grid or not np.array_equal(days, predicted.times):
        raise ConfigurationError("The predictions have other cells or days than the store: they are not of it.")
    return offset


def _bands(
    truth: GridStore, predicted: GridStore, target: str
) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.float64]]]:
    """Yield rows of the grid with their true and predicted values, shape (days, rows, columns)."""
    offset, length = _offset(truth, predicted), len(predicted.times)
    for row in range(0, truth.grid[0], _ROWS):
        rows = slice(row, min(row + _ROWS, truth.grid[0]))
        true = truth.read_block(target, slice(offset, offset + length), rows, slice(None))
        values = predicted.read_block(target, slice(None), rows, slice(None))
        yield rows, true.astype(np.float64), values.astype(np.float64)


def _density(truth: GridStore, predicted: GridStore, target: str) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Return how many days fall into each bin of true and predicted values, and the limits of both axes."""
    low, high = np.inf, -np.inf
    for _, true, values in _bands(truth, predicted, target):
        known = np.isfinite(true) & np.isfinite(values)
        if known.any():
            # The largest flood would squeeze all other days into a corner.
            both = np.concatenate([true[known], values[known]])
            low, high = min(low, np.quantile(both, 0.0005)), max(high, np.quantile(both, 0.9995))
    if low >= high:
        raise ConfigurationError(f"The predictions of {target} are missing, or all the same.")
    counts = np.zeros((_BINS, _BINS))
    for _, true, values in _bands(truth, predicted, target):
        known = np.isfinite(true) & np.isfinite(values)
        counts += np.histogram2d(true[known], values[known], _BINS, ((low, high), (low, high)))[0]
    return counts, (float(low), float(high))


def _maps(grid: GridStore | xr.Dataset, number: int) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with maps side by side, of the region's shape."""
    left, right, bottom, top = _extent(grid)
    ratio = (top - bottom) / (right - left) * _aspect(grid)
    figure = new_figure(3.2 * number + 1.2, max(1.6, 2.8 * ratio) + 0.7)
    axes = figure.subplots(1, number, sharex=True, sharey=True, squeeze=False)[0]
    axes[0].set_ylabel("latitude")
    return figure, axes


def _draw_map(axes: Axes, grid: GridStore | xr.Dataset, values: Map, cmap: str, vmin: float, vmax: float) -> AxesImage:
    left, right, bottom, top = _extent(grid)
    axes.set_facecolor(_NO_DATA)
    lat = _coordinate(grid, "lat")
    upright = values if lat[0] <= lat[-1] else values[::-1]
    extent = (left, right, bottom, top)
    image = axes.imshow(
        upright,
        origin="lower",
        extent=extent,
        interpolation="none",
        cmap=cmap,
        vmin=vmin,
        vmax=vmax,
        aspect=_aspect(grid),
    )
    axes.set_xlabel("longitude")
    return image


def _coordinate(grid: GridStore | xr.Dataset, name: str) -> NDArray[np.float64]:
    dataset = grid.dataset if isinstance(grid, GridStore) else grid
    return dataset[name].values


def _aspect(grid: GridStore | xr.Dataset) -> float:
    """Return how much longer a degree of latitude is than one of longitude."""
    return float(1 / np.cos(np.radians(_coordinate(grid, "lat").mean())))


def _extent(grid: GridStore | xr.Dataset) -> tuple[float, float, float, float]:
    lat, lon = np.sort(_coordinate(grid, "lat")), _coordinate(grid, "lon")
    half_lat, half_lon = ((one[-1] - one[0]) / max(1, len(one) - 1) / 2 or 0.01 for one in (lat, lon))
    return lon[0] - half_lon, lon[-1] + half_lon, lat[0] - half_lat, lat[-1] + half_lat


def _few_dates(axes: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=2, maxticks=5)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _place(store: GridStore, cell: int) -> str:
    row, column = divmod(cell, store.grid[1])
    lat, lon = (float(store.dataset[name].values[place]) for name, place in (("lat", row), ("lon", column)))
    try:
        height = f", {store.read_map('elevation')[row, column]:.0f} m"
    except ConfigurationError:
        height = ""
    return f"{lat:.2f}° N, {lon:.2f}° E{height}"


def _month(date: np.datetime64) -> str:
    return str(date.astype("M8[M]"))


def write_figures(
    store: str,
    predictions: str,
    output: Path,
    *,
    indices: str | None = None,
    predicted_indices: str | None = None,
    cells: Sequence[int] | None = None,
    days: int = 730,
    index: str = "ssmi",
    month: str | None = None,
) -> list[Path]:
    """Draw predictions against the truth, and return the files.

    Args:
        store: the store that was predicted from.
        predictions: on its grid.
        output: folder of the figures.
        indices: those of the store, for maps and series of droughts.
        predicted_indices: those of the predictions.
        cells: numbers of cells; by default a low, a middle and a high score.
        days: length of the series; the last ones.
        index: the index on the map.
        month: of the map, such as 2009-07; by default the driest.

    Raises:
        ConfigurationError: the stores do not belong together.
    """
    truth, predicted = GridStore(store), GridStore(predictions)
    figures = {
        "series": series_figure(truth, predicted, cells or _typical_cells(truth, predicted), days),
        "scores": scores_figure(truth, predicted),
        "density": density_figure(truth, predicted),
    }
    if indices and predicted_indices:
        true, ours = (xr.open_zarr(path, chunks=None) for path in (indices, predicted_indices))
        figures["drought"] = drought_figure(true, ours, index, month)
        figures["drought_series"] = drought_series_figure(true, ours)
    output.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(output / f"{name}.png")
        figure.savefig(paths[-1])
    return paths


def _typical_cells(truth: GridStore, predicted: GridStore) -> list[int]:
    """Return the cells at the 10th, 50th and 90th percentile of the first target's score."""
    target = next(str(name) for name, array in predicted.dataset.data_vars.items() if array.ndim == 3)
    score = nash_sutcliffe(truth, predicted, target).ravel()
    order = np.argsort(np.where(np.isfinite(score), score, np.inf))[: int(np.isfinite(score).sum())]
    if not len(order):
        raise ConfigurationError("The predictions have no day in common with the truth of the store.")
    return list(dict.fromkeys(int(order[round(part * (len(order) - 1))]) for part in (0.1, 0.5, 0.9)))

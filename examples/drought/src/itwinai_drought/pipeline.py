"""Steps of ``itwinai run configs/pipeline.yaml``: from a store to maps of drought."""

from __future__ import annotations

from pathlib import Path

from itwinai.pipelines import OutputFolder
from itwinai_drought.data.store import GridStore
from itwinai_drought.figures import write_figures
from itwinai_drought.grid import write_grid
from itwinai_drought.indices import write_indices
from itwinai_drought.simulation.grid import Grid
from itwinai_drought.simulation.store import Region, write_store


def simulate(
    output: OutputFolder,
    lat: int = 24,
    lon: int = 32,
    years: int = 14,
    seed: int = 0,
    chunks: tuple[int, int, int] = (365, 8, 8),
) -> Path:
    """Return a store of an invented region; see `itwinai_drought.simulation.store.write_store`.

    Args:
        output: for the store.
        lat: number of cells from south to north.
        lon: number of cells from west to east.
        years: length of the record.
        seed: another seed is another region.
        chunks: days, rows and columns of a chunk.
    """
    path = output / "region.zarr"
    write_store(path, Region(Grid(lat, lon), years=years, seed=seed, chunks=chunks))
    return path


def grid(predictions: Path, store: Path, output: OutputFolder) -> Path:
    """Return a file of predictions as a store of variables (time, lat, lon)."""
    path = output / "predicted.zarr"
    write_grid(predictions, GridStore(str(store)), path)
    return path


def indices(store: Path, output: OutputFolder, reference: Path | None = None, months: int = 3) -> Path:
    """Return a store of the drought indices of a store.

    Args:
        store: with daily variables.
        output: for the indices.
        reference: the store that calibrates them; by default the store itself.
        months: over how many months a value is a mean.
    """
    path = output / "indices.zarr"
    calibrating = None if reference is None else GridStore(str(reference))
    write_indices(GridStore(str(store)), path, reference=calibrating, months=months)
    return path


def figures(
    store: Path, predictions: Path, indices: Path, predicted_indices: Path, output: OutputFolder, days: int = 730
) -> list[Path]:
    """Return the figures: series, maps of the scores, maps and series of droughts.

    Args:
        store: that was predicted from.
        predictions: on its grid.
        indices: those of the store.
        predicted_indices: those of the predictions.
        output: for the figures.
        days: length of the series.
    """
    return write_figures(
        str(store),
        str(predictions),
        output,
        indices=str(indices),
        predicted_indices=str(predicted_indices),
        days=days,
    )

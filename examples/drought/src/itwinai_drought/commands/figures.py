"""``itwinai drought figures``: draw series and maps of predictions."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import xarray as xr

from itwinai.errors import ConfigurationError
from itwinai_drought.data.store import GridStore
from itwinai_drought.figures import (
    density_figure,
    drought_figure,
    drought_series_figure,
    nash_sutcliffe,
    scores_figure,
    series_figure,
)


def main(arguments: list[str]) -> int:
    """Run the command.

    Raises:
        ConfigurationError: the stores do not belong together.
    """
    options = _parser().parse_args(arguments)
    truth, predicted = GridStore(options.store), GridStore(options.predictions)
    cells = [int(cell) for cell in options.cells.split(",")] if options.cells else _typical_cells(truth, predicted)
    figures = {
        "series": series_figure(truth, predicted, cells, options.days),
        "scores": scores_figure(truth, predicted),
        "density": density_figure(truth, predicted),
    }
    if options.indices and options.predicted_indices:
        true, ours = (xr.open_zarr(path, chunks=None) for path in (options.indices, options.predicted_indices))
        figures["drought"] = drought_figure(true, ours, options.index, options.month)
        figures["drought_series"] = drought_series_figure(true, ours)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        path = options.output / f"{name}.png"
        figure.savefig(path)
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "itwinai drought figures",
        description="Draw predictions against the truth: series of some cells, maps of the score, density of all days; "
        "with indices, maps and series of droughts.",
    )
    parser.add_argument("--store", required=True, help="the store that was predicted from")
    parser.add_argument("--predictions", required=True, help="predictions on its grid: see itwinai drought grid")
    parser.add_argument("--indices", help="indices of the store: see itwinai drought indices")
    parser.add_argument("--predicted-indices", help="indices of the predictions, with --reference STORE")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the figures")
    parser.add_argument("--cells", help="numbers of cells, such as 17,340 (default: a low, a middle and a high score)")
    parser.add_argument("--days", type=int, default=730, help="days of the series (default: the last 730)")
    parser.add_argument("--index", default="ssmi", help="the index on the map (default: ssmi)")
    parser.add_argument("--month", help="month of the map, such as 2009-07 (default: the driest)")
    return parser


def _typical_cells(truth: GridStore, predicted: GridStore) -> list[int]:
    """Return the cells at the 10th, 50th and 90th percentile of the first target's score."""
    target = next(str(name) for name, array in predicted.dataset.data_vars.items() if array.ndim == 3)
    score = nash_sutcliffe(truth, predicted, target).ravel()
    order = np.argsort(np.where(np.isfinite(score), score, np.inf))[: int(np.isfinite(score).sum())]
    if not len(order):
        raise ConfigurationError("The predictions have no day in common with the truth of the store.")
    return list(dict.fromkeys(int(order[round(part * (len(order) - 1))]) for part in (0.1, 0.5, 0.9)))

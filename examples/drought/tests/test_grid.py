"""Predictions on the grid, and figures of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import xarray as xr
from itwinai_drought.cli import main
from itwinai_drought.data.datamodule import DroughtDataModule
from itwinai_drought.data.store import GridStore
from itwinai_drought.figures import drought_figure, nash_sutcliffe, scores_figure, series_figure
from itwinai_drought.grid import write_grid
from torch import Tensor

from itwinai import ItwinaiTrainer
from itwinai.callbacks import PredictionWriter
from itwinai.errors import ConfigurationError

WARM_UP, PERIOD = 90, ("1999-01-01", "2001-12-31")
FIRST = "1999-04-01"  # the day after the warm-up


class Repeat(L.LightningModule):
    """Predict the soil moisture and the rain that are given as forcings, with a bias."""

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        given = batch["forcings"][:, WARM_UP:]
        return {"vwc": given[..., 0] + 0.01, "precip": given[..., 1]}


@pytest.fixture(scope="module")
def samples(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What itwinai predict writes."""
    path = tmp_path_factory.mktemp("predictions") / "samples.zarr"
    data = DroughtDataModule(
        store=str(simulated),
        forcings=["vwc", "precip"],
        targets=[],
        predict_period=PERIOD,
        days=290,
        warm_up=WARM_UP,
        batch_size=64,
    )
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    ItwinaiTrainer(accelerator="cpu", devices=1, callbacks=PredictionWriter(path), **quiet).predict(Repeat(), data)
    return path


@pytest.fixture(scope="module")
def predictions(samples: Path, simulated: Path) -> Path:
    path = samples.with_name("grid.zarr")
    assert main(["grid", str(samples), "--store", str(simulated), "--output", str(path)]) == 0
    return path


def test_each_prediction_is_at_its_place_and_day(predictions: Path, simulated: Path) -> None:
    grid, truth = xr.open_zarr(predictions).load(), xr.open_zarr(simulated).load()
    truth = truth.sel(time=slice(FIRST, PERIOD[1]))
    assert set(grid.data_vars) == {"vwc", "precip"}
    for name in ("time", "lat", "lon"):
        assert np.array_equal(grid[name], truth[name]), name
    assert grid["vwc"].attrs == truth["vwc"].attrs and grid["vwc"].attrs["units"] == "m3/m3"
    np.testing.assert_array_equal(grid["precip"].values, truth["precip"].values)  # NaN in lakes, and nowhere else
    np.testing.assert_allclose(grid["vwc"].values, truth["vwc"].values + 0.01, rtol=1e-5)


def test_overlapping_days_are_of_the_window_that_begins_first(simulated: Path, tmp_path: Path) -> None:
    first = np.datetime64("1999-01-01").astype(int)
    samples = xr.Dataset(
        {"vwc": (("sample", "vwc_1"), np.array([[1, 1, 1, 1], [2, 2, 2, 2], [7, 8, 9, 10]], np.float32))},
        coords={"cell": ("sample", [3, 3, 14]), "day": ("sample", [first, first + 2, first + 1])},
    )
    samples.to_zarr(tmp_path / "samples.zarr")
    store = GridStore(str(simulated))
    write_grid(tmp_path / "samples.zarr", store, tmp_path / "grid.zarr")
    vwc = xr.open_zarr(tmp_path / "grid.zarr")["vwc"].load()
    assert vwc[:, 0, 3].values.tolist() == [1, 1, 1, 1, 2, 2]
    assert np.array_equal(vwc[:, 1, 2], [np.nan, 7, 8, 9, 10, np.nan], equal_nan=True)
    assert int(vwc.notnull().sum()) == 10
    assert str(vwc["time"].values[0])[:10] == "1999-01-01"

    beyond = samples.assign_coords(cell=("sample", [3, 3, 500]))
    beyond.to_zarr(tmp_path / "beyond.zarr")
    with pytest.raises(ConfigurationError, match="cell 500, and the store has 10 x 12"):
        write_grid(tmp_path / "beyond.zarr", store, tmp_path / "other.zarr")
    samples.drop_vars("day").to_zarr(tmp_path / "dayless.zarr")
    with pytest.raises(ConfigurationError, match="it has no day"):
        write_grid(tmp_path / "dayless.zarr", store, tmp_path / "other.zarr")
    with pytest.raises(ConfigurationError, match="is no Zarr store"):
        write_grid(tmp_path / "samples.parquet", store, tmp_path / "other.zarr")
    assert not (tmp_path / "other.zarr").exists()


def test_score_of_each_cell(predictions: Path, simulated: Path) -> None:
    truth, grid = GridStore(str(simulated)), GridStore(str(predictions))
    true = xr.open_zarr(simulated)["vwc"].sel(time=slice(FIRST, PERIOD[1])).values.astype(float)
    expected = 1 - 0.01**2 / true.var(axis=0)
    np.testing.assert_allclose(nash_sutcliffe(truth, grid, "vwc"), expected, rtol=1e-3)
    perfect = nash_sutcliffe(truth, grid, "precip")
    assert np.array_equal(np.isnan(perfect), np.isnan(true[0])) and np.nanmin(perfect) == 1


def test_figures_show_what_was_predicted(predictions: Path, simulated: Path, tmp_path: Path) -> None:
    true, ours = str(tmp_path / "true.zarr"), str(tmp_path / "ours.zarr")
    assert main(["indices", str(simulated), "--output", true]) == 0
    assert main(["indices", str(predictions), "--output", ours, "--reference", str(simulated)]) == 0
    arguments = ["figures", "--store", str(simulated), "--predictions", str(predictions)]
    arguments += ["--indices", true, "--predicted-indices", ours, "--output", str(tmp_path / "figures")]
    assert main(arguments) == 0
    names = {"series", "scores", "density", "drought", "drought_series"}
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == names
    assert all(path.stat().st_size > 10_000 for path in (tmp_path / "figures").iterdir())

    truth, grid = GridStore(str(simulated)), GridStore(str(predictions))
    axes = series_figure(truth, grid, [40, 41], days=100).axes
    assert len(axes) == 4
    of_truth, of_model = (line.get_ydata() for line in axes[2].lines)  # below the rain
    assert len(of_truth) == 100 and np.allclose(of_model - of_truth, 0.01, atol=1e-5)
    image = scores_figure(truth, grid).axes[1].images[0]
    np.testing.assert_allclose(image.get_array().filled(np.nan), nash_sutcliffe(truth, grid, "vwc"))
    left, right, bottom, top = image.get_extent()
    assert (round(left, 3), round(bottom, 3)) == (10.175, 45.575) and right > left and top > bottom

    index = xr.open_zarr(true, chunks=None), xr.open_zarr(ours, chunks=None)
    shown = drought_figure(*index).axes
    regional = index[0]["ssmi"].sel(time=slice("1999-07", None)).mean(("lat", "lon"))
    driest = str(regional["time"].values[int(regional.argmin())])[:7]
    assert shown[0].get_title() == f"true, {driest}" and shown[1].get_title() == f"predicted, {driest}"
    with pytest.raises(ConfigurationError, match="1991-05 is not predicted"):
        drought_figure(*index, month="1991-05")

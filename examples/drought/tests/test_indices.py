"""Drought indices: what distribution theory says of them, and what they say of a dry spell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from itwinai_drought.cli import main
from itwinai_drought.data.store import GridStore
from itwinai_drought.indices import INDICES, write_indices
from scipy import stats

from itwinai.errors import ConfigurationError


@pytest.fixture(scope="module")
def indices(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    output = tmp_path_factory.mktemp("indices") / "indices.zarr"
    assert main(["indices", str(simulated), "--output", str(output), "--months", "3"]) == 0
    return xr.open_zarr(output, chunks=None).load()


def test_each_index_is_standard_normal_in_the_calibration_period(indices: xr.Dataset, simulated: Path) -> None:
    assert set(indices.data_vars) == set(INDICES) == {"spi", "spei", "ssmi", "sri"}
    assert dict(indices.sizes) == {"time": 144, "lat": 10, "lon": 12}
    lake = xr.open_zarr(simulated)["mask_missing"].values == 1
    for name, index in indices.items():
        values = index.values[2:, ~lake]
        assert np.isfinite(values).all(), name
        assert np.isnan(index.values[:2]).all() and np.isnan(index.values[:, lake]).all(), name
        assert np.abs(values.mean(axis=0)).max() < 0.1 and np.abs(values.std(axis=0) - 1).max() < 0.1, name
        assert -4.5 < values.min() < -1.5 and 1.5 < values.max() < 4.5, name


def test_spi_is_what_scipy_says(indices: xr.Dataset, simulated: Path) -> None:
    precip = xr.open_zarr(simulated)["precip"][:, 4, 5].load().astype(float)
    means = precip.resample(time="MS").mean().rolling(time=3).mean()
    expected = np.full(len(means), np.nan)
    for month in range(1, 13):
        chosen = (means["time"].dt.month == month).values & np.isfinite(means.values)
        values = means.values[chosen]
        shape, _, scale = stats.gamma.fit(values, floc=0)  # by maximum likelihood, which Thom's formula comes close to
        expected[chosen] = stats.norm.ppf(stats.gamma.cdf(values, shape, 0, scale))
    np.testing.assert_allclose(indices["spi"][:, 4, 5], expected, atol=0.02)


def test_calibration_with_the_truth_shows_that_a_model_is_dry(simulated: Path, tmp_path: Path) -> None:
    truth = xr.open_zarr(simulated)[["vwc"]].isel(time=slice(365 * 6, None)).load()
    (truth * 0.9).to_zarr(tmp_path / "dry.zarr")
    paths = [str(tmp_path / name) for name in ("own.zarr", "by_truth.zarr")]
    arguments = ["indices", str(tmp_path / "dry.zarr"), "--output"]
    assert main([*arguments, paths[0]]) == 0
    calibration = ["--reference", str(simulated), "--calibration", "1990-01-01,1999-12-31"]
    assert main([*arguments, paths[1], *calibration]) == 0
    own, by_truth = (xr.open_zarr(path).load() for path in paths)
    assert list(by_truth) == ["ssmi"] and by_truth["ssmi"].attrs["calibration"] == "1990-01-01 to 1999-12-31"
    assert abs(float(own["ssmi"].mean())) < 0.05
    assert float(by_truth["ssmi"].mean()) < -0.7


def test_a_dry_spell_is_negative_and_incomplete_months_are_missing(simulated: Path, tmp_path: Path) -> None:
    dataset = xr.open_zarr(simulated)[["precip"]].load()
    dry = dataset.copy(deep=True)
    dry["precip"].loc["1995-06":"1995-08"] *= 0.05
    dry["precip"].loc["1997-03-05"] = np.nan
    dry = dry.isel(time=slice(10, None))
    dry.to_zarr(tmp_path / "dry.zarr")
    names = write_indices(GridStore(str(tmp_path / "dry.zarr")), tmp_path / "out.zarr", months=1)
    assert names == ["spi"]
    spi = xr.open_zarr(tmp_path / "out.zarr")["spi"].load()
    assert float(spi.sel(time=slice("1995-06", "1995-08")).max()) < -1
    assert np.isnan(spi.sel(time=["1990-01-01", "1997-03-01"])).all()
    assert np.isfinite(spi.sel(time="1997-04-01")).sum() == np.isfinite(spi[5]).sum() > 100


def test_what_cannot_be_computed_is_an_error(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.zarr"
    arguments = ["indices", str(simulated), "--output", str(output)]
    for further, message in {
        "--calibration=1995-01-01,1996-06-30": "at least two values",
        "--calibration=1995": "must be two days",
        "--months=0": "--months must be at least 1",
    }.items():
        assert main([*arguments, further]) == 1
        assert message in capsys.readouterr().err
        assert not output.exists()
    only_temperature = tmp_path / "temp.zarr"
    xr.open_zarr(simulated)[["temp"]].load().to_zarr(only_temperature)
    with pytest.raises(ConfigurationError, match="ssmi needs vwc"):
        write_indices(GridStore(str(only_temperature)), output)

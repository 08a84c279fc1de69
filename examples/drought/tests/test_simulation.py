"""The simulated region: water that is conserved, weather that is plausible, and stores that can be made again."""

from __future__ import annotations

import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from huge_store import write_huge_store
from itwinai_drought.cli import main
from itwinai_drought.simulation import hydrology
from itwinai_drought.simulation import store as store_module
from itwinai_drought.simulation.grid import Block, Grid
from itwinai_drought.simulation.hydrology import HydrologicalModel
from itwinai_drought.simulation.landscape import Landscape, Maps
from itwinai_drought.simulation.store import Region, write_store
from itwinai_drought.simulation.weather import Weather, WeatherGenerator
from scipy.integrate import solve_ivp

from itwinai.errors import ConfigurationError

GRID = Grid(8, 9, spacing=0.1)
WHOLE = Block(slice(0, 8), slice(0, 9))


@pytest.fixture(scope="module")
def maps() -> Maps:
    return Landscape(GRID, seed=1).maps(WHOLE)


def weather_of(maps: Maps, years: int, seed: int = 1) -> Weather:
    time = pd.date_range("1990-01-01", periods=365 * years)
    (weather,) = WeatherGenerator(GRID, seed).segments(WHOLE, maps, time, len(time))
    return weather


def extreme_weather(cells: int, days: int) -> Weather:
    """Cloudbursts, frost and heat at random: none of it plausible, all of it possible."""
    random = np.random.default_rng(0)
    shape = (days, cells)
    precip = np.where(random.random(shape) < 0.3, random.exponential(60, shape), 0.0)
    warm = np.sin(np.arange(days) / 30)[:, None] * 20
    return Weather(precip, random.uniform(0, 15, shape), warm + random.normal(0, 8, shape))


@pytest.mark.parametrize("substeps", [1, hydrology.SUBSTEPS])
def test_no_water_is_lost_or_made_whatever_the_weather(maps: Maps, substeps: int) -> None:
    plausible = weather_of(maps, 20)
    for weather in (plausible, extreme_weather(len(maps.lake), 3000)):
        model = HydrologicalModel(maps, substeps)
        state = model.start()
        before = state.total()
        water = model.run(weather, state)
        came, left = weather.precip.sum(axis=0), (water.actevap + water.q).sum(axis=0)
        assert np.abs(came - left - (state.total() - before)).max() < 1e-9
        assert water.q.min() >= 0 and np.all(water.actevap >= 0)
        assert np.all(water.actevap <= weather.pet + 1e-12), "more evaporates than can"
        assert np.all((water.vwc >= maps.theta_r) & (water.vwc <= maps.theta_s + 1e-12))
        assert min(values.min() for values in vars(state).values()) >= 0
    assert 0.2 < (water.q.sum() / weather.precip.sum()) < 0.95


def test_each_day_is_balanced_by_itself(maps: Maps) -> None:
    weather, model = extreme_weather(len(maps.lake), 200), HydrologicalModel(maps)
    state = model.start()
    for day in range(200):
        before = state.total()
        one = Weather(*(values[day : day + 1] for values in vars(weather).values()))
        water = model.run(one, state)
        assert np.allclose(state.total() - before, (one.precip - water.actevap - water.q)[0], rtol=0, atol=1e-11)


def test_snow_lies_until_it_thaws(maps: Maps) -> None:
    days, cells = 120, len(maps.lake)
    none = np.zeros((days, cells))
    dry = Weather(none, none, np.where(np.arange(days) < 60, -5.0, 5.0)[:, None] + none)
    snowfall = none.copy()
    snowfall[5] = 100.0
    model = HydrologicalModel(maps)
    without, with_snow = (model.run(one, model.start()) for one in (dry, replace(dry, precip=snowfall)))
    more = with_snow.q - without.q
    assert np.all(more[:60] == 0)
    assert np.all(with_snow.vwc[59] == without.vwc[59])
    assert np.all(with_snow.vwc[64] > without.vwc[64] + 0.005)
    assert np.all(more[60:].sum(axis=0) > 5)


def test_soil_drains_as_the_equation_says(maps: Maps) -> None:
    model, state = HydrologicalModel(maps), HydrologicalModel(maps).start()
    room = (maps.theta_s - maps.theta_r) * maps.rooting_depth
    state.upper_soil = 0.9 * room
    none = np.zeros((10, len(maps.lake)))
    computed = model.run(Weather(none, none, none + 10), state).vwc
    k = maps.k_sat * np.exp(-0.001 * maps.rooting_depth)
    solved = solve_ivp(
        lambda _, content: -k * (content / room) ** maps.c,
        (0, 10),
        0.9 * room,
        t_eval=np.arange(1, 11),
        rtol=1e-9,
        atol=1e-9,
        method="LSODA",
    )
    expected = maps.theta_r + solved.y.T / maps.rooting_depth
    # Where the lower soil is full for a moment, the upper has to wait.
    assert np.quantile(np.abs(computed - expected), 0.9) < 1e-6


def test_more_steps_per_day_change_little(maps: Maps) -> None:
    weather = weather_of(maps, 3)
    few, usual, many = (
        HydrologicalModel(maps, n).run(weather, HydrologicalModel(maps).start()).vwc for n in (1, 8, 96)
    )
    assert hydrology.SUBSTEPS == 8
    assert np.abs(usual - many).max() < 0.01
    assert np.abs(few - many).max() > 0.03, "the steps would be for nothing"


def test_weather_is_the_same_in_any_block_and_segment(maps: Maps) -> None:
    time = pd.date_range("1990-01-01", periods=400)
    generator = WeatherGenerator(GRID, 1)
    (whole,) = generator.segments(WHOLE, maps, time, 400)
    part = Block(slice(3, 6), slice(2, 9))
    pieces = list(generator.segments(part, Landscape(GRID, 1).maps(part), time, 90, first=25))
    assert [len(one.precip) for one in pieces] == [25, 90, 90, 90, 90, 15]
    for name, values in vars(whole).items():
        inside = values.reshape(400, 8, 9)[:, 3:6, 2:9].reshape(400, -1)
        assert np.allclose(inside, np.concatenate([getattr(one, name) for one in pieces]), atol=1e-9)


def test_weather_has_seasons_height_distance_and_droughts_of_years(maps: Maps) -> None:
    weather = weather_of(maps, 60)
    day = np.arange(len(weather.temp)) % 365
    july, january = (weather.temp[(day >= first) & (day < first + 31)].mean() for first in (181, 0))
    assert 14 < july - january < 24
    mean = weather.temp.mean(axis=0)
    per_km = np.polyfit(maps.elevation / 1000, mean, 1)[0]
    assert -8.5 < per_km < -4.5
    assert 0.2 < (weather.precip > 0.1).mean() < 0.45
    yearly = weather.precip.reshape(60, 365, -1).sum(axis=1)
    assert 500 < yearly.mean() < 2500
    assert 0.1 < (yearly.std(axis=0) / yearly.mean(axis=0)).mean() < 0.4
    regional = yearly.mean(axis=1)
    assert np.corrcoef(regional[1:], regional[:-1])[0, 1] > 0.1, "no drought lasts longer than a year"

    grid = weather.precip.reshape(-1, 8, 9)
    near, far = (np.corrcoef(grid[:, 0, 0], grid[:, 0, column])[0, 1] for column in (1, 8))
    assert near > far + 0.1 and far > 0.1
    wet = weather.precip > 0
    assert wet[1:][wet[:-1]].mean() > wet.mean() + 0.1, "wet days come in spells"


def test_same_seed_same_store(tmp_path: Path) -> None:
    region = Region(Grid(4, 6, spacing=0.1), years=1, seed=5, spin_up=1, chunks=(100, 4, 3))
    stores = {}
    for name, one in {
        "a": region,
        "b": region,
        "chunks": replace(region, chunks=(365, 2, 6)),
        "c": replace(region, seed=6),
    }.items():
        assert write_store(tmp_path / name, one) < 1e-9
        stores[name] = xr.open_zarr(tmp_path / name).load()
    xr.testing.assert_identical(stores["a"], stores["b"])
    xr.testing.assert_allclose(stores["a"], stores["chunks"], rtol=1e-5)
    assert not np.allclose(stores["a"]["vwc"], stores["c"]["vwc"], equal_nan=True)
    assert not list(tmp_path.glob(".part-*"))


def test_store_holds_what_the_model_makes_of_its_weather(simulated: Path, region: Region) -> None:
    dataset = xr.open_zarr(simulated).load()
    assert dict(dataset.sizes) == {"time": 4383, "lat": 10, "lon": 12}
    assert str(dataset["time"].values[-1])[:10] == "2001-12-31"
    assert {name: dataset[name].attrs["units"] for name in ("precip", "temp", "vwc", "q")} == {
        "precip": "mm/day",
        "temp": "degC",
        "vwc": "m3/m3",
        "q": "mm/day",
    }
    lake = dataset["mask_missing"].values == 1
    assert 0 < lake.mean() < 0.3
    for name in ("precip", "vwc", "thetaS"):
        assert np.array_equal(np.isnan(dataset[name].values), np.broadcast_to(lake, dataset[name].shape)), name
    assert dataset.attrs["water_balance_error_mm"] < 1e-9

    maps = Landscape(region.grid, region.seed).maps(Block(slice(0, 10), slice(0, 12)))
    land = ~lake.ravel()
    on_land = Maps(**{name: values[land] for name, values in asdict(maps).items()})
    series = {name: dataset[name].values.reshape(4383, -1)[:, land].astype(float) for name in ("precip", "pet", "temp")}
    model = HydrologicalModel(on_land)
    water = model.run(Weather(**series), model.start())
    after = slice(2000, None)  # another beginning is forgotten
    for name, values in vars(water).items():
        stored = dataset[name].values.reshape(4383, -1)[after, land]
        assert np.abs(values[after] - stored).max() < 0.02 * stored.max(), name


def test_memory_does_not_grow_with_the_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_CELLS", 100)
    peaks = []
    for side, years in ((10, 1), (20, 2)):
        tracemalloc.start()
        region = Region(Grid(side, side), years=years, spin_up=0, chunks=(120, 10, 10))
        write_store(tmp_path / f"{side}.zarr", region)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_command_says_what_it_made_and_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "store.zarr"
    arguments = ["simulate", "--output", str(output), "--lat", "3", "--lon", "4", "--years", "1", "--spin-up", "0"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "3 x 4 cells, 365 days from 1990-01-01" in printed and "water balance" in printed
    assert main(arguments) == 1
    assert "exists" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    for wrong, message in {
        "--years=0": "--years must be at least 1; got 0",
        "--start=1990": "--start must be a date",
        "--chunks=1,2": "--chunks must be three numbers",
        "--south=89.99": "latitudes",
    }.items():
        assert main([*arguments, "--overwrite", wrong]) == 1
        assert message in capsys.readouterr().err
    assert main(["simulte"]) == 2
    assert "simulate" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="exists"):
        write_store(output, Region(Grid(1, 1), years=1))


def test_huge_store_repeats_the_small_one(simulated: Path, tmp_path: Path) -> None:
    size = write_huge_store(simulated, tmp_path / "huge.zarr", (2, 3))
    small, huge = xr.open_zarr(simulated), xr.open_zarr(tmp_path / "huge.zarr")
    assert dict(huge.sizes) == {"time": 4383, "lat": 20, "lon": 36}
    assert size > 6 * small["vwc"].nbytes * 6
    assert np.all(np.diff(huge["lat"]) > 0) and np.array_equal(huge["time"], small["time"])
    corner = huge["vwc"].isel(lat=slice(10, 20), lon=slice(24, 36))
    assert np.array_equal(corner.values, small["vwc"].values, equal_nan=True)
    assert np.array_equal(huge["mask_missing"].values[:10, 12:24], small["mask_missing"].values)

"""Stores are read as they are, samples are what they say, and what is held out stays out."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from itwinai_drought.data.datamodule import DroughtDataModule
from itwinai_drought.data.names import WFLOW_STANDARD_NAMES
from itwinai_drought.data.samplers import CellWindowSampler
from itwinai_drought.data.splits import Period, check_disjoint_cells, split_cells, split_days
from itwinai_drought.data.statistics import training_statistics
from itwinai_drought.data.store import GridStore
from itwinai_drought.data.windows import Windows
from small_store import STATICS, write

from itwinai.errors import ConfigurationError

TIMES = np.arange("2001-01-01", "2003-01-01", dtype="M8[D]").astype("M8[ns]")


def set_up(options: dict[str, Any], **others: Any) -> DroughtDataModule:
    data = DroughtDataModule(**options | others)
    data.setup("fit")
    return data


def test_store_reads_what_xarray_reads_and_keeps_no_more_than_its_limit(store_path: str, dataset: xr.Dataset) -> None:
    store = GridStore(store_path, cache_mb=0.05)  # 50 kB: 7 blocks of 100 x 4 x 4 float32
    for start, stop, cell in ((0, 730, 17), (95, 205, 17), (199, 200, 95), (700, 730, 40)):
        expected = dataset["precip"].values[start:stop, cell // 12, cell % 12]
        np.testing.assert_array_equal(store.read("precip", start, stop, cell), expected)
        assert store._bytes <= 50e3
        assert store._bytes == sum(block.nbytes for block in store._blocks.values())
    copied = pickle.loads(pickle.dumps(store))
    assert not copied._blocks  # neither handles nor blocks travel to workers
    np.testing.assert_array_equal(copied.read("vwc", 3, 9, 5), dataset["vwc"].values[3:9, 0, 5])


def test_names_of_wflow_of_ones_own_and_of_dimensions(tmp_path: Path, dataset: xr.Dataset) -> None:
    known = {old: new for old, new in WFLOW_STANDARD_NAMES.items() if old in dataset}
    wflow = dataset.rename(known | {"lat": "y", "lon": "x"}).transpose("y", "x", "time")
    layered = wflow.rename({known["vwc"]: "sm"}).assign(layered=wflow[known["q"]].expand_dims(layer=2))
    moving = [name for name in layered.data_vars if "time" in layered[name].dims and name != "layered"]
    path = tmp_path / "wflow.nc"
    layered.to_netcdf(path, engine="h5netcdf", encoding={name: {"chunksizes": (4, 3, 100)} for name in moving})
    store = GridStore(str(path), names={"vwc": "sm"})
    assert store.grid == (8, 12)
    assert store.block_shape("precip") == (100, 4, 3)
    for name in ("precip", "vwc", "q"):
        np.testing.assert_array_equal(store.read(name, 98, 103, 30), dataset[name].values[98:103, 2, 6])
    np.testing.assert_array_equal(store.read_map("c"), dataset["c"].values)
    with pytest.raises(ConfigurationError, match=r"select: \{layer: 0\}"):
        store.read("layered", 0, 9, 0)
    np.testing.assert_array_equal(
        GridStore(str(path), select={"layer": 1}).read("layered", 0, 9, 5), dataset["q"].values[:9, 0, 5]
    )
    with pytest.raises(ConfigurationError, match=r"no variable 'precipitation'.*names: \{precipitation: ...\}"):
        store.read("precipitation", 0, 9, 0)
    with pytest.raises(ConfigurationError, match="itwinai drought simulate"):
        GridStore(str(tmp_path / "nowhere.zarr")).dataset  # noqa: B018 - it opens


def test_zarr_and_netcdf_in_several_files_give_the_same_samples(
    tmp_path: Path, dataset: xr.Dataset, options: dict[str, Any]
) -> None:
    weather = write(dataset[["precip", "pet", "temp"]], tmp_path / "weather.nc")
    rest = write(dataset.drop_vars(["precip", "pet", "temp"]), tmp_path / "rest.zarr")
    one, several = set_up(options), set_up(options, store=[weather, rest])
    np.testing.assert_array_equal(one.statistics.forcings, several.statistics.forcings)
    for index in (0, 7):
        for key, value in one.part("test", "test")[index].items():
            torch.testing.assert_close(value, several.part("test", "test")[index][key], equal_nan=True)
    shorter = write(dataset.drop_vars(["precip", "pet", "temp"]).isel(lat=slice(4)), tmp_path / "other.zarr")
    with pytest.raises(ConfigurationError, match="8 and 4 values of 'lat'"):
        set_up(options, store=[weather, shorter])


def test_samples_hold_their_cell_and_their_days(options: dict[str, Any], dataset: xr.Dataset) -> None:
    data = set_up(options)
    part = data.part("test", "test")
    assert len(part) == len(part.cells) * len(part.windows)
    index = len(part.windows) + 1  # the second window of the second cell
    sample, cell = part[index], int(part.cells[1])
    row, column = divmod(cell, 12)
    start = data.periods["test"].start + 30
    truth = dataset.isel(lat=row, lon=column)
    np.testing.assert_array_equal(sample["forcings"][:, 0], truth["precip"].values[start : start + 60])
    np.testing.assert_array_equal(sample["targets"][:, 2], truth["q"].values[start + 30 : start + 60])
    np.testing.assert_array_equal(sample["statics"], [truth[name].item() for name in STATICS])
    assert (int(sample["cell"]), int(sample["day"]), int(sample["warm_up"])) == (cell, start + 30, 30)
    where = part.coordinates
    assert where["lat"][index] == truth["lat"].item()
    assert where["lon"][index] == truth["lon"].item()
    assert where["day"][index] == (TIMES[start + 30].astype("M8[D]")).astype(int)


def test_tiles_count_each_day_once(options: dict[str, Any], dataset: xr.Dataset) -> None:
    data = set_up(options)
    part = data.part("val", "val")
    counted = np.zeros(730, int)
    for number in range(len(part.windows)):  # of the first cell
        sample = part[number]
        first = int(sample["day"])
        counted[first : first + 30] += np.isfinite(sample["targets"][:, 0].numpy())
    period = data.periods["val"]
    np.testing.assert_array_equal(counted[period.start + 30 : period.stop], 1)
    assert counted.sum() == len(period) - 30


def test_masked_cells_and_missing_maps_are_left_out(
    tmp_path: Path, dataset: xr.Dataset, options: dict[str, Any]
) -> None:
    holes = dataset.copy(deep=True)
    holes["c"][3, 3] = np.nan
    data = set_up(options, store=write(holes, tmp_path / "holes.zarr"))
    cells = np.concatenate(list(data.cells.values()))
    assert set(range(96)) - set(cells.tolist()) == {0, 5 * 12 + 7, 3 * 12 + 3}
    predicted = data.predict_dataloader().dataset
    assert sorted(set(predicted.cells.tolist())) == sorted(cells.tolist())
    with pytest.raises(ConfigurationError, match="No cell has data"):
        set_up(options, masks=["thetaS"])


def test_parts_have_neither_days_nor_cells_in_common(options: dict[str, Any]) -> None:
    data = set_up(options, buffer=1)
    days, cells = {}, {}
    for name, loader in (
        ("train", data.train_dataloader()),
        ("val", data.val_dataloader()),
        ("test", data.test_dataloader()),
    ):
        part = loader.dataset
        windows = part.windows
        days[name] = {day for n in range(len(windows)) for day in range(windows.start(n), windows.start(n) + 60)}
        cells[name] = set(part.cells.tolist())
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not days[one] & days[other]
        assert not cells[one] & cells[other]
    held_out = [divmod(cell, 12) for cell in cells["val"] | cells["test"]]
    for row, column in (divmod(cell, 12) for cell in cells["train"]):
        assert all(max(abs(row - r), abs(column - c)) > 1 for r, c in held_out)


def test_an_overlap_is_an_error() -> None:
    periods = {"train": ["2001-01-01", "2001-12-31"], "val": ["2001-12", "2002-03"]}
    with pytest.raises(ConfigurationError, match="'train' and 'val' overlap.*2001-12-01 to 2001-12-31"):
        split_days(TIMES, periods)
    periods["val"] = ["2002", "2002"]
    assert split_days(TIMES, periods) == {"train": Period(0, 365), "val": Period(365, 730)}
    with pytest.raises(ConfigurationError, match="has no day in the store, which has 2001-01-01 to 2002-12-31"):
        split_days(TIMES, {"test": ["2005", "2006"]})
    with pytest.raises(ConfigurationError, match="2 cells in common"):
        check_disjoint_cells({"train": np.array([1, 2, 3]), "test": np.array([2, 3])})
    with pytest.raises(ConfigurationError, match="No cells are left for 'train'"):
        split_cells(np.ones((8, 8), bool), {"val": 0.25, "test": 0.25}, block=4, buffer=8, seed=0)
    with pytest.raises(ConfigurationError, match="holds no window of 60 days"):
        Windows(Period(0, 50), 60, 30, 1)
    with pytest.raises(ConfigurationError, match="no day to predict"):
        Windows(Period(0, 90), 60, 60, 1)


def test_statistics_are_those_of_the_training_part_alone(options: dict[str, Any], dataset: xr.Dataset) -> None:
    data = set_up(options)
    rows, columns = np.divmod(data.cells["train"], 12)
    train = dataset["precip"].values[: data.periods["train"].stop, rows, columns].astype(float)
    np.testing.assert_allclose(data.statistics.forcings[:, 0], [train.mean(), train.std()], rtol=1e-5)
    maps = dataset["KsatVer"].values[rows, columns]
    np.testing.assert_allclose(data.statistics.statics[:, 2], [maps.mean(), maps.std()], rtol=1e-5)
    arguments = (data.store, ["temp"], [], ["q"], data.cells["train"], data.periods["train"])
    few = [training_statistics(*arguments, blocks=5, seed=seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(few[0].forcings, few[1].forcings)
    assert (few[0].forcings != few[2].forcings).all()
    temp = dataset["temp"].values[: data.periods["train"].stop, rows, columns]
    assert abs(few[0].forcings[0, 0] - temp.mean()) < temp.std()


def test_an_epoch_takes_part_of_the_windows_and_another_epoch_others(options: dict[str, Any]) -> None:
    part = set_up(options).train_dataloader().dataset
    sampler = CellWindowSampler(part, cell_fraction=0.5, window_fraction=0.1, mixed=3, seed=7)
    first, again = list(sampler), list(CellWindowSampler(part, 0.5, 0.1, 3, seed=7))
    assert first == again
    assert len(first) == len(set(first)) == len(sampler)
    assert len(sampler) == round(0.5 * len(part.cells)) * round(0.1 * len(part.windows))
    assert first != sorted(first)
    sampler.set_epoch(1)
    second = list(sampler)
    assert len(set(first) & set(second)) < 0.3 * len(first)
    whole = CellWindowSampler(part, mixed=2)
    assert sorted(whole) == list(range(len(part)))
    with pytest.raises(ConfigurationError, match="window_fraction must be above 0"):
        CellWindowSampler(part, window_fraction=0)


def test_an_epoch_reads_each_block_about_once(options: dict[str, Any]) -> None:
    data = set_up(options, cache_mb=0.4)
    part = data.train_dataloader().dataset
    store, reads = part.store, []
    plain = store.read_block
    store.read_block = lambda name, *block: (reads.append((name, str(block))), plain(name, *block))[1]
    sampler = CellWindowSampler(part, window_fraction=0.1, mixed=2)
    for index in sampler:
        part[index]
    assert len(reads) < 3 * len(set(reads))  # windows reach into the next block, and so does the last of some groups
    in_order, reads[:] = len(reads), []
    for index in np.random.default_rng(0).permutation(sorted(sampler))[:300].tolist():
        part[index]
    assert len(reads) / 300 > 5 * in_order / len(sampler)

"""What all tests share: a small simulated region, and a small store whose every value is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_store
import xarray as xr
from itwinai_drought.simulation.grid import Grid
from itwinai_drought.simulation.store import Region, write_store


@pytest.fixture(scope="session")
def dataset() -> xr.Dataset:
    """What the store of `store_path` holds."""
    return small_store.make_dataset()


@pytest.fixture(scope="session")
def store_path(dataset: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a Zarr store; forked workers read it, too."""
    return small_store.write(dataset, tmp_path_factory.mktemp("stores") / "region.zarr")


@pytest.fixture
def options(store_path: str) -> dict[str, Any]:
    """Arguments of a datamodule that is ready in a moment."""
    return {
        "store": store_path,
        "statics": small_store.STATICS,
        "days": 60,
        "warm_up": 30,
        "block": 2,
        "buffer": 0,
        "window_fraction": 0.02,
        "batch_size": 32,
    }


@pytest.fixture(scope="session")
def region() -> Region:
    """What `simulated` is the store of."""
    return Region(Grid(10, 12, spacing=0.05), years=12, seed=3, spin_up=1, chunks=(365, 5, 6))


@pytest.fixture(scope="session")
def simulated(region: Region, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a simulated store."""
    path = tmp_path_factory.mktemp("region") / "store.zarr"
    write_store(path, region)
    return path

"""A small simulated region that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from itwinai_drought.simulation.grid import Grid
from itwinai_drought.simulation.store import Region, write_store

REGION = Region(Grid(10, 12, spacing=0.05), years=12, seed=3, spin_up=1, chunks=(365, 5, 6))


@pytest.fixture(scope="session")
def region() -> Region:
    return REGION


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 x 12 cells, 12 years from 1990."""
    path = tmp_path_factory.mktemp("region") / "store.zarr"
    write_store(path, REGION)
    return path

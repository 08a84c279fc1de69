"""`Grid`: the cells of a region, and blocks of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_KM_PER_DEGREE = 111.2


@dataclass(frozen=True)
class Block:
    """A rectangle of cells.

    Attributes:
        rows: places along latitude.
        columns: places along longitude.
    """

    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


@dataclass(frozen=True)
class Grid:
    """A regular grid of latitude and longitude.

    Attributes:
        rows: number of cells along latitude, from south to north.
        columns: number of cells along longitude, from west to east.
        south: latitude of the first row of cell centres, in degrees.
        west: longitude of the first column of cell centres, in degrees.
        spacing: distance of cell centres, in degrees.
    """

    rows: int
    columns: int
    south: float = 45.6
    west: float = 10.2
    spacing: float = 0.02

    @property
    def lat(self) -> Array:
        """Latitude of each row, in degrees."""
        return self.south + self.spacing * np.arange(self.rows, dtype=np.float64)

    @property
    def lon(self) -> Array:
        """Longitude of each column, in degrees."""
        return self.west + self.spacing * np.arange(self.columns, dtype=np.float64)

    def places(self, block: Block) -> tuple[Array, Array, Array]:
        """Return x and y in km, and the latitude, of each cell of a block; each of shape (cells,)."""
        lat, lon = np.meshgrid(self.lat[block.rows], self.lon[block.columns], indexing="ij")
        middle = np.radians(self.lat.mean())
        x = (lon - self.west) * _KM_PER_DEGREE * np.cos(middle)
        return x.ravel(), ((lat - self.south) * _KM_PER_DEGREE).ravel(), lat.ravel()

    def blocks(self, chunk: tuple[int, int], cells: int) -> Iterator[Block]:
        """Yield blocks that cover the grid, whole chunks each, of about so many cells and at least one chunk."""
        rows, columns = chunk
        per_chunk = rows * columns
        columns *= max(1, min(cells // per_chunk, -(-self.columns // columns)))
        rows *= max(1, cells // (rows * columns))
        for row in range(0, self.rows, rows):
            for column in range(0, self.columns, columns):
                yield Block(slice(row, min(row + rows, self.rows)), slice(column, min(column + columns, self.columns)))

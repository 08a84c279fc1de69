"""`write_huge_store`: a store larger than the disk, for tests of memory."""

from __future__ import annotations

import os
from pathlib import Path

import zarr


def write_huge_store(tile: Path, path: Path, repeat: tuple[int, int]) -> int:
    """Lay copies of a small store side by side, without copying: chunks are links to those of the small store.

    Reading it costs memory and time like reading any store of its size. It takes no space but that of the links.

    Args:
        tile: a store of whole chunks: its rows and columns are multiples of theirs.
        path: of the new store, on the same file system.
        repeat: copies along latitude and longitude.

    Returns:
        Its size in bytes, before compression.
    """
    small, huge = zarr.open_group(tile, mode="r"), zarr.open_group(path, mode="w", zarr_format=3)
    size = 0
    for name, array in small.arrays():
        names = array.metadata.dimension_names
        times = [dict(zip(("lat", "lon"), repeat, strict=True)).get(one, 1) for one in names]
        shape = tuple(length * number for length, number in zip(array.shape, times, strict=True))
        made = huge.create_array(
            name,
            shape=shape,
            chunks=array.chunks,
            dtype=array.dtype,
            fill_value=array.fill_value,
            dimension_names=names,
            attributes=dict(array.attrs),
        )
        size += made.nbytes
        if len(names) == 1:
            first, step = float(array[0]), float(array[1] - array[0])
            made[:] = [first + step * place for place in range(shape[0])]
            continue
        of_tile = [length // chunk for length, chunk in zip(array.shape, array.chunks, strict=True)]
        assert all(length % chunk == 0 for length, chunk in list(zip(array.shape, array.chunks, strict=True))[-2:])
        for chunk in (tile / name / "c").rglob("*"):
            if chunk.is_file():
                place = [int(part) for part in chunk.relative_to(tile / name / "c").parts]
                for row in range(repeat[0]):
                    for column in range(repeat[1]):
                        moved = [*place[:-2], place[-2] + row * of_tile[-2], place[-1] + column * of_tile[-1]]
                        link = path / name / "c" / Path(*map(str, moved))
                        link.parent.mkdir(parents=True, exist_ok=True)
                        os.link(chunk, link)
    zarr.consolidate_metadata(huge.store)
    return size

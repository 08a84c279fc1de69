"""``itwinai drought grid``: turn a file of predictions into a gridded store."""

from __future__ import annotations

import argparse
from pathlib import Path

from itwinai_drought.data.store import GridStore
from itwinai_drought.grid import write_grid


def main(arguments: list[str]) -> int:
    """Run the command.

    Raises:
        ConfigurationError: the predictions do not belong to the store, or the output exists.
    """
    parser = argparse.ArgumentParser(
        "itwinai drought grid",
        description="Turn a file of predictions, whose rows are cells and windows, into variables (time, lat, lon).",
    )
    parser.add_argument("predictions", type=Path, help="what itwinai predict --output predictions.zarr has written")
    parser.add_argument("--store", required=True, help="the store that was predicted from")
    parser.add_argument("--output", type=Path, required=True, help="folder of the new Zarr store")
    parser.add_argument("--overwrite", action="store_true", help="replace a store that exists")
    options = parser.parse_args(arguments)
    names = write_grid(options.predictions, GridStore(options.store), options.output, overwrite=options.overwrite)
    print(f"{options.output}: {', '.join(names)} on the grid of {options.store}")
    return 0

"""``itwinai drought simulate``: make a store of weather, maps and simulated water."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import date
from pathlib import Path

from itwinai.errors import ConfigurationError
from itwinai_drought.simulation.grid import Grid
from itwinai_drought.simulation.store import Region, write_store


def main(arguments: list[str]) -> int:
    """Run the command.

    Raises:
        ConfigurationError: the store exists, or a number makes no sense.
    """
    options = _parser().parse_args(arguments)
    region = _region(options)
    began = time.monotonic()
    error = write_store(options.output, region, overwrite=options.overwrite, progress=_Progress())
    cells, days = options.lat * options.lon, len(region.time)
    print(
        f"{options.output}: {options.lat} x {options.lon} cells, {days:,} days from {options.start}, "
        f"{6 * 4 * cells * days / 1e9:.2f} GB before compression, in {time.monotonic() - began:.0f} s\n"
        f"The water balance of each cell closes to {error:.0e} mm."
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "itwinai drought simulate",
        description=(
            "Simulate an invented region: hills and soils, daily weather with droughts of several years, and a "
            "hydrological model that says how wet the soil is, how much evaporates and how much runs off. The same "
            "numbers give the same store."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the Zarr store")
    parser.add_argument("--lat", type=int, default=40, help="number of cells from south to north")
    parser.add_argument("--lon", type=int, default=60, help="number of cells from west to east")
    parser.add_argument("--years", type=int, default=20, help="length of the record")
    parser.add_argument("--start", default="1990-01-01", help="first day")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another region with other weather")
    parser.add_argument("--spin-up", type=int, default=2, help="years before the first day that are not written")
    parser.add_argument("--south", type=float, default=45.6, help="latitude of the southernmost cells")
    parser.add_argument("--west", type=float, default=10.2, help="longitude of the westernmost cells")
    parser.add_argument("--spacing", type=float, default=0.02, help="distance of cells in degrees")
    parser.add_argument("--chunks", default="365,20,20", help="days, rows and columns of a chunk of the store")
    parser.add_argument("--overwrite", action="store_true", help="replace a store that exists")
    return parser


def _region(options: argparse.Namespace) -> Region:
    for name, least in {"lat": 1, "lon": 1, "years": 1, "seed": 0, "spin_up": 0}.items():
        if getattr(options, name) < least:
            raise ConfigurationError(f"--{name.replace('_', '-')} must be at least {least}; got {vars(options)[name]}.")
    try:
        date.fromisoformat(options.start)
    except ValueError:
        raise ConfigurationError(f"--start must be a date such as 1990-01-01; got {options.start}.") from None
    numbers = options.chunks.split(",")
    if len(numbers) != 3 or not all(number.strip().isdecimal() and int(number) for number in numbers):
        raise ConfigurationError(f"--chunks must be three numbers such as 365,20,20; got {options.chunks}.")
    days, rows, columns = (int(number) for number in numbers)
    if not -90 <= options.south <= options.south + options.spacing * (options.lat - 1) <= 90:
        raise ConfigurationError("The latitudes must lie between -90 and 90: reduce --lat or --spacing.")
    return Region(
        grid=Grid(options.lat, options.lon, options.south, options.west, options.spacing),
        start=options.start,
        years=options.years,
        seed=options.seed,
        spin_up=options.spin_up,
        chunks=(days, rows, columns),
    )


class _Progress:
    """Print how far the simulation is, at most every ten seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._last > 10:
            print(f"{done:,} of {total:,} cells", file=sys.stderr, flush=True)
            self._last = time.monotonic()

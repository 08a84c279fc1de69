"""``itwinai drought indices``: compute drought indices of a store."""

from __future__ import annotations

import argparse
from pathlib import Path

from itwinai.errors import ConfigurationError
from itwinai_drought.data.store import GridStore
from itwinai_drought.indices import INDICES, write_indices


def main(arguments: list[str]) -> int:
    """Run the command.

    Raises:
        ConfigurationError: no index can be computed, or the output exists.
    """
    known = "; ".join(
        f"{name}, the {index.long_name}, of {' and '.join(index.inputs)}" for name, index in INDICES.items()
    )
    parser = argparse.ArgumentParser(
        "itwinai drought indices",
        description=f"Compute the drought indices that a store has the variables for: {known}.",
    )
    parser.add_argument("store", help="store with daily variables: a simulation, or predictions on a grid")
    parser.add_argument("--output", type=Path, required=True, help="folder of the new Zarr store")
    parser.add_argument(
        "--reference", help="store that calibrates the indices, such as the truth for predictions (default: the store)"
    )
    parser.add_argument("--calibration", help="first and last day, such as 1990-01-01,2009-12-31 (default: all)")
    parser.add_argument("--months", type=int, default=3, help="over how many months a value is a mean (default: 3)")
    parser.add_argument("--overwrite", action="store_true", help="replace a store that exists")
    options = parser.parse_args(arguments)
    calibration = options.calibration.split(",") if options.calibration else None
    if calibration and len(calibration) != 2:
        raise ConfigurationError(
            f"--calibration must be two days such as 1990-01-01,2009-12-31; got {options.calibration}."
        )
    if options.months < 1:
        raise ConfigurationError(f"--months must be at least 1; got {options.months}.")
    names = write_indices(
        GridStore(options.store),
        options.output,
        reference=GridStore(options.reference) if options.reference else None,
        calibration=calibration,
        months=options.months,
        overwrite=options.overwrite,
    )
    print(f"{options.output}: {', '.join(names)}, means of {options.months} months")
    return 0

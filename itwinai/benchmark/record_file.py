"""The record of a benchmark as files: one line for each measurement, written as soon as it has ended."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itwinai.benchmark.records import BenchmarkRecord, Breakdown, Cell, Measured, Measurement
from itwinai.errors import ConfigurationError
from itwinai.io.atomic import write_whole
from itwinai.io.versioned_json import finite, reading, versioned

VERSION = 1
"""Of the format."""

HEAD = "benchmark.json"
RECORDS = "records.jsonl"


def write_head(record: BenchmarkRecord, folder: Path) -> None:
    """Write all of a record but its measurements.

    Raises:
        OSError: it could not be written; an old file is still there.
    """
    head = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    del head["measurements"]
    write_whole(folder / HEAD, json.dumps({"version": VERSION, **head}, indent=1, ensure_ascii=False) + "\n")


def append_measurement(measurement: Measurement, path: Path) -> None:
    """Add a measurement to a file of records, as a whole line that is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(to_plain(measurement), ensure_ascii=False, allow_nan=False) + "\n"
    with path.open("a+b") as file:
        # A line that a kill has cut off stays by itself, and readers leave it out.
        if file.tell() and _last_byte(path) != b"\n":
            line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_record(folder: str | os.PathLike[str]) -> BenchmarkRecord:
    """Return the record of a benchmark.

    Args:
        folder: of the benchmark.

    Raises:
        ConfigurationError: there is no benchmark in the folder, or one of a later version.
    """
    path = Path(folder) / HEAD
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            f"There is no benchmark in {os.fspath(folder)}: it has no {HEAD}. Give the folder that `itwinai benchmark` "
            "has written to, which it names at its end."
        ) from None
    with reading(f"{path} is not what `itwinai benchmark` writes"):
        head = versioned(text, VERSION, str(path))
        record = BenchmarkRecord(**{**head, "extrapolate": tuple(head["extrapolate"])})
    return dataclasses.replace(record, measurements=read_measurements(Path(folder) / RECORDS))


def read_measurements(path: Path) -> tuple[Measurement, ...]:
    """Return the measurements of a file, in its order; none if there is no file.

    A line that was not written to its end is left out.

    Raises:
        ConfigurationError: a line is not a measurement of a benchmark.
    """
    if not path.exists():
        return ()
    measurements = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            plain = json.loads(line)
        except ValueError:  # cut off
            continue
        where = f"Line {number} of {path} is not a measurement of a benchmark"
        with reading(where, "Remove it, or use the folder of another benchmark."):
            measurements.append(from_plain(plain))
    return tuple(measurements)


def to_plain(measurement: Measurement) -> dict[str, Any]:
    """Return a measurement as plain JSON values; numbers that are not finite become texts."""
    plain: dict[str, Any] = finite(dataclasses.asdict(measurement))
    return plain


def from_plain(plain: Mapping[str, Any]) -> Measurement:
    """Return the measurement that `to_plain` was given."""
    cell, measured = plain["cell"], plain["measured"]
    axes = tuple((str(path), str(value)) for path, value in cell["axes"])
    return Measurement(
        **{**plain, "cell": Cell(**{**cell, "axes": axes}), "measured": measured and measured_from_plain(measured)}
    )


def measured_to_plain(measured: Measured) -> dict[str, Any]:
    """Return the measured values as plain JSON values."""
    plain: dict[str, Any] = finite(dataclasses.asdict(measured))
    return plain


def measured_from_plain(plain: Mapping[str, Any]) -> Measured:
    """Return the measured values from plain JSON values."""
    numbers = {field.name for field in dataclasses.fields(Measured) if "float" in str(field.type)}
    values = {name: _number(value) if name in numbers else value for name, value in plain.items()}
    breakdown = values["breakdown"]
    return Measured(
        **{
            **values,
            "breakdown": breakdown and Breakdown(**{name: _number(value) for name, value in breakdown.items()}),
            "busy": tuple(_number(one) for one in plain["busy"]),
            "peak_memory": tuple(plain["peak_memory"]),
        }
    )


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)

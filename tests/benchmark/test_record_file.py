"""Records of benchmarks as files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from itwinai.benchmark.record_file import (
    RECORDS,
    append_measurement,
    read_measurements,
    read_record,
    write_head,
)
from itwinai.benchmark.records import BenchmarkRecord, Breakdown, Cell, Measured, Measurement
from itwinai.errors import ConfigurationError

MEASURED = Measured(
    steps=50,
    seconds=2.5,
    samples=1600,
    step_p50=0.04,
    step_p95=0.06,
    breakdown=Breakdown(0.001, 0.03, 0.008, 0.001, None),
    busy=(0.031, 0.032),
    peak_memory=(1000, None),
    launch=4.5,
    loss=0.25,
    joules=None,
    no_joules="not here",
    parameters=100,
    gradient_bytes=400,
    device="CPU",
)
GOOD = Measurement(Cell("ddp", 2, "weak", (("a.b", "x"),)), 1, "measured", 1e9, 12.5, MEASURED, output="runs/x")
BAD = Measurement(Cell("ray", 2), 0, "failed", 1e9, 3.0, error="ValueError: <ünïcode>\nmore")


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    record = BenchmarkRecord("name", {"a": "b"}, {"host": "h"}, (GOOD, BAD), "ddp", (8, 16))
    write_head(record, tmp_path)
    for measurement in record.measurements:
        append_measurement(measurement, tmp_path / RECORDS)
    assert read_record(tmp_path) == record
    lines = (tmp_path / RECORDS).read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["measured"]["samples"] == 1600


def test_numbers_that_are_not_finite_come_back_and_any_json_reader_reads_them(tmp_path: Path) -> None:
    path = tmp_path / RECORDS
    diverged = replace(GOOD, measured=replace(MEASURED, loss=math.nan, busy=(math.inf, 1.0)))
    append_measurement(diverged, path)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    (read,) = read_measurements(path)
    assert read.measured is not None and read.measured.loss is not None
    assert math.isnan(read.measured.loss) and read.measured.busy == (math.inf, 1.0)


def test_a_line_that_was_cut_off_is_left_out_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / RECORDS
    append_measurement(GOOD, path)
    append_measurement(BAD, path)
    path.write_bytes(path.read_bytes()[:-20])
    assert read_measurements(path) == (GOOD,)
    append_measurement(BAD, path)
    assert read_measurements(path) == (GOOD, BAD)


def test_invalid_benchmark_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no benchmark in .*nowhere"):
        read_record(tmp_path / "nowhere")
    write_head(BenchmarkRecord("name"), tmp_path)
    head = tmp_path / "benchmark.json"
    head.write_text(head.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ConfigurationError, match="version 2"):
        read_record(tmp_path)
    head.write_text("{}")
    with pytest.raises(ConfigurationError, match="not what `itwinai benchmark` writes"):
        read_record(tmp_path)
    (tmp_path / RECORDS).write_text('{"cell": {"strategy": "ddp"}}\n')
    with pytest.raises(ConfigurationError, match="Line 1 of .* is not a measurement"):
        read_measurements(tmp_path / RECORDS)

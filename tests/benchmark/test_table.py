"""The CSV table of a benchmark holds every figure, and nothing that was not measured."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from itwinai.benchmark.records import BenchmarkRecord, Cell
from itwinai.benchmark.report.tables import FIGURES, write_table
from itwinai.benchmark.statistics.summary import summarize
from tests.benchmark.examples import HOSTILE, PRECISION, changed, failing, rich, two_precisions
from tests.benchmark.synthetic import Line, amdahl, synthetic_record


def rows_of(record: BenchmarkRecord, folder: Path) -> list[dict[str, str]]:
    write_table(summarize(record), folder / "deep" / "table.csv")
    with (folder / "deep" / "table.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def row_of(rows: list[dict[str, str]], **values: str) -> dict[str, str]:
    (row,) = [row for row in rows if values.items() <= row.items()]
    return row


def test_every_cell_is_a_row_with_all_figures(tmp_path: Path) -> None:
    record = rich()
    rows, summary = rows_of(record, tmp_path), summarize(record)
    assert [(row["strategy"], int(row["workers"]), row["scaling"]) for row in rows] == [
        (one.cell.strategy, one.cell.workers, one.cell.scaling) for one in summary.cells
    ]
    for row, one in zip(rows, summary.cells, strict=True):
        for name, of in FIGURES.items():
            estimate = of(one)
            ends = (None,) * 3 if estimate is None else (estimate.mean, estimate.low, estimate.high)
            told = [float(row[f"{name}_{end}"] or "nan") for end in ("mean", "low", "high")]
            assert told == pytest.approx([float("nan") if end is None else end for end in ends], nan_ok=True)


def test_units_are_those_of_the_names(tmp_path: Path) -> None:
    record = synthetic_record(
        Line("single", amdahl(0.25), workers=(1,)), Line("ddp", lambda _: 0.125, workers=(4,)), batch=32
    )
    row = row_of(rows_of(record, tmp_path), strategy="ddp")
    known = {
        "samples_per_second_mean": 256,
        "steps_per_second_mean": 8,
        "step_seconds_low": 0.125,
        "step_p95_seconds_mean": 0.15,
        "speedup_mean": 2,
        "efficiency_mean": 0.5,
        "peak_memory_bytes_mean": 2**30 + 3 * 2**20,
        "launch_seconds_mean": 4,
        "loss_mean": 0.5,
        "part_data_seconds": 0.0125,
        "part_communication_seconds": 0.0125,
        "parameters": 1_000_000,
        "runs": 3,
    }
    assert {name: float(row[name]) for name in known} == pytest.approx(known)
    assert row["baseline"] == "single with 1 worker" and row["no_joules"] == "this machine does not tell"


def test_what_was_not_measured_is_empty(tmp_path: Path) -> None:
    record = changed(
        synthetic_record(Line("ddp", amdahl(), workers=(1, 2)), repeats=1),
        lambda cell, one: replace(one, samples=None, breakdown=None, loss=None),
    )
    for row in rows_of(record, tmp_path):
        for name in (
            "samples_per_second_mean",
            "speedup_mean",
            "part_data_seconds",
            "loss_mean",
            "steps_per_second_low",
        ):
            assert row[name] == ""
        assert row["joules_per_sample_mean"] == "" and row["no_joules"]
        assert float(row["steps_per_second_mean"]) > 0


def test_failed_cells_are_rows_with_their_errors(tmp_path: Path) -> None:
    rows = rows_of(rich(), tmp_path)
    failed = row_of(rows, strategy="horovod", workers="2", scaling="strong")
    assert failed["status"] == "failed" and failed["error"] == HOSTILE and failed["runs"] == "0"
    assert failed["failed_runs"] == "3" and failed["output"] == "runs/horovod/output.txt"
    assert all(failed[f"{name}_mean"] == "" for name in FIGURES)
    hung = row_of(rows, strategy="ray", workers="4", scaling="weak")
    assert hung["status"] == "timed out" and hung["error"] == "no first step after 600 s"
    assert row_of(rows, strategy="ddp", workers="2", scaling="weak")["status"] == "measured"
    once = failing(rich(), lambda one: one.cell == Cell("ddp", 2) and one.repeat == 0, error="killed")
    row = row_of(rows_of(once, tmp_path), strategy="ddp", workers="2", scaling="strong")
    assert (row["status"], row["runs"], row["error"]) == ("partly failed", "2", "killed")


def test_axes_have_columns_by_their_path(tmp_path: Path) -> None:
    rows = rows_of(two_precisions(), tmp_path)
    assert {row[PRECISION] for row in rows} == {"32-true", "bf16-mixed"}
    record = two_precisions()
    named_alike = replace(
        record,
        measurements=[
            replace(one, cell=replace(one.cell, axes=(("loss_mean", "3"),))) for one in record.measurements[:1]
        ],
    )
    (row,) = rows_of(named_alike, tmp_path)
    assert row["axis:loss_mean"] == "3" and row["loss_mean"] == "0.5"


def test_nothing_measured_is_a_table_too(tmp_path: Path) -> None:
    assert rows_of(BenchmarkRecord("nothing"), tmp_path) == []
    assert (tmp_path / "deep" / "table.csv").read_text().startswith("strategy,workers,scaling,status,")


def test_threads_and_other_programs_are_columns(tmp_path: Path) -> None:
    record = changed(
        synthetic_record(Line("ddp", amdahl(), workers=(1, 2)), repeats=2),
        lambda cell, one: replace(one, threads=4 // cell.workers),
    )
    runs = [replace(one, others=0.5 * one.repeat if one.cell.workers == 2 else None) for one in record.measurements]
    rows = rows_of(replace(record, measurements=runs), tmp_path)
    assert [(row["threads"], row["other_cores"]) for row in rows] == [("4", ""), ("2", "0.25")]
    assert rows_of(record, tmp_path)[0]["other_cores"] == "" and rows_of(rich(), tmp_path)[0]["threads"] == ""


def test_no_interval_of_a_speed_is_negative(tmp_path: Path) -> None:
    record = synthetic_record(Line("ddp", amdahl(), workers=(1, 2)), noise=1.0, repeats=2, seed=2)
    for row in rows_of(record, tmp_path):
        lows = {name: float(value) for name, value in row.items() if name.endswith("_low") and value}
        assert lows["samples_per_second_low"] == lows["step_seconds_low"] == lows["step_p50_seconds_low"] == 0
        assert min(lows.values()) >= 0 and float(row["samples_per_second_high"]) > float(row["samples_per_second_mean"])

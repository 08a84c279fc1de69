"""A benchmark in a terminal: all cells, in lines that fit."""

from __future__ import annotations

from dataclasses import replace

from itwinai.benchmark.records import Cell
from itwinai.benchmark.statistics.summary import summarize
from itwinai.benchmark.telling.terminal_table import table_text
from tests.benchmark.examples import PRECISION, changed, rich, two_precisions
from tests.benchmark.synthetic import Line, amdahl, communication, synthetic_record

SINGLE = Line("single", amdahl(), workers=(1,))


def test_terminal_table_has_all_cells_and_fits() -> None:
    lines = table_text(summarize(rich())).splitlines()
    assert all(len(line) <= 100 for line in lines)
    strong = lines[lines.index("strong scaling") : lines.index("weak scaling")]
    (row,) = [line.split() for line in strong if line.startswith("ddp ") and line.split()[1] == "4"]
    (cell,) = [one for one in summarize(rich()).cells if one.cell == Cell("ddp", 4)]
    assert cell.throughput is not None and cell.step_p50 is not None and cell.efficiency is not None
    assert row[2] == f"{cell.throughput.mean:,.0f}" and row[5] == f"{1e3 * cell.step_p50.mean:.1f}"
    assert " ".join(row[8:]) == f"{100 * cell.efficiency.mean:.0f} % 10 % 10 % 1.00 GiB 0.5"
    assert sum(line.startswith("horovod") and "failed: ModuleNotFoundError" in line for line in strong) == 3
    assert any(line.startswith("ray ") and line.endswith("timed out: no first step after 600 s") for line in lines)
    assert not any("\n" in line or "line 3" in line for line in lines)


def test_terminal_table_shows_missing_as_missing() -> None:
    record = changed(
        rich(), lambda cell, one: replace(one, breakdown=None, loss=None, peak_memory=(None,) * cell.workers)
    )
    rows = [line for line in table_text(summarize(record)).splitlines() if line.startswith("ddp ")]
    assert rows and all(row.split()[-4:] == ["-", "-", "-", "-"] for row in rows)


def test_terminal_table_names_varied_axes_by_their_end() -> None:
    text = table_text(summarize(two_precisions()))
    assert "\nprecision=32-true\n" in text and "\nprecision=bf16-mixed\n" in text and PRECISION not in text


def test_long_names_are_cut() -> None:
    name = "my_package.strategies.sharded.FullyShardedStrategyOfMine"
    record = synthetic_record(SINGLE, Line(name, communication(), workers=(1, 2)))
    table = table_text(summarize(record)).split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 100 and any(
        line.startswith("my_package.strategies") and "…" in line for line in table
    )

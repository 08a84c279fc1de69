"""A benchmark in a terminal: all cells, in lines that fit."""

from __future__ import annotations

import random
import re
from dataclasses import replace

from itwinai.benchmark.records import Cell
from itwinai.benchmark.report.tables import benchmark_text
from itwinai.benchmark.statistics.summary import summarize
from tests.benchmark.examples import PRECISION, changed, interrupted, rich, two_precisions
from tests.benchmark.synthetic import Line, amdahl, communication, synthetic_record

SINGLE = Line("single", amdahl(), workers=(1,))


def test_terminal_table_has_all_cells_and_fits() -> None:
    lines = benchmark_text(summarize(rich())).splitlines()
    assert all(len(line) <= 100 for line in lines)
    strong = lines[lines.index("strong scaling") : lines.index("weak scaling")]
    (row,) = [line.split() for line in strong if line.startswith("ddp ") and line.split()[1] == "4"]
    (cell,) = [one for one in summarize(rich()).cells if one.cell == Cell("ddp", 4)]
    assert cell.throughput is not None and cell.step_p50 is not None and cell.efficiency is not None
    assert row[2] == f"{cell.throughput.mean:,.0f}" and row[5] == f"{1e3 * cell.step_p50.mean:.1f}"
    assert " ".join(row[8:]) == f"{100 * cell.efficiency.mean:.0f} % 10 % 10 % 1.00 GiB 0.5"
    assert sum(line.startswith("horovod") and "failed: ModuleNotFoundError" in line for line in strong) == 3
    assert any(line.startswith("ray ") and line.endswith("timed out: no first step after 600 s") for line in lines)
    words = " ".join(lines[lines.index("weak scaling") :])
    assert not any("line 3" in line for line in strong) and "File somewhere, line 3" in " ".join(words.split())


def test_terminal_table_shows_missing_as_missing() -> None:
    record = changed(
        rich(), lambda cell, one: replace(one, breakdown=None, loss=None, peak_memory=(None,) * cell.workers)
    )
    rows = [line for line in benchmark_text(summarize(record)).splitlines() if line.startswith("ddp ")]
    assert rows and all(row.split()[-4:] == ["-", "-", "-", "-"] for row in rows)


def test_terminal_table_names_varied_axes_by_their_end() -> None:
    text = benchmark_text(summarize(two_precisions()))
    assert "\nprecision=32-true\n" in text and "\nprecision=bf16-mixed\n" in text and PRECISION not in text


def test_long_names_are_cut() -> None:
    name = "my_package.strategies.sharded.FullyShardedStrategyOfMine"
    record = synthetic_record(SINGLE, Line(name, communication(), workers=(1, 2)))
    table = benchmark_text(summarize(record)).split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 100
    cut = [line.split()[0] for line in table if "…" in line]
    assert cut and all(re.fullmatch(r"my_package\..*….*OfMine", one) for one in cut)


def test_cells_are_in_order_and_the_baseline_is_first() -> None:
    record = rich()
    shuffled = replace(record, measurements=random.Random(3).sample(list(record.measurements), 63))
    assert benchmark_text(summarize(shuffled)).split("\n- ")[0] == benchmark_text(summarize(record)).split("\n- ")[0]
    lines = benchmark_text(summarize(shuffled)).splitlines()
    assert lines[3].startswith("single ") and [line.split()[1] for line in lines[4:7]] == ["1", "2", "4"]


def test_interrupted_benchmark_says_so_above_all() -> None:
    record = interrupted(10)
    lines = benchmark_text(summarize(record)).splitlines()
    assert lines[1] == "10 of 14 runs are done; the same command with --resume makes the others."
    assert benchmark_text(summarize(record)).count("--resume makes") == 1


def test_baseline_of_several_workers_has_a_note_below_its_table() -> None:
    record = synthetic_record(Line("ddp", amdahl(), workers=(2, 4)), baseline="ddp")
    table = benchmark_text(summarize(record)).split("\n\n")[0].splitlines()
    assert table[-1] == "Speed-ups are relative to ddp with 2 workers, whose speed-up is set to 2."
    assert "set to" not in benchmark_text(summarize(rich()))

"""Two benchmarks beside each other: what has changed, what may be chance, and what else differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from itwinai.benchmark.comparison import ComparedCell, Comparison, compare
from itwinai.benchmark.records import BenchmarkRecord, Cell, Measured
from itwinai.benchmark.report.compare_report import (
    comparison_sections,
    comparison_text,
    ratio_plots,
    write_comparison,
)
from itwinai.benchmark.statistics.confidence_intervals import difference, holm
from tests.benchmark.examples import changed, failing, rich, two_precisions
from tests.benchmark.pages import Page
from tests.benchmark.synthetic import Line, amdahl, synthetic_record

LINES = (
    Line("single", amdahl(), workers=(1,)),
    Line("ddp", amdahl(), workers=(1, 2, 4)),
    Line("ray", amdahl(), workers=(1, 2, 4)),
)


def record(seed: int = 0, repeats: int = 3, noise: float = 0.01) -> BenchmarkRecord:
    return synthetic_record(*LINES, noise=noise, seed=seed, repeats=repeats)


def faster(factor: float, which: Callable[[Cell], bool] = lambda cell: True) -> Callable[[Cell, Measured], Measured]:
    return lambda cell, one: replace(one, seconds=one.seconds / factor) if which(cell) else one


def of(comparison: Comparison, strategy: str, workers: int) -> ComparedCell:
    (found,) = [one for one in comparison.cells if (one.cell.strategy, one.cell.workers) == (strategy, workers)]
    return found


def test_what_has_changed_is_told_from_chance() -> None:
    b = changed(record(seed=1), faster(1.25, lambda cell: cell.strategy == "ddp" and cell.workers == 4))
    b = changed(b, faster(0.8, lambda cell: cell.strategy == "ray" and cell.workers == 2))
    comparison = compare(record(), b)
    verdicts = {(one.cell.strategy, one.cell.workers): one.verdict for one in comparison.cells}
    assert verdicts.pop(("ddp", 4)) == "faster" and verdicts.pop(("ray", 2)) == "slower"
    assert set(verdicts.values()) == {"="} and len(verdicts) == 5
    ratio = of(comparison, "ddp", 4).throughput
    assert ratio.low is not None and ratio.high is not None and ratio.low < 1.25 < ratio.high
    assert ratio.mean == pytest.approx(1.25, rel=0.03)


def test_direction_is_b_by_a() -> None:
    a, b = record(noise=0), changed(record(noise=0), faster(2.0))
    assert of(compare(a, b), "ddp", 2).throughput.mean == pytest.approx(2.0)
    assert of(compare(b, a), "ddp", 2).throughput.mean == pytest.approx(0.5)


def test_p_values_are_corrected_for_all_cells() -> None:
    a, b = record(), record(seed=1)
    comparison = compare(a, b)
    plain = [difference(comparison.speed.runs(one.a), comparison.speed.runs(one.b)) for one in comparison.cells]
    assert [one.p for one in comparison.cells] == pytest.approx(holm([p for p in plain if p is not None]))
    assert any(one.p != p for one, p in zip(comparison.cells, plain, strict=True))


def test_of_single_runs_nothing_is_known() -> None:
    comparison = compare(record(repeats=1), changed(record(repeats=1), faster(3.0)))
    assert {one.verdict for one in comparison.cells} == {"?"}
    assert "Unknown for 7 cells with a single run in A or in B" in comparison_text(comparison)


def test_launch_and_memory_and_loss_are_compared() -> None:
    b = changed(
        record(),
        lambda cell, one: replace(
            one,
            launch=2 * one.launch,
            peak_memory=tuple(peak and peak // 2 for peak in one.peak_memory),
            loss=0.6 if cell == Cell("ray", 4) else one.loss,
        ),
    )
    comparison = compare(record(), b)
    one = of(comparison, "ddp", 2)
    assert one.launch is not None and one.launch.mean == pytest.approx(2.0)
    assert one.memory is not None and one.memory.mean == pytest.approx(0.5)
    assert one.same_loss is True and of(comparison, "ray", 4).same_loss is False
    text = comparison_text(comparison)
    assert "Warning: ray with 4 workers ended with a loss of 0.5 in A and of 0.6 in B" in text
    unknown = changed(record(), lambda cell, one: replace(one, loss=None, peak_memory=(None,) * cell.workers))
    one = of(compare(record(), unknown), "ddp", 2)
    assert one.same_loss is None and one.memory is None


def test_a_wrong_loss_is_not_the_largest_gain() -> None:
    b = changed(record(), faster(1.5, lambda cell: cell == Cell("ddp", 4)))
    b = changed(b, faster(4.0, lambda cell: cell == Cell("ray", 4)))
    b = changed(b, lambda cell, one: replace(one, loss=0.9) if cell == Cell("ray", 4) else one)
    assert "Most in ddp with 4 workers: 1.5" in " ".join(comparison_text(compare(record(), b)).split())


def test_cells_with_different_threads_are_not_compared_silently() -> None:
    def threads(count: int) -> BenchmarkRecord:
        return changed(record(), lambda cell, one: replace(one, threads=count if cell.strategy == "ddp" else 1))

    text = " ".join(comparison_text(compare(threads(1), threads(2))).split())
    assert "Warning: Workers computed with different numbers of threads (1 in A and 2 in B) in ddp with 1, 2" in text
    assert "threads" not in comparison_text(compare(threads(2), threads(2)))
    assert "threads" not in comparison_text(compare(record(), threads(2)))  # what was not noted may be the same


def test_cells_that_only_one_has_are_listed() -> None:
    a = synthetic_record(LINES[0], LINES[1])
    b = failing(synthetic_record(LINES[0], LINES[2], LINES[1]), lambda one: one.cell == Cell("ddp", 2))
    comparison = compare(a, b)
    assert comparison.only_a == () and {cell.strategy for cell in comparison.only_b} == {"ray"}
    assert comparison.without == (Cell("ddp", 2),) and [one.cell.workers for one in comparison.cells] == [1, 1, 4]
    text = " ".join(comparison_text(comparison).split())
    assert "Without a result in A or in B: ddp with 2 workers." in text
    assert "Only in B: ray with 1, 2 and 4 workers." in text
    nothing = comparison_text(compare(a, synthetic_record(LINES[2])))
    assert "No cell was measured in both" in nothing


def test_with_one_worker_there_is_no_scaling() -> None:
    weak = [replace(line, scaling="weak") for line in LINES]
    comparison = compare(record(), synthetic_record(*weak))
    assert {one.cell.workers for one in comparison.cells} == {1} and len(comparison.cells) == 3
    assert len(comparison.only_a) == len(comparison.only_b) == 4


def test_batches_are_compared_where_samples_are_not_known() -> None:
    unknown = changed(record(), lambda cell, one: replace(one, samples=None))
    comparison = compare(record(), unknown)
    assert not comparison.speed.by_samples and of(comparison, "ddp", 4).throughput.mean == pytest.approx(1.0)
    text = " ".join(comparison_text(comparison).split())
    assert "batches per second are compared, as if batches were equally large" in text and "speed in batches/s" in text


def test_settings_and_facts_that_differ_are_told() -> None:
    a = replace(record(), settings={"steps": "50", "repeats": "3"}, facts={"torch": "2.8", "host": "x"})
    b = replace(record(), settings={"steps": "90", "repeats": "3"}, facts={"torch": "2.9", "cuda": "13", "host": "x"})
    comparison = compare(a, b)
    assert comparison.settings == {"steps": ("50", "90")}
    assert comparison.facts == {"torch": ("2.8", "2.9"), "cuda": ("", "13")}
    text = comparison_text(comparison)
    assert (
        "- torch: 2.8 | 2.9\n" in text and "- cuda: - | 13\n" in text and "repeats" not in text.split("Settings in")[1]
    )


def test_text_fits_a_terminal_and_signs_stand_beside_figures() -> None:
    text = comparison_text(compare(rich(), changed(rich(), faster(1.5))))
    lines = text.splitlines()
    assert all(len(line) <= 100 for line in lines)
    rows = [line for line in lines if line.startswith(("ddp ", "ray ", "single ", "deepspeed"))]
    assert len(rows) == len(compare(rich(), rich()).cells) and all(" faster " in row for row in rows)


def test_page_holds_the_comparison(tmp_path: Path) -> None:
    b = replace(changed(two_precisions(), faster(1.5)), name="<b>new</b>", facts={"host": "<i>y</i>"})
    path = write_comparison(compare(two_precisions(), b), tmp_path / "deep" / "comparison.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert path == tmp_path / "deep" / "comparison.html" and page.pictures == 1
    assert page.headings == ["Findings", "Throughput of B divided by that of A", "What else differs"]
    assert {"B is faster", "ddp with 2 workers (precision=32-true)", "Benchmark <b>new</b> (B) compared with"} <= {
        text.removesuffix(" synthetic (A)") for text in page.texts
    }
    (row,) = [row for row in page.rows if row[:3] == ["ddp", "2", "32-true"]]
    assert row[5].startswith("1.50 ± ") and row[7:] == ["faster", "1.00", "1.00", "same"]
    assert ["host", "-", "<i>y</i>"] in page.rows


def test_many_cells_have_several_pictures() -> None:
    lines = [Line(f"s{number:02}", amdahl(), workers=(1, 2)) for number in range(12)]
    (_, section, *_) = comparison_sections(compare(synthetic_record(*lines), synthetic_record(*lines)))
    assert [picture.title for picture in section.pictures][1:] == ["More cells (2)"]
    assert ">s08 with 2 workers<" in section.pictures[0].svg and ">s09 with 1 worker<" in section.pictures[1].svg


def test_columns_are_explained(tmp_path: Path) -> None:
    comparison = compare(record(), record(seed=1))
    terminal = " ".join(comparison_text(comparison).split())
    path = write_comparison(comparison, tmp_path / "comparison.html")
    page = Page(path.read_text(encoding="utf-8")).text
    for text, colon in ((terminal, ":"), (page, "")):
        assert f"B/A{colon} speed of B divided by that of A, with its 95 % interval; above 1, B is faster" in text
        assert f"p{colon} how likely so large a difference is by chance alone" in text
        assert f"B is{colon} =: no significant difference (p is 0.05 or more)" in text


def test_error_bars_of_ratios_have_visible_ends() -> None:
    wild = record(noise=1.5, repeats=2)
    comparison = compare(record(repeats=2), wild)
    (picture,) = ratio_plots(comparison.cells, [str(place) for place in range(7)])
    axes = picture.figure.axes[0]
    low, high = axes.get_xlim()
    ends = [(one.throughput.low or 0, one.throughput.high or 0) for one in comparison.cells]
    cut = [
        [place for place, end in enumerate(ends) if end[0] < low],
        [p for p, end in enumerate(ends) if end[1] > high],
    ]
    assert low >= 0 and cut[1]
    frame = [
        (line.get_xdata()[0], int(line.get_ydata()[0]))
        for line in axes.lines
        if line.get_marker() in ("<", ">") and len(line.get_xdata()) and line.get_markersize() == 7
    ]
    assert sorted(frame) == sorted([(side, place) for side in (0, 1) for place in cut[side]])
    assert len(axes.containers) == 7 and all(len(bars.lines[1]) == 2 for bars in axes.containers)

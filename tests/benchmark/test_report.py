"""The report of a benchmark: right in what it shows, and safe and whole in how it shows it."""

from __future__ import annotations

import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

from itwinai.benchmark.records import BenchmarkRecord, Cell
from itwinai.benchmark.report.breakdown_plot import breakdown_plots
from itwinai.benchmark.report.page import benchmark_page, write_report
from itwinai.benchmark.report.plots import (
    LOSS,
    SPEEDUP,
    Drawn,
    file_name,
    limited_end,
    limited_ratios,
    line_plots,
    looks_of,
    spaced,
    throughput,
)
from itwinai.benchmark.statistics.groups import Speed, groups_of
from itwinai.benchmark.statistics.summary import summarize
from tests.benchmark.examples import changed, failing, interrupted, rich, slowed_baseline, two_precisions
from tests.benchmark.pages import Page
from tests.benchmark.synthetic import Line, amdahl, communication, synthetic_record
from tests.reporting.test_plotting import texts

SECTIONS = (
    "Findings",
    "Throughput",
    "Speed-up",
    "Efficiency",
    "Where a step goes",
    "Memory per worker",
    "Energy per sample",
    "Loss after the steps",
    "Launch time",
    "Scaling law",
    "All cells",
    "Failed",
    "Settings and environment",
)


TWO = (
    Line("single", amdahl(), workers=(1,)),
    Line("ddp", amdahl(), workers=(1, 2, 4)),
    Line("ray", communication(), workers=(1, 2, 4)),
)


@dataclass(frozen=True)
class Report:
    """A report, its page, and the record that it is about."""

    record: BenchmarkRecord
    path: Path
    page: Page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Write one report for all tests: to draw the pictures takes seconds."""
    record = changed(
        rich(),
        lambda cell, one: (
            replace(one, joules=0.5 * (one.samples or 0), no_joules="") if cell.strategy == "ray" else one
        ),
    )
    path = write_report(record, tmp_path_factory.mktemp("benchmark") / "deep")
    return Report(record, path, Page(path.read_text(encoding="utf-8")))


def drawn(record: BenchmarkRecord, name: str) -> Drawn:
    (found,) = [one for one in benchmark_page(record)[1] if one.name == name]
    return found


# ------------------------------------------------------------------------------------------------------ the page


def test_page_has_all_sections(report: Report) -> None:
    assert report.path.name == "report.html"
    assert report.page.headings == ["What could be better", *SECTIONS]


def test_page_shows_the_figures_of_all_cells(report: Report) -> None:
    summary = summarize(report.record)
    rows = {tuple(row[:3]): row for row in report.page.rows if len(row) == 11}
    assert len(rows) == len(summary.cells) + 1
    heading = rows.pop(next(iter(rows)))
    for one in summary.cells:
        row = rows[(one.cell.strategy, str(one.cell.workers), one.cell.scaling if one.cell.workers > 1 else "-")]
        figures = dict(zip(heading, row, strict=True))
        if not one.runs:
            assert set(row[3:-1]) == {"-"} and figures["runs"] == (
                "failed" if one.cell.strategy == "horovod" else "timed out"
            )
            continue
        assert one.throughput is not None and one.efficiency is not None and one.throughput.high is not None
        assert figures["samples/s"].startswith(f"{one.throughput.mean:,.0f} ± ")
        half = float(figures["samples/s"].split("± ")[1].replace(",", ""))
        assert half == pytest.approx(one.throughput.high - one.throughput.mean, abs=0.51)
        assert figures["eff."] == f"{100 * one.efficiency.mean:.0f} %"
        assert one.step_p50 is not None and one.step_p95 is not None
        p50, p95 = (float(text) for text in figures["step p50 / p95"].removesuffix(" ms").split(" / "))
        assert [p50, p95] == pytest.approx([1e3 * one.step_p50.mean, 1e3 * one.step_p95.mean], rel=0.01)
        assert figures["memory"].endswith(" GiB") and figures["loss"] == "0.5" and figures["runs"] == "3"


def test_advice_and_failures_stand_above(report: Report) -> None:
    text = report.page.text
    assert text.index("6 of 21 cells have no result.") < text.index("Findings measured")
    rows = [row for row in report.page.rows if "runs/horovod/output.txt" in row]
    assert len(rows) == 15 and all(row[-2] == " ".join(row[-2].split()) and "<script>" in row[-2] for row in rows)
    assert any("no first step after 600 s" in row for row in report.page.rows)


def test_what_people_have_written_is_text(report: Report) -> None:
    html = report.path.read_text(encoding="utf-8")
    for tag in ("<script", "<b>", "<i>"):
        assert tag not in html
    assert "Benchmark of digits <b>" in report.page.texts and ["host", "node <i>7</i>"] in report.page.rows


def test_missing_energy_has_a_reason(report: Report) -> None:
    assert "Not measured: energy: this machine does not tell (11 of 15 cells)." in report.page.texts
    sections = benchmark_page(two_precisions())[0]
    assert "energy: this machine does not tell" in next(one for one in sections if one.title == "Findings").missing
    assert "Energy per sample" not in [one.title for one in sections]  # nothing is in it


def test_laws_have_parameters_and_predictions(report: Report) -> None:
    rows = [row for row in report.page.rows if row[0] == "ddp (strong scaling)"]
    assert any("t = work" in row[1] or "t = one_worker" in row[1] for row in rows)
    predicted = [row for row in rows if len(row) == 7]
    assert [row[1:3] for row in predicted] == [["8", "2 times"], ["16", "4 times"]]
    assert all(re.match(r"[\d,]+ (±|\()", row[3]) and " ms" in row[4] for row in predicted)
    (reason,) = [row[1] for row in report.page.rows if row[0] == "horovod (weak scaling)" and len(row) == 2]
    assert "different numbers of workers" in reason and "(failed: 1, 2, 4)" in reason
    assert not any(row[0].startswith("single (") for row in report.page.rows)


def test_page_is_drawn_by_a_browser(report: Report, tmp_path: Path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    subprocess.run(
        [
            "chromium",
            *options,
            "--window-size=1100,4000",
            f"--screenshot={tmp_path / 'page.png'}",
            report.path.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    with Image.open(tmp_path / "page.png") as image:
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 24) or []}
    for look in list(looks_of(["ddp", "deepspeed_stage_2", "horovod", "ray"]).values()):
        assert tuple(bytes.fromhex(look.color[1:])) in colors


# ------------------------------------------------------------------------------------------------------ pictures


def test_every_picture_is_there_as_svg_and_png(report: Report) -> None:
    files = sorted((report.path.parent / "pictures").iterdir())
    names = {path.stem for path in files}
    assert names == {
        *("throughput", "speedup", "efficiency", "breakdown-strong-scaling", "breakdown-weak-scaling", "memory"),
        *("energy", "launch", "law-strong-scaling", "law-weak-scaling"),
    }
    assert len(files) == 2 * len(names) == 2 * report.page.pictures
    for path in files:
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
                assert image.width == 1500 and round(image.info["dpi"][0]) == 200
        else:
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_strategy_looks_the_same_in_all_pictures(report: Report) -> None:
    looks = looks_of(["single", "ddp", "deepspeed_stage_2", "horovod", "ray"])
    assert len({look.color for look in looks.values()}) == len({look.marker for look in looks.values()}) == 5
    for name in ("throughput", "speedup", "memory", "law-strong-scaling"):
        svg = (report.path.parent / "pictures" / f"{name}.svg").read_text().upper()
        assert all(looks[strategy].color.upper() in svg for strategy in ("ddp", "deepspeed_stage_2", "ray"))
    many = looks_of([f"s{number}" for number in range(11)])
    assert len({(look.color, look.marker) for look in many.values()}) == 12


def test_throughput_is_over_the_measured_numbers_of_workers(report: Report) -> None:
    written = texts((report.path.parent / "pictures" / "throughput.svg").read_text())
    assert [text for text in written if text in ("1", "2", "4", "8", "16")] == ["1", "2", "4"] * 2
    assert "failed" not in texts((report.path.parent / "pictures" / "memory.svg").read_text())
    assert {"strong scaling", "weak scaling", "throughput (samples/s)", "workers", "failed", "horovod"} <= set(written)
    assert not any(re.search(r"e[+-]?\d|×|10\^", text) for text in written)


def test_error_bars_are_the_intervals() -> None:
    lines = Line("single", amdahl(), workers=(1,)), Line("ddp", amdahl(), workers=(1, 2))
    summary = summarize(synthetic_record(*lines, noise=0.1))
    (picture,) = line_plots(SPEEDUP, groups_of(summary), looks_of(["single", "ddp"]))
    (_, bars) = picture.figure.axes[0].containers
    for cell, segment in zip(summary.cells[1:], bars.lines[2][0].get_segments(), strict=True):
        assert cell.speedup is not None
        assert segment[:, 1].tolist() == pytest.approx([cell.speedup.low, cell.speedup.high])


def test_few_repeats_leave_room_for_the_means() -> None:
    summary = summarize(synthetic_record(Line("ddp", amdahl(), workers=(1, 2)), noise=0.5, repeats=3, seed=1))
    (picture,) = line_plots(throughput(Speed(True)), groups_of(summary), looks_of(["ddp"]))
    estimates = [cell.throughput for cell in summary.cells if cell.throughput is not None]
    largest = max(one.mean for one in estimates)
    axes = picture.figure.axes[0]
    low, high = axes.get_ylim()
    assert low == 0 and largest < high < 2 * largest < max(one.high or 0.0 for one in estimates)
    arrows = [line for line in axes.lines if line.get_marker() == "^"]
    assert [list(line.get_ydata()) for line in arrows] == [[1]] * sum((one.high or 0) > high for one in estimates)


def test_two_runs_have_no_error_bar() -> None:
    summary = summarize(synthetic_record(Line("ddp", amdahl(), workers=(1, 2)), noise=0.1, repeats=2))
    (picture,) = line_plots(throughput(Speed(True)), groups_of(summary), looks_of(["ddp"]))
    (axes,) = picture.figure.axes
    (bars,) = axes.containers
    assert all(low == high for (_, low), (_, high) in bars.lines[2][0].get_segments())
    largest = max(cell.throughput.mean for cell in summary.cells if cell.throughput is not None)
    assert largest < axes.get_ylim()[1] < 1.2 * largest  # room above the highest point, and no more


def test_axes_include_whole_intervals_unless_they_leave_no_room() -> None:
    assert limited_end([150.0], [100.0, 20.0]) == 150.0 and limited_end([170.0], [100.0, 20.0]) == pytest.approx(130.0)
    assert limited_end([0.5], [1.0]) == 1.0
    assert limited_ratios([0.7, 3.1], [1.0, 2.0]) == (0.7, 3.1)
    assert limited_ratios([0.1, 9.0], [1.0, 2.0]) == pytest.approx((1 / 1.3, 2.6))
    record = synthetic_record(Line("ddp", amdahl(), workers=(1, 2)), noise=0.1, repeats=3, seed=3)
    summary = summarize(record)
    (picture,) = line_plots(throughput(Speed(True)), groups_of(summary), looks_of(["ddp"]))
    axes = picture.figure.axes[0]
    assert all(
        cell.throughput is not None and axes.get_ylim()[1] > (cell.throughput.high or 0) for cell in summary.cells
    )
    assert not [line for line in axes.lines if line.get_marker() == "^"]
    (bars,) = axes.containers
    assert len(bars.lines[1]) == 2 and all(cap.get_markersize() > 4 for cap in bars.lines[1])


def test_ideal_speedup_is_the_number_of_workers() -> None:
    summary = summarize(synthetic_record(Line("single", amdahl(), workers=(1,)), Line("ddp", amdahl())))
    (picture,) = line_plots(SPEEDUP, groups_of(summary), looks_of(["single", "ddp"]))
    axes = picture.figure.axes[0]
    (ideal,) = [line for line in axes.lines if line.get_linestyle() == "--" and len(line.get_xdata())]
    assert list(ideal.get_xdata()) == list(ideal.get_ydata()) == [1, 2, 4, 8]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "4", "8"]


def test_rounding_of_losses_does_not_look_like_a_difference() -> None:
    record = synthetic_record(
        Line("ddp", amdahl(), workers=(1, 2)), Line("ray", amdahl(), workers=(1, 2), loss=0.5000001)
    )
    (picture,) = line_plots(LOSS, groups_of(summarize(record)), looks_of(["ddp", "ray"]))
    low, high = picture.figure.axes[0].get_ylim()
    assert low < 0.495 < 0.505 < high


def test_bars_are_the_parts_of_a_step() -> None:
    summary = summarize(synthetic_record(Line("ddp", lambda workers: 0.1, workers=(1, 2))))
    (picture,) = breakdown_plots(groups_of(summary))
    for axes, whole in zip(picture.figure.axes, (100.0, 100.0), strict=True):  # milliseconds, and percent
        heights = [[bar.get_height() for bar in container] for container in axes.containers]
        assert heights == [pytest.approx(part) for part in ([70, 60], [0, 10], [10, 10], [20, 20])]
        tops = [bar.get_y() + bar.get_height() for bar in axes.containers[-1]]
        assert tops == pytest.approx([whole, whole])
    assert {"waiting for other workers", "step (ms)", "share (%)", "ddp"} <= set(texts(picture.picture.svg))


def test_what_is_extrapolated_is_marked(report: Report) -> None:
    picture = drawn(two_laws := synthetic_record(*TWO, noise=0.02, extrapolate=(8, 16)), "law")
    for axes, one in zip(picture.figure.axes, groups_of(summarize(two_laws))[0].series[1:], strict=True):
        law, beyond = [line for line in axes.lines if len(line.get_xdata()) > 1]
        assert (law.get_linestyle(), beyond.get_linestyle()) == ("-", "--")
        assert law.get_xdata()[-1] == beyond.get_xdata()[0] == 4 and beyond.get_xdata()[-1] == 16
        assert axes.get_title() == one.strategy and len(axes.collections) == 1  # the band
    written = texts((report.path.parent / "pictures" / "law-strong-scaling.svg").read_text())
    assert written.count("extrapolated") == 3
    assert {"95 % interval", "16", "ddp", "ray"} <= set(written) and "horovod" not in written


def test_values_of_axes_have_pictures_that_can_be_compared() -> None:
    sections, pictures, _ = benchmark_page(two_precisions())
    assert {"throughput-precision-32-true", "throughput-precision-bf16-mixed"} <= {one.name for one in pictures}
    limits = [one.figure.axes[0].get_ylim() for one in pictures if one.name.startswith("throughput")]
    assert len(limits) == 2 and limits[0] == limits[1]
    (section,) = [one for one in sections if one.title == "Throughput"]
    assert [one.title.split(", ")[-1] for one in section.pictures] == ["precision=32-true", "precision=bf16-mixed"]


@pytest.mark.parametrize(
    ("counts", "kept"),
    [
        ([1], [1]),
        ([3, 5], [3, 5]),
        (list(range(1, 17)), [1, 2, 3, 4, 6, 8, 11, 16]),
        ([1, 2, 4, 8], [1, 2, 4, 8]),
    ],
)
def test_labels_of_workers_have_room(counts: Sequence[int], kept: Sequence[int]) -> None:
    assert spaced(counts) == kept


def test_names_of_files_are_safe() -> None:
    assert file_name("throughput", "trainer.precision=../x y", "") == "throughput-trainer-precision----x-y"


# ------------------------------------------------------------------------------------------------------ little to show


def test_one_run_has_figures_and_no_empty_pictures(tmp_path: Path) -> None:
    record = synthetic_record(Line("ddp", amdahl(), workers=(1,)), repeats=1, baseline="ddp")
    page = Page(write_report(record, tmp_path).read_text(encoding="utf-8"))
    assert page.pictures == 1 and [path.stem for path in (tmp_path / "pictures").glob("*.png")] == ["breakdown"]
    assert "ddp with 1 worker 640 samples/s" in page.text and "ddp with 1 worker 1.00 GiB" in page.text
    assert "Scaling law" not in page.headings and "±" not in page.text


def test_everything_failed(tmp_path: Path) -> None:
    record = failing(rich(), lambda one: True, error="RuntimeError: broken")
    page = Page(write_report(record, tmp_path).read_text(encoding="utf-8"))
    assert page.headings == ["What could be better", "Findings", "All cells", "Failed", "Settings and environment"]
    assert page.pictures == 0 and not (tmp_path / "pictures").exists()
    assert "21 of 21 cells have no result." in page.text and "RuntimeError: broken" in page.text


def test_nothing_was_run(tmp_path: Path) -> None:
    page = Page(write_report(BenchmarkRecord("nothing"), tmp_path).read_text(encoding="utf-8"))
    assert page.headings == ["Findings"] and "Nothing was run." in page.text


def test_steps_without_samples_parts_losses_or_memory() -> None:
    record = changed(
        synthetic_record(Line("single", amdahl(), workers=(1,)), Line("ddp", amdahl(), workers=(1, 2, 4))),
        lambda cell, one: replace(one, samples=None, breakdown=None, loss=None, peak_memory=(None,) * cell.workers),
    )
    sections, pictures, _ = benchmark_page(record)
    unknown = {"Where a step goes", "Memory per worker", "Energy per sample", "Loss after the steps"}
    assert not unknown & {section.title for section in sections}
    reasons = " ".join(sections[0].missing)
    assert all(f"{quantity}:" in reasons for quantity in ("where a step goes", "memory", "energy", "loss"))
    assert {"throughput", "speedup", "law"} <= {one.name for one in pictures}
    assert "throughput (batches/s)" in texts(drawn(record, "throughput").picture.svg)
    assert "batches/s" in texts(drawn(record, "law").picture.svg)


def test_wrong_losses_are_the_first_thing_on_the_page(tmp_path: Path) -> None:
    lines = [Line(name, amdahl(), workers=(2,), loss=loss) for name, loss in (("a", 0.5), ("b", 0.5), ("c", 0.8))]
    page = Page(write_report(synthetic_record(*lines), tmp_path).read_text(encoding="utf-8"))
    assert page.texts.index("Read the warning below before you rely on any of it.") < page.texts.index(
        "What could be better"
    )
    first = page.texts.index("What could be better") + 1
    assert page.texts[first].startswith("Warning: c with 2 workers ended with a loss of 0.8, and 2 others")


def test_without_a_baseline_speedups_are_missing_with_the_reason() -> None:
    record = failing(
        synthetic_record(Line("single", amdahl(), workers=(1,)), Line("ddp", amdahl())),
        lambda one: one.cell == Cell("single", 1),
    )
    sections = benchmark_page(record)[0]
    assert "the baseline, single with 1 worker, has failed" in sections[0].facts["not known"]
    assert not {"Speed-up", "Efficiency"} & {one.title for one in sections}


# ------------------------------------------------------------------------------------------------------ the answer


def test_what_to_take_is_at_the_top(report: Report) -> None:
    text = report.page.text
    assert text.index("Strong scaling: use ") < text.index("What could be better")
    assert text.index("Weak scaling: use ") < text.index("What could be better")


def test_interruption_and_doubts_stand_before_the_answer(tmp_path: Path) -> None:
    texts = Page(write_report(interrupted(10), tmp_path).read_text(encoding="utf-8")).texts
    done = texts.index("10 of 14 runs are done; the same command with --resume makes the others.")
    assert texts[done + 1].startswith("Use ")
    lead = benchmark_page(slowed_baseline())[2]
    assert len(lead) == 1 and lead[0].startswith("No recommendation: the measurements are doubtful")


def test_threads_and_other_programs_are_part_of_the_environment() -> None:
    record = changed(synthetic_record(*TWO), lambda cell, one: replace(one, threads=2))
    record = replace(record, measurements=[replace(one, others=0.1 * one.repeat) for one in record.measurements])
    environment = dict(benchmark_page(record)[0][-1].tables[-1].rows)
    assert environment["threads"] == "2 threads per worker in all cells"
    (cells,) = [one for one in benchmark_page(record)[0] if one.title == "All cells"]
    assert cells.facts["threads"] == environment["threads"]
    differing = changed(record, lambda cell, one: replace(one, threads=4 // cell.workers))
    (cells,) = [one for one in benchmark_page(differing)[0] if one.title == "All cells"]
    assert cells.facts["threads"].startswith("4 threads per worker in single with 1 worker; ")
    assert "; 1 thread per worker in ddp with 4 workers" in cells.facts["threads"]
    assert environment["used by other programs"] == "0.1 cores on average right before the runs, 0.2 at most"
    assert dict(benchmark_page(synthetic_record(*TWO))[0][-1].tables[-1].rows) == {"device": "made up"}


def test_whole_errors_stand_in_the_section_of_failures() -> None:
    error = "RuntimeError: " + 300 * "why " + "at last"
    record = failing(synthetic_record(*TWO), lambda one: one.cell == Cell("ray", 2), error=error)
    (section,) = [one for one in benchmark_page(record)[0] if one.title == "Failed"]
    assert all(row[-2] == error for row in section.tables[0].rows) and len(section.tables[0].rows) == 3


def test_baseline_of_several_workers_has_a_note() -> None:
    record = synthetic_record(Line("ddp", amdahl(), workers=(2, 4)), baseline="ddp")
    note = "Speed-ups are relative to ddp with 2 workers, whose speed-up is set to 2."
    noted = [one.title for one in benchmark_page(record)[0] if note in one.facts.values()]
    assert noted == ["Speed-up", "Efficiency", "All cells"]
    assert not any("relative" in one.facts for one in benchmark_page(synthetic_record(*TWO))[0])

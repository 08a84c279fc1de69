"""What the runs of a benchmark amount to: speed-ups and their baselines, lines of cells, losses that are wrong."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from itwinai.benchmark.records import SINGLE, BenchmarkRecord, Breakdown, Cell, Measurement
from itwinai.benchmark.statistics.confidence_intervals import Estimate
from itwinai.benchmark.statistics.groups import Speed
from itwinai.benchmark.statistics.summary import CellSummary, Summary, cell_text, summarize, suspicious_losses
from tests.benchmark.synthetic import (
    Line,
    amdahl,
    communication,
    failure,
    made_up,
    synthetic_record,
    weak_communication,
)

ONE = Cell(SINGLE, 1)
BF16 = (("trainer.precision", "bf16-mixed"),)


def run(cell: Cell, seconds: float = 0.1, repeat: int = 0, **changed: Any) -> Measurement:
    measured = dataclasses.replace(made_up(seconds, cell.workers), **changed)
    return Measurement(cell, repeat, "measured", 0.0, 1.0, measured)


def summary_of(*measurements: Measurement, baseline: str = SINGLE) -> Summary:
    return summarize(BenchmarkRecord("by hand", measurements=measurements, baseline=baseline))


def only(*measurements: Measurement) -> CellSummary:
    (cell,) = summary_of(*measurements).cells
    return cell


def known(summary: Summary, cell: Cell) -> CellSummary:
    found = summary.of(cell)
    assert found is not None
    return found


def means(estimates: Sequence[Estimate | None]) -> list[float | None]:
    return [None if estimate is None else estimate.mean for estimate in estimates]


# Cells.


def test_throughput_is_samples_by_second_with_the_interval_of_student() -> None:
    cell = only(*(run(ONE, seconds, repeat) for repeat, seconds in enumerate((0.64, 0.32, 0.64 / 3))))
    assert cell.throughput is not None and cell.steps_per_second is not None
    assert (cell.throughput.mean, cell.throughput.n) == (pytest.approx(200.0), 3)
    assert cell.throughput.high == pytest.approx(200 + 4.302652729911275 * 100 / math.sqrt(3))
    assert [cell.throughput.low, Speed(True).of(cell)] == [
        0.0,
        cell.throughput,
    ]  # and not -48: nothing is slower than standing still
    assert cell.steps_per_second.mean == pytest.approx(200 / 64)
    assert cell.step_times == pytest.approx((0.64, 0.32, 0.64 / 3))


def test_throughput_is_unknown_if_one_run_does_not_tell_its_samples() -> None:
    cell = only(run(ONE), run(ONE, repeat=1, samples=None))
    assert cell.throughput is None
    assert cell.steps_per_second is not None and cell.steps_per_second.mean == pytest.approx(10)


def test_means_are_over_the_runs_that_tell() -> None:
    cell = only(
        run(Cell("ddp", 2), busy=(1.0, 3.0), peak_memory=(None, 10), loss=0.5, joules=640.0, launch=3.0),
        run(Cell("ddp", 2), repeat=1, busy=(1.0, 1.0), peak_memory=(30, 20), loss=None, joules=1280.0, launch=5.0),
        run(Cell("ddp", 2), repeat=2, busy=(0.0, 0.0), peak_memory=(None, None), no_joules="no counter", launch=7.0),
    )
    estimates = [cell.imbalance, cell.peak_memory, cell.loss, cell.joules_per_sample, cell.launch]
    assert means(estimates) == pytest.approx([0.25, 20.0, 0.5, 0.15, 5.0])
    assert [estimate and estimate.n for estimate in estimates] == [2, 2, 2, 2, 3]
    assert cell.no_joules == "no counter"


def test_what_no_run_tells_is_none_and_never_zero() -> None:
    cell = only(run(ONE, peak_memory=(None,), loss=None, breakdown=None))
    assert [cell.peak_memory, cell.loss, cell.breakdown, cell.joules_per_sample, cell.imbalance] == [None] * 5
    assert cell.no_joules == "this machine does not tell"


def test_energy_of_a_sample_needs_the_samples() -> None:
    cell = only(run(ONE, joules=5.0, samples=None, no_joules=""))
    assert cell.joules_per_sample is None
    assert "samples" in cell.no_joules


def test_breakdown_is_a_mean_and_hidden_only_if_all_tell() -> None:
    first, second = Breakdown(1.0, 2.0, 3.0, 4.0, 1.0), Breakdown(3.0, 4.0, 5.0, 6.0, 0.0)
    assert only(run(ONE, breakdown=first), run(ONE, repeat=1, breakdown=second)).breakdown == Breakdown(2, 3, 4, 5, 0.5)
    second = dataclasses.replace(second, hidden=None)
    assert only(run(ONE, breakdown=first), run(ONE, repeat=1, breakdown=second)).breakdown == Breakdown(2, 3, 4, 5)


def test_failed_runs_stand_beside_the_others() -> None:
    cell = only(run(ONE), failure(ONE, 1), failure(ONE, 2, status="timed out"), run(ONE, 0.3, 3))
    assert [one.repeat for one in cell.runs] == [0, 3]
    assert [one.status for one in cell.failed] == ["failed", "timed out"]
    assert cell.throughput is not None and cell.throughput.n == 2


def test_newest_measurement_of_a_repeat_counts() -> None:
    """A resumed benchmark appends: what had failed is run again, and may fail where it was well before."""
    cell = only(failure(ONE), run(ONE, 0.2, 1), run(ONE, 0.4), failure(ONE, 1))
    assert [(one.repeat, one.measured and one.measured.step_p50) for one in cell.runs] == [(0, 0.4)]
    assert [one.repeat for one in cell.failed] == [1]


# Speed-up.


def test_speedup_and_efficiency_are_those_of_the_law() -> None:
    summary = summarize(
        synthetic_record(
            Line(SINGLE, amdahl(0.1), workers=(1,)),
            Line("ddp", amdahl(0.1, 0.05)),
            Line("ddp", weak_communication(0.1, 0.001, 0.0), "weak"),
        )
    )
    assert [one.cell for one in summary.baselines] == [ONE]
    assert summary.notes == ()
    for cell in summary.cells:
        assert cell.baseline == ONE and cell.speedup is not None and cell.efficiency is not None
        workers = cell.cell.workers
        law = {"strong": 1 / (0.05 + 0.95 / workers), "weak": workers * 0.1 / (0.1 + 0.001 * (workers - 1))}
        expected = law[cell.cell.scaling]
        assert (cell.speedup.mean, cell.speedup.low, cell.speedup.high) == pytest.approx((expected,) * 3)
        assert cell.efficiency.mean == pytest.approx(expected / workers)


def test_speedup_has_the_interval_of_a_ratio() -> None:
    two = Cell("ddp", 2)
    summary = summary_of(
        *(run(ONE, math.exp(log), repeat) for repeat, log in enumerate((0.1, 0.2, 0.3))),
        *(run(two, math.exp(log), repeat) for repeat, log in enumerate((0.0, 0.1, 0.2))),
    )
    speedup = known(summary, two).speedup
    half = 2.7764451051977987 * math.sqrt(2 * 0.01 / 3)
    assert speedup is not None
    assert (speedup.mean, speedup.low, speedup.high) == pytest.approx(
        (math.exp(0.1), math.exp(0.1 - half), math.exp(0.1 + half))
    )


def test_speedup_of_the_baseline_is_certain() -> None:
    """It is compared with the very same runs, however noisy they are."""
    summary = summary_of(run(ONE, 0.1), run(ONE, 0.2, 1))
    assert known(summary, ONE).speedup == Estimate(1, 1, 1, 2)


def test_speedup_without_samples_is_that_of_steps() -> None:
    """With weak scaling a step of N workers is N times the work."""
    strong, weak = Cell("ddp", 4), Cell("ddp", 4, "weak")
    cells = summary_of(run(ONE, samples=None), run(strong, 0.05), run(weak, 0.2, samples=None))
    assert means([known(cells, cell).speedup for cell in (strong, weak)]) == pytest.approx([2.0, 2.0])
    cells = summary_of(run(ONE), run(strong, 0.05, samples=None))
    assert means([known(cells, strong).speedup]) == pytest.approx([2.0])


def test_baseline_with_several_workers_has_their_number_as_speedup() -> None:
    record = synthetic_record(Line("ddp", amdahl(), workers=(2, 4)), Line("ray", amdahl(0.2)), baseline="ddp")
    summary = summarize(record)
    two, four, ray = (known(summary, cell) for cell in (Cell("ddp", 2), Cell("ddp", 4), Cell("ray", 2)))
    law = amdahl()
    assert two.baseline == four.baseline == ray.baseline == Cell("ddp", 2)
    assert means([two.speedup, two.efficiency]) == [2.0, 1.0]
    assert means([four.speedup, four.efficiency]) == pytest.approx([2 * law(2) / law(4), law(2) / law(4) / 2])
    assert means([ray.speedup, ray.efficiency]) == pytest.approx([1.0, 0.5])


def test_baseline_has_the_same_axes() -> None:
    fast = Cell(SINGLE, 1, axes=BF16)
    cell = Cell("ddp", 2, axes=BF16)
    summary = summary_of(run(ONE, 0.2), run(fast, 0.1), run(cell, 0.05))
    assert known(summary, cell).baseline == fast
    assert means([known(summary, cell).speedup]) == pytest.approx([2.0])
    assert [one.cell for one in summary.baselines] == [ONE, fast]


def test_baseline_has_the_same_scaling_if_there_is_one() -> None:
    strong, weak, four = Cell("ddp", 2), Cell("ddp", 2, "weak"), Cell("ddp", 4, "weak")
    runs = [run(strong, 0.1), run(weak, 0.1, samples=12_800), run(four, 0.1, samples=25_600)]
    assert known(summary_of(*runs, baseline="ddp"), four).baseline == weak
    one = known(summary_of(runs[0], runs[2], baseline="ddp"), four)
    assert one.baseline == strong
    assert means([one.speedup]) == pytest.approx([8.0])  # four times the samples, compared with a speed-up of two
    failed = known(summary_of(runs[0], failure(weak), runs[2], baseline="ddp"), four)
    assert failed.baseline == strong


def test_missing_baseline_is_told() -> None:
    summary = summary_of(run(ONE), run(Cell("ddp", 2, axes=BF16)), run(Cell("ddp", 4, axes=BF16)))
    cell = known(summary, Cell("ddp", 2, axes=BF16))
    assert [cell.speedup, cell.efficiency, cell.baseline] == [None] * 3
    assert summary.notes == (
        "No speed-up is known with trainer.precision=bf16-mixed: the baseline, single, was not run.",
    )


def test_failed_baseline_is_told_and_not_replaced_by_the_next() -> None:
    two = Cell("ddp", 2)
    summary = summary_of(failure(Cell("ddp", 1)), run(two), run(Cell("ddp", 4)), baseline="ddp")
    assert [known(summary, two).speedup, known(summary, two).baseline] == [None, None]
    assert summary.notes == ("No speed-up is known: the baseline, ddp with 1 worker, has failed.",)
    assert summary.baselines == ()


def test_failed_cell_has_no_speedup() -> None:
    summary = summary_of(run(ONE), failure(Cell("ddp", 2)))
    cell = known(summary, Cell("ddp", 2))
    assert [cell.speedup, cell.efficiency, cell.throughput, cell.step_p50] == [None] * 4
    assert cell.baseline == ONE


# Series.


def test_series_share_the_cell_with_one_worker() -> None:
    summary = summarize(
        synthetic_record(
            Line(SINGLE, amdahl(), workers=(1,)),
            Line("ddp", weak_communication(), "weak", workers=(4, 1, 2)),
            Line("ddp", amdahl(), workers=(8, 2)),
        )
    )
    found = [(one.strategy, one.scaling, [cell.cell.workers for cell in one.cells]) for one in summary.series]
    assert found == [
        (SINGLE, "strong", [1]),
        (SINGLE, "weak", [1]),
        ("ddp", "strong", [1, 2, 8]),
        ("ddp", "weak", [1, 2, 4]),
    ]
    assert summary.series[2].cells[0] is summary.series[3].cells[0]
    assert {cell.cell.scaling for cell in summary.series[2].cells[1:]} == {"strong"}


def test_each_combination_of_axes_is_a_series_and_failed_cells_are_in_it() -> None:
    record = synthetic_record(Line("ddp", amdahl()), Line("ddp", amdahl(), axes=BF16), failed=[("ddp", 4)])
    series = summarize(record).series
    assert [one.axes for one in series] == [(), BF16]
    assert [[len(cell.runs) for cell in one.cells] for one in series] == [[3, 3, 0, 3]] * 2


def test_one_worker_only_is_a_series_too() -> None:
    assert [(one.scaling, len(one.cells)) for one in summary_of(run(Cell("ddp", 1, "weak"))).series] == [("weak", 1)]


# Losses.


def losses(*found: tuple[Cell, float], baseline: str = SINGLE) -> dict[Cell, float]:
    summary = summary_of(*(run(cell, loss=loss) for cell, loss in found), baseline=baseline)
    return {one.cell: one.reference for one in suspicious_losses(summary)}


def test_wrong_loss_among_three_strategies_is_found() -> None:
    right, also, wrong = Cell("ddp", 2, "weak"), Cell("ray", 2, "weak"), Cell("horovod", 2, "weak")
    assert losses((right, 0.5), (also, 0.502), (wrong, 0.51)) == {wrong: 0.502}
    assert losses((right, 0.5), (also, 0.502), (wrong, 0.507)) == {}
    assert losses((right, -0.5), (also, -0.5), (wrong, 0.5)) == {wrong: -0.5}


def test_median_of_four_is_in_the_middle() -> None:
    cells = [Cell(name, 2, "weak") for name in ("ddp", "ray", "horovod", "deepspeed")]
    assert losses(*zip(cells, (0.5, 0.5, 0.509, 0.509), strict=True)) == {}
    assert losses(*zip(cells, (0.5, 0.52, 0.5, 0.5), strict=True)) == {cells[1]: 0.5}


def test_difference_of_a_loss_is_relative() -> None:
    cells = [(Cell("ddp", 2), 0.5), (Cell("ray", 2), 0.5), (Cell("horovod", 2), 0.6)]
    (one,) = suspicious_losses(summary_of(*(run(cell, loss=loss) for cell, loss in cells)))
    assert one.difference == pytest.approx(0.2)
    assert one.compared_with == (Cell("ddp", 2), Cell("ray", 2))


def test_of_two_without_baseline_both_are_suspicious() -> None:
    first, second = Cell("ddp", 2, "weak"), Cell("ray", 2, "weak")
    assert losses((first, 0.5), (second, 0.507)) == {first: 0.507, second: 0.5}


def test_strong_scaling_agrees_with_the_baseline() -> None:
    two, four, weak = Cell("ddp", 2), Cell("ddp", 4), Cell("ddp", 2, "weak")
    assert losses((ONE, 0.5), (two, 0.5), (four, 0.6), (weak, 0.7)) == {four: 0.5}
    assert losses((Cell("ddp", 1), 0.5), (two, 0.6), baseline="ddp") == {two: 0.5}


def test_baseline_with_one_worker_counts_whatever_its_scaling_and_with_several_it_does_not() -> None:
    one, two, four = Cell("ddp", 1, "weak"), Cell("ddp", 2, "weak"), Cell("ray", 4)
    assert losses((one, 0.5), (four, 0.6), baseline="ddp") == {four: 0.5}
    assert losses((two, 0.5), (four, 0.6), baseline="ddp") == {}


def test_baseline_is_trusted_against_all_others() -> None:
    two, also, wrong = Cell("ddp", 2), Cell("ray", 2), Cell("horovod", 2)
    summary = summary_of(*(run(cell, loss=loss) for cell, loss in ((ONE, 0.5), (two, 0.6), (also, 0.6), (wrong, 0.9))))
    assert {one.cell: (one.reference, one.compared_with) for one in suspicious_losses(summary)} == {
        two: (0.5, (ONE,)),
        also: (0.5, (ONE,)),
        wrong: (0.6, (two, also, ONE)),
    }


def test_one_worker_is_compared_whatever_its_scaling() -> None:
    weak = Cell("ddp", 1, "weak")
    assert losses((ONE, 0.5), (weak, 0.6)) == {weak: 0.5}


def test_other_axes_have_other_losses() -> None:
    assert losses((ONE, 0.5), (Cell("ddp", 2, axes=BF16), 0.6), (Cell("ddp", 2), 0.5)) == {}


def test_loss_that_is_not_number_is_suspicious_unless_all_are() -> None:
    cells = [Cell(name, 2, "weak") for name in ("ddp", "ray", "horovod")]
    assert list(losses(*zip(cells, (0.5, math.nan, 0.5), strict=True))) == [cells[1]]
    assert list(losses(*zip(cells[:2], (0.5, math.nan), strict=True))) == cells[:2]
    assert losses(*zip(cells, (math.nan,) * 3, strict=True)) == {}
    assert list(losses(*zip(cells, (0.5, math.inf, 0.5), strict=True))) == [cells[1]]


def test_loss_of_zero_is_compared_too() -> None:
    cells = [Cell(name, 2) for name in ("ddp", "ray", "horovod")]
    assert losses(*zip(cells, (0.0, 0.0, 0.0), strict=True)) == {}
    assert list(losses(*zip(cells, (0.0, 0.1, 0.0), strict=True))) == [cells[1]]


def test_right_benchmark_has_no_suspicious_losses() -> None:
    record = synthetic_record(Line(SINGLE, amdahl(), workers=(1,)), Line("ddp", amdahl()), Line("ray", communication()))
    assert suspicious_losses(summarize(record)) == []


def test_cell_in_words() -> None:
    assert cell_text(ONE) == "single with 1 worker"
    assert cell_text(Cell("ddp", 2, "weak", BF16)) == "ddp with 2 workers, weak scaling, trainer.precision=bf16-mixed"


def test_loss_alone_may_be_negative() -> None:
    cell = only(
        *(
            run(ONE, 0.1, repeat, loss=loss, launch=launch)
            for repeat, (loss, launch) in enumerate([(-1.0, 1.0), (1.0, 9.0)])
        )
    )
    assert cell.loss is not None and cell.loss.low is not None and cell.loss.low < -1
    assert cell.launch is not None and cell.launch.low == 0.0 and (cell.launch.high or 0) > 9


# Order.


def test_cells_stand_in_the_order_in_which_people_look_for_them() -> None:
    batches = [(("data.batch_size", value),) for value in ("64", "128")]
    cells = [Cell(SINGLE, 1, axes=axes) for axes in batches]
    for strategy in ("ddp", "ray"):
        for scaling, axes in itertools.product(("strong", "weak"), batches):
            few = (1, 2, 10) if scaling == "strong" else (2, 10)
            cells += [Cell(strategy, workers, scaling, axes) for workers in few]
    for seed in range(3):
        shuffled = random.Random(seed).sample(cells, len(cells))
        assert [one.cell for one in summary_of(*map(run, shuffled)).cells] == cells
    by_ray = [one.cell.strategy for one in summary_of(*map(run, cells), baseline="ray").cells]
    assert by_ray[0] == "ray" and list(dict.fromkeys(by_ray)) == ["ray", "ddp", SINGLE]

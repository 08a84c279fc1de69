"""Laws of scaling: what is fitted to benchmarks whose law is known, and how sure the extrapolation says it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import pytest
from scipy.optimize import nnls

from itwinai.benchmark.records import SINGLE, BenchmarkRecord, Measured, Measurement, Scaling
from itwinai.benchmark.statistics.confidence_intervals import Estimate, ratio_of
from itwinai.benchmark.statistics.scaling_law import FittedLaw, NoFit, fit
from itwinai.benchmark.statistics.scaling_models import (
    PARAMETERS,
    CellTimes,
    fit_models,
    gustafson,
    models_for,
    terms,
)
from itwinai.benchmark.statistics.summary import Series, summarize
from itwinai.errors import ConfigurationError
from tests.benchmark.synthetic import Law, Line, amdahl, communication, synthetic_record, weak_communication

KNOWN: list[tuple[Law, Scaling, str, dict[str, float]]] = [
    (amdahl(0.1, 0.0), "strong", "ideal scaling", {"work": 0.1}),
    (amdahl(0.1, 0.05), "strong", "Amdahl's law", {"one_worker": 0.1, "serial_share": 0.05}),
    (amdahl(0.1, 1.0), "strong", "Amdahl's law", {"one_worker": 0.1, "serial_share": 1.0}),
    (communication(0.1, 2e-3, 0.0), "strong", "latency", {"work": 0.1, "latency": 2e-3}),
    (communication(0.1, 2e-3, 0.02), "strong", "ring all-reduce", {"work": 0.1, "latency": 2e-3, "transfer": 0.02}),
    (weak_communication(0.1, 0.0, 0.0), "weak", "ideal scaling", {"work": 0.1}),
    (weak_communication(0.1, 0.0, 0.02), "weak", "transfer", {"work": 0.1, "transfer": 0.02}),
    (weak_communication(0.1, 5e-3, 0.0), "weak", "latency", {"work": 0.1, "latency": 5e-3}),
    (weak_communication(0.1, 5e-3, 0.03), "weak", "ring all-reduce", {"work": 0.1, "latency": 5e-3, "transfer": 0.03}),
]


def series_of(law: Law, scaling: Scaling = "strong", workers: Sequence[int] = (1, 2, 4, 8), **record: Any) -> Series:
    return summarize(synthetic_record(Line("ddp", law, scaling, workers), **record)).series[0]


def law_of(law: Law, scaling: Scaling = "strong", workers: Sequence[int] = (1, 2, 4, 8), **record: Any) -> FittedLaw:
    found = fit(series_of(law, scaling, workers, **record))
    assert isinstance(found, FittedLaw)
    return found


def changed(series: Series, change: Callable[[Measurement], Measured]) -> Series:
    """Return a line with other measurements."""
    runs = [dataclasses.replace(run, measured=change(run)) for one in series.cells for run in one.runs]
    return summarize(BenchmarkRecord("changed", measurements=runs)).series[0]


def holds(estimate: Estimate, truth: float) -> bool:
    assert estimate.low is not None and estimate.high is not None
    assert estimate.low <= estimate.mean <= estimate.high
    return estimate.low <= truth <= estimate.high


def width(estimate: Estimate) -> float:
    assert estimate.low is not None and estimate.high is not None
    return (estimate.high - estimate.low) / estimate.mean


@pytest.mark.parametrize(("law", "scaling", "name", "parameters"), KNOWN)
@pytest.mark.parametrize("repeats", [1, 3])
def test_exact_times_give_the_law_back(
    law: Law, scaling: Scaling, name: str, parameters: dict[str, float], repeats: int
) -> None:
    """With three repeats AICc chooses, with one the variance: both take the simplest law that is exact."""
    found = law_of(law, scaling, repeats=repeats)
    assert found.name == name
    assert set(parameters) == set(found.parameters) - {"gustafson_serial_share"}
    for parameter, value in parameters.items():
        estimate = found.parameters[parameter]
        assert estimate.mean == pytest.approx(value, rel=1e-6)
        assert holds(estimate, estimate.mean) and width(estimate) < 1e-6
        assert parameter in found.formula and parameter in PARAMETERS
    assert found.deviation < 1e-9
    assert found.step_time(64).mean == pytest.approx(law(64), rel=1e-6)
    assert (found.runs, found.workers) == (4 * repeats, (1, 2, 4, 8))


@pytest.mark.parametrize(("law", "scaling", "name", "parameters"), KNOWN)
def test_noisy_times_give_the_law_back_within_its_intervals(
    law: Law, scaling: Scaling, name: str, parameters: dict[str, float]
) -> None:
    found = law_of(law, scaling, workers=(1, 2, 4, 8, 16), noise=0.02, seed=3)
    assert found.name == name
    for parameter, value in parameters.items():
        assert holds(found.parameters[parameter], value) or value == 1.0  # the share ends there
        assert found.parameters[parameter].mean == pytest.approx(value, rel=0.25)
    for workers in (1, 8, 64, 1000):
        assert holds(found.step_time(workers), law(workers))


@pytest.mark.parametrize(
    ("law", "scaling"),
    [
        (amdahl(0.1, 0.05), "strong"),
        (communication(0.1, 2e-4, 4e-3), "strong"),
        (weak_communication(0.1, 2e-4, 4e-3), "weak"),
        (weak_communication(0.1, 2e-3, 0.0), "weak"),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(law: Law, scaling: Scaling) -> None:
    """Also where the noise hides the smaller terms, so that a simpler law is chosen: the intervals count that in."""
    laws = [law_of(law, scaling, noise=0.02, seed=seed) for seed in range(200)]
    assert sum(holds(one.step_time(64), law(64)) for one in laws) / len(laws) >= 0.88  # 0.95, give or take chance
    share = 64 if scaling == "weak" else 1
    assert sum(holds(one.speedup(64), share * law(1) / law(64)) for one in laws) / len(laws) >= 0.88
    assert median(width(one.step_time(4)) for one in laws) < 0.1  # and they are no wider than they have to be


def test_three_numbers_of_workers_allow_a_wide_guess_only() -> None:
    three = [law_of(amdahl(), workers=(1, 2, 4), noise=0.02, seed=seed) for seed in range(20)]
    five = [law_of(amdahl(), workers=(1, 2, 4, 8, 16), noise=0.02, seed=seed) for seed in range(20)]
    assert median(width(one.step_time(64)) for one in three) > 2
    assert median(width(one.step_time(64)) for one in five) < median(width(one.step_time(64)) for one in three) / 2
    assert "Three numbers of workers" in three[0].words
    assert "Three numbers of workers" not in five[0].words


def test_uncertainty_grows_with_the_noise_and_with_the_distance() -> None:
    quiet, noisy = (law_of(amdahl(), workers=(1, 2, 4, 8, 16), noise=noise, seed=1) for noise in (0.002, 0.02))
    assert width(quiet.step_time(8)) < width(noisy.step_time(8)) / 3
    assert width(noisy.step_time(8)) < width(noisy.step_time(256))


def test_fewer_repeats_are_less_certain() -> None:
    once, thrice = (
        median(width(law_of(amdahl(), noise=0.02, seed=seed, repeats=repeats).step_time(8)) for seed in range(20))
        for repeats in (1, 3)
    )
    assert once > 1.5 * thrice


def test_cells_that_no_law_fits_make_it_uncertain_though_the_repeats_agree() -> None:
    def bent(workers: int) -> float:
        return amdahl()(workers) * {1: 1.0, 2: 1.08, 4: 0.94, 8: 1.03}[workers]

    found = law_of(bent)
    assert found.deviation > 0.02
    assert width(found.step_time(4)) > 4 * found.deviation
    assert holds(found.step_time(4), amdahl()(4))


def test_two_numbers_of_workers_give_no_law() -> None:
    found = fit(series_of(amdahl(), workers=(1, 2)))
    assert isinstance(found, NoFit)
    assert found.reason == ("A law needs 3 different numbers of workers, and ddp was measured with 1, 2 only.")


def test_cells_that_have_failed_do_not_count() -> None:
    found = fit(series_of(amdahl(), workers=(1, 2, 4), failed=[("ddp", 2)]))
    assert isinstance(found, NoFit)
    assert found.reason.endswith("measured with 1, 4 only (failed: 2).")
    assert law_of(amdahl(), failed=[("ddp", 2)]).workers == (1, 4, 8)
    nothing = fit(series_of(amdahl(), workers=(1,), failed=[("ddp", 1)]))
    assert isinstance(nothing, NoFit) and "measured with none only" in nothing.reason


def test_law_needs_no_cell_with_one_worker() -> None:
    found = law_of(amdahl(), workers=(2, 4, 8))
    assert found.step_time(1).mean == pytest.approx(amdahl()(1))
    assert found.speedup(8).mean == pytest.approx(amdahl()(1) / amdahl()(8))


def test_steps_that_become_shorter_with_weak_scaling_are_not_extrapolated() -> None:
    """No term does that: a cache that suddenly fits helps once."""
    found = law_of(lambda workers: 0.1 - 0.002 * workers, "weak")
    assert found.name == "ideal scaling"
    assert found.step_time(1000).mean == pytest.approx(found.step_time(1).mean)


def test_workers_that_only_slow_each_other_down_have_a_law_too() -> None:
    found = law_of(lambda workers: 0.1 * workers)
    assert found.step_time(8).mean > found.step_time(2).mean > 0
    assert found.speedup(1) == Estimate(1, 1, 1, 12)
    assert found.knee(64) == 1


def test_weights_are_the_repeats() -> None:
    """A cell of which two of three runs have failed says less than the others."""
    record = synthetic_record(Line("ddp", amdahl()), repeats=3)
    runs = [
        dataclasses.replace(
            run,
            status="failed" if run.cell.workers == 8 and run.repeat else "measured",
            measured=run.measured
            and dataclasses.replace(run.measured, seconds=run.measured.seconds * (1.1 if run.cell.workers == 8 else 1)),
        )
        for run in record.measurements
    ]
    few = fit(summarize(dataclasses.replace(record, measurements=runs)).series[0])
    all_runs = [dataclasses.replace(run, status="measured") for run in runs]
    many = fit(summarize(dataclasses.replace(record, measurements=all_runs)).series[0])
    assert isinstance(few, FittedLaw) and isinstance(many, FittedLaw)
    assert few.runs == 10
    at_8 = 1.1 * amdahl()(8)
    assert abs(few.factors @ terms([8])[0] - at_8) > abs(many.factors @ terms([8])[0] - at_8)


def test_same_measurements_give_the_same_intervals() -> None:
    first, second = (law_of(amdahl(), noise=0.02, seed=5) for _ in range(2))
    assert first == second
    assert first.step_time(64) == second.step_time(64)


def test_speedup_is_against_one_worker_of_its_own() -> None:
    strong, weak = law_of(amdahl()), law_of(weak_communication(), "weak")
    assert strong.speedup(64).mean == pytest.approx(1 / (0.05 + 0.95 / 64))
    assert weak.speedup(64).mean == pytest.approx(64 * weak_communication()(1) / weak_communication()(64))


@pytest.mark.parametrize(("scaling", "samples"), [("strong", True), ("weak", True), ("strong", False), ("weak", False)])
def test_speedup_is_against_another_baseline_as_measured_ones_are(scaling: Scaling, samples: bool) -> None:
    law = amdahl(0.2) if scaling == "strong" else weak_communication(0.2, 1e-3)
    record = synthetic_record(Line("ray", amdahl(0.1), workers=(2,)), Line("ddp", law, scaling), baseline="ray")
    if not samples:
        told = [
            dataclasses.replace(one, measured=one.measured and dataclasses.replace(one.measured, samples=None))
            for one in record.measurements
        ]
        record = dataclasses.replace(record, measurements=told)
    summary = summarize(record)
    found = fit(summary.series[-1])
    assert isinstance(found, FittedLaw)
    for cell in summary.series[-1].cells:
        assert cell.speedup is not None
        assert found.speedup(cell.cell.workers, summary.baselines[0]).mean == pytest.approx(cell.speedup.mean)


def test_noise_of_the_baseline_counts() -> None:
    quiet = law_of(amdahl(), noise=0.001)
    noisy = series_of(amdahl(), noise=0.1, workers=(1,)).cells[0]
    interval = ratio_of([1.0] * 3, noisy.rates(by_samples=True))
    assert width(quiet.speedup(8, noisy)) == pytest.approx(width(interval), rel=0.1)
    assert width(quiet.speedup(8, noisy)) > 5 * width(quiet.speedup(8))
    once = series_of(amdahl(), noise=0.1, workers=(1,), repeats=1).cells[0]
    assert width(quiet.speedup(8, once)) < 5 * width(quiet.speedup(8))  # nothing is known of its noise


def test_baseline_that_does_not_tell_its_samples_is_compared_by_steps() -> None:
    def untold(run: Measurement) -> Measured:
        assert run.measured is not None
        return dataclasses.replace(run.measured, samples=None)

    baseline = changed(series_of(amdahl(0.2), workers=(1,)), untold).cells[0]
    assert law_of(amdahl(0.1)).speedup(8, baseline).mean == pytest.approx(amdahl(0.2)(1) / amdahl(0.1)(8))


def test_no_draw_has_a_step_without_time() -> None:
    """Times that grow faster than any law: one worker would be best fitted with none."""
    found = law_of(lambda workers: 0.01 * (workers - 1.1), "weak", workers=(2, 4, 8), repeats=1)
    assert found.step_time(8).mean == pytest.approx(0.069, rel=0.1)
    for estimate in (found.step_time(1), found.speedup(1), found.speedup(64), found.throughput(1)):
        assert estimate is not None and estimate.low is not None and estimate.high is not None
        assert 0 < estimate.low <= estimate.mean <= estimate.high < float("inf")


def test_failed_baseline_is_an_error() -> None:
    failed = series_of(amdahl(), workers=(1,), failed=[("ddp", 1)]).cells[0]
    with pytest.raises(ConfigurationError, match="baseline has failed"):
        law_of(amdahl()).speedup(8, failed)


def test_throughput_goes_with_the_batch() -> None:
    strong, weak = law_of(amdahl(), batch=32), law_of(weak_communication(), "weak", batch=32)
    throughputs = [strong.throughput(64), weak.throughput(64)]
    assert [one and one.mean for one in throughputs] == pytest.approx(
        [32 / amdahl()(64), 64 * 32 / weak_communication()(64)]
    )


def test_throughput_is_unknown_if_a_run_does_not_tell_its_samples() -> None:
    def untold(run: Measurement) -> Measured:
        assert run.measured is not None
        return dataclasses.replace(run.measured, samples=None if run.repeat == 0 else run.measured.samples)

    found = fit(changed(series_of(amdahl()), untold))
    assert isinstance(found, FittedLaw)
    assert found.throughput(64) is None
    assert found.speedup(64).mean == pytest.approx(law_of(amdahl()).speedup(64).mean)


def test_knee_of_amdahl_is_where_serial_and_parallel_part_are_equal() -> None:
    """The time is s + p / N; S^2 / N, and so 1 / (N t^2), is largest at N = p / s."""
    found = law_of(amdahl(0.1, 0.05))
    assert found.knee(64) == found.knee(19) == 19
    assert found.knee(18) is None


def test_knee_of_weak_scaling_is_where_latency_is_as_long_as_work() -> None:
    """The time is w + l (N - 1); N / t^2 is largest at N = w / l - 1."""
    found = law_of(weak_communication(0.1, 4e-3, 0.0), "weak")
    assert found.knee(100) == 24
    assert found.knee(20) is None
    assert law_of(weak_communication(0.1, 0.0, 0.0), "weak").knee(1000) is None


def test_no_time_without_workers() -> None:
    with pytest.raises(ConfigurationError, match="0 workers"):
        law_of(amdahl()).step_time(0)


def test_words_say_what_was_chosen_and_why() -> None:
    found = law_of(amdahl(0.1, 0.05))
    assert "5 % of the step of one worker" in found.words.replace("5.00", "5")
    # 12 runs: AICc charges 9 for two parameters and the variance, 13.7 for one more.
    assert "'Amdahl's law' was chosen among 4 models for 12 runs with 4 numbers of workers" in found.words
    assert "its AICc is 4.7 lower than that of 'ring all-reduce'." in found.words
    once = law_of(amdahl(0.1, 0.05), repeats=1)
    assert "AICc" not in once.words and "halve the variance" in once.words


def test_words_say_which_law_is_about_as_good() -> None:
    found = law_of(communication(0.1, 2e-4, 4e-3), noise=0.02, seed=1)
    lead = float(found.words.split("AICc is ")[1].split(" lower")[0])
    assert ("is about as good" in found.words) == (lead <= 2)
    assert any(
        "is about as good" in law_of(communication(0.1, 2e-4, 4e-3), noise=0.02, seed=seed).words for seed in range(9)
    )


def test_words_warn_of_the_network_that_was_not_measured() -> None:
    def on_nodes(run: Measurement) -> Measured:
        assert run.measured is not None
        return dataclasses.replace(run.measured, nodes=2 if run.cell.workers == 8 else 1)

    several = fit(changed(series_of(amdahl()), on_nodes))
    assert isinstance(several, FittedLaw)
    assert "network between nodes" in law_of(amdahl()).words
    assert "network between nodes" not in several.words


def test_serial_share_of_gustafson() -> None:
    """Where two workers are no faster than one, all is serial; where a step stays as it is, nothing."""
    assert gustafson((1, 2), np.array([0.0, 0.1, 0.1, 0.0])) == pytest.approx(1.0)
    assert gustafson((1, 2, 4), np.array([0.0, 0.1, 0.0, 0.0])) == pytest.approx(0.0)
    law = weak_communication(0.1, 0.0, 0.01)
    found = law_of(law, "weak").parameters["gustafson_serial_share"].mean
    number = np.array([1, 2, 4, 8])
    speedup = np.array([one * law(1) / law(one) for one in (1, 2, 4, 8)])
    (expected,), *_ = np.linalg.lstsq((number - 1.0)[:, None], number - speedup, rcond=None)
    assert found == pytest.approx(expected)
    assert "gustafson_serial_share" not in law_of(amdahl()).parameters


def test_candidates_have_fewer_parameters_than_there_are_numbers_of_workers() -> None:
    scalings: tuple[Scaling, ...] = ("strong", "weak")
    for scaling in scalings:
        assert max(len(law.columns) for law in models_for(scaling, 3)) == 2
        assert [len(law.columns) for law in models_for(scaling, 4)] == [1, 2, 2, 3]


def test_least_squares_are_those_of_lawson_and_hanson() -> None:
    """All experiments at once give what SciPy's solver gives for each of them."""
    generator = np.random.default_rng(0)
    workers, repeats = (1, 2, 4, 8, 16), np.array([3.0, 1.0, 2.0, 3.0, 3.0])
    measured = np.array([amdahl()(one) for one in workers])
    times = CellTimes(workers, measured, repeats, 0.0)
    means = measured * np.exp(0.2 * generator.standard_normal((40, len(workers))))
    scalings: tuple[Scaling, ...] = ("strong", "weak")
    weights, zeros = np.sqrt(repeats) / measured, 0
    for scaling in scalings:
        laws = models_for(scaling, len(workers))
        factors, squares = fit_models(laws, times, means)
        for index, law in enumerate(laws):
            columns = list(law.columns.values())
            for experiment, mean in enumerate(means):
                expected, residual = nnls(terms(workers)[:, columns] * weights[:, None], mean * weights)
                zeros += int(not expected.all())
                assert factors[index, experiment, columns] == pytest.approx(expected, rel=1e-6, abs=1e-9)
                assert squares[index, experiment] == pytest.approx(residual**2)
    assert zeros > 30  # it matters that they are not negative


def test_synthetic_benchmark_measures_one_worker_once() -> None:
    record = synthetic_record(
        Line(SINGLE, amdahl(), workers=(1,)), Line("ddp", amdahl()), Line("ddp", weak_communication(), "weak")
    )
    counts = [sum(one.cell.workers == workers for one in record.measurements) for workers in (1, 2)]
    assert counts == [2 * 3, 2 * 3]

"""The findings of a benchmark: what the figures support, and nothing else."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from itwinai.benchmark.records import BenchmarkRecord, Breakdown, Cell, Measured, Measurement
from itwinai.benchmark.report.findings import Findings
from tests.benchmark.examples import (
    changed,
    failing,
    found_in,
    interrupted,
    rich,
    slowed_baseline,
    split,
    two_precisions,
)
from tests.benchmark.synthetic import Line, amdahl, made_up, synthetic_record

SINGLE = Line("single", amdahl(), workers=(1,))

NO_RECOMMENDATION = (
    "No recommendation: the measurements are doubtful, see the warnings. Rerun with a new --folder when the machine is "
    "idle."
)


def two(factor: float, noise: float = 0.01, repeats: int = 4) -> BenchmarkRecord:
    """Return two strategies, the second of which takes ``factor`` times as long."""
    return synthetic_record(
        SINGLE,
        Line("ddp", amdahl(0.1), workers=(1, 2, 4)),
        Line("ray", amdahl(0.1 * factor), workers=(1, 2, 4)),
        noise=noise,
        repeats=repeats,
        seed=3,
    )


def finding(record: BenchmarkRecord, about: str, group: str = "") -> str:
    return next(one for one in found_in(record).findings if one.name == group).sentences[about]


# ------------------------------------------------------------------------------------------------------ who is fastest


def test_fastest_with_a_difference_that_is_more_than_chance() -> None:
    text = finding(two(1.3), "fastest")
    pattern = (
        r"ddp with 4 workers, 2,2\d\d ± \d+ samples/s: (1\.\d+) ± 0.0\d times as fast as ray, the next \(p < 0.001\)"
    )
    found = re.fullmatch(pattern, text)
    assert found is not None and float(found[1]) == pytest.approx(1.3, abs=0.03)


def test_fastest_without_a_difference_says_so() -> None:
    text = finding(two(1.001, noise=0.05), "fastest")
    assert "with 4 repeats (p = 0." in text and ("no significant difference to ray" in text or "to ddp" in text)
    assert "times as fast" not in text


def test_fastest_of_single_runs_is_not_sure() -> None:
    record = two(1.3, repeats=1)
    assert finding(record, "fastest").endswith("With a single run this may be chance")
    assert "each cell has one run only. Use --repeats 3 or more" in found_in(record).missing[0]
    assert "±" not in finding(record, "fastest")


def test_fastest_that_is_alone_says_so() -> None:
    record = failing(two(1.3), lambda one: one.cell == Cell("ddp", 4))
    assert finding(record, "fastest").endswith("samples/s; no other strategy has a result with this many workers")
    alone = synthetic_record(SINGLE, Line("ddp", amdahl()))
    assert finding(alone, "fastest").endswith(" samples/s")


def test_every_rival_is_counted_in_the_p_values() -> None:
    def record(*names: str) -> BenchmarkRecord:
        """Return strategies with 2 workers, all but the first of which take 3 % longer: p = 0.022 for one of them."""
        return BenchmarkRecord(
            "s",
            measurements=[
                Measurement(Cell(name, 2), repeat, "measured", 0, 0, made_up(seconds * (1 if name == "a" else 1.03), 2))
                for name in names
                for repeat, seconds in enumerate((0.1, 0.101, 0.099))
            ],
        )

    assert "1.03 ± 0.02 times as fast as b, the next (p = 0.022)" in finding(record("a", "b"), "fastest")
    assert finding(record("a", "b", "c", "d"), "fastest").endswith(
        "But there is no significant difference to b, c and d with 3 repeats (p = 0.067 or more)"
    )


def test_fewer_workers_that_are_faster() -> None:
    record = synthetic_record(
        SINGLE, Line("ddp", lambda workers: 0.1 * workers, workers=(2, 4)), noise=0.01, extrapolate=()
    )
    text = finding(record, "fewer workers")
    assert text == (
        "single with 1 worker is 3.98 ± 0.06 times as fast as ddp with 4 workers (p < 0.001): more workers do not help "
        "here"
    )
    assert "fewer workers" not in found_in(two(1.3)).findings[0].sentences
    for seed in range(4):  # in two of them fewer workers are faster by chance
        same = synthetic_record(Line("ddp", lambda _: 0.1, workers=(2, 4)), noise=0.05, seed=seed)
        assert "fewer workers" not in found_in(same).findings[0].sentences


def test_scaling_and_knee() -> None:
    record = synthetic_record(
        SINGLE, Line("ddp", amdahl(serial_share=0.1), workers=(1, 2, 4, 8)), noise=1e-3, extrapolate=(64,)
    )
    text = finding(record, "scaling")
    assert text.startswith("ddp with 8 workers has a speed-up of 4.") and "over single with 1 worker" in text
    assert text.endswith("at least 80 % up to 2 workers")  # 91 % with 2 workers, 77 % with 4
    # S^2 / N is largest at (1 - s) / s workers by Amdahl's law, with the serial share s of `amdahl`: 5 % of 0.1 s.
    assert finding(record, "knee").startswith("at about 9 workers, which is extrapolated: ")
    within = synthetic_record(SINGLE, Line("ddp", amdahl(serial_share=0.2), workers=(1, 2, 4, 8)), noise=1e-3)
    assert finding(within, "knee").startswith("at about 4 workers: ")
    beyond = synthetic_record(SINGLE, Line("ddp", amdahl(serial_share=1e-4), workers=(1, 2, 4, 8)), noise=1e-5)
    assert finding(beyond, "knee").startswith("none up to 64 workers")


def test_settings_are_compared() -> None:
    found = found_in(two_precisions())
    (text,) = (one.sentences["fastest"] for one in found.findings if one.name == "settings")
    assert text.startswith("precision=bf16-mixed is fastest: ddp with 2 workers is 1.59 ± 0.0")
    assert "with precision=32-true (p < 0.001)" in text
    assert [one.name for one in found.findings[1:]] == ["precision=32-true", "precision=bf16-mixed"]


# ------------------------------------------------------------------------------------------------------ losses


def test_wrong_losses_come_first_and_do_not_win() -> None:
    record = synthetic_record(
        SINGLE,
        Line("ddp", amdahl(0.1), workers=(1, 2)),
        Line("ray", amdahl(0.11), workers=(1, 2)),
        Line("horovod", amdahl(0.02), workers=(1, 2), loss=0.7),
        noise=0.005,
    )
    found = found_in(record)
    assert found.warnings[0].startswith("horovod with 1 worker ended with a loss of 0.7, and 3 others on the same")
    assert finding(record, "fastest").startswith("ddp with 2 workers")
    assert found.paragraphs[0] == f"Warning: {found.warnings[0]}"


def test_loss_that_differs_from_the_baseline_only_stays_in_the_contest() -> None:
    record = synthetic_record(
        SINGLE, Line("ddp", amdahl(), workers=(2,), loss=0.6), Line("ray", amdahl(), workers=(2,), loss=0.6)
    )
    found = found_in(record)
    assert "Dropout and batch normalization can be the reason" in found.warnings[0]
    assert "with 2 workers" in finding(record, "fastest")


@pytest.mark.parametrize(
    ("loss", "told"), [(0.52, "it may have trained something else, or rounding has"), (0.7, "it trained")]
)
def test_a_loss_that_rounding_may_explain_is_no_verdict(loss: float, told: str) -> None:
    lines = [Line(name, amdahl(), workers=(2,), loss=0.5) for name in ("ddp", "ray")]
    found = found_in(synthetic_record(SINGLE, *lines, Line("horovod", amdahl(), workers=(2,), loss=loss)))
    assert f": {told}" in found.warnings[0]


def test_infinite_losses_are_warned_of() -> None:
    record = changed(two(1.3), lambda cell, measured: replace(measured, loss=math.nan))
    (warning,) = found_in(record).warnings
    assert warning.startswith("The loss of single with 1 worker; ddp with 1, 2 and 4")
    assert found_in(two(1.3)).warnings == ()


# ------------------------------------------------------------------------------------------------------ advice


def advised(breakdown: Breakdown | None, workers: int = 4, **measured: object) -> list[str]:
    """Return the advice for one strategy with such steps."""
    record = synthetic_record(SINGLE, Line("ddp", lambda _: 0.1, workers=(workers,)), noise=0.002)
    return list(
        found_in(
            changed(
                record,
                lambda cell, one: replace(one, breakdown=breakdown, **measured) if cell.workers == workers else one,  # type: ignore[arg-type]
            )
        ).recommendations
    )


def test_nothing_is_advised_for_a_good_benchmark() -> None:
    assert advised(split(data=15, compute=60, communication=20, other=5)) == []
    assert advised(None) == []


def test_waiting_for_data() -> None:
    (text,) = advised(split(data=31, compute=69))
    assert text.startswith("ddp with 4 workers: 31 % of a step (31.0 ms) waits for data. Raise num_workers")


def test_waiting_for_the_exchange() -> None:
    (text,) = advised(split(compute=60, communication=40), gradient_bytes=80_000_000, parameters=20_000_000)
    assert "40 % of a step (40.0 ms) waits for other workers, with gradients of 76.3 MiB." in text
    assert text.endswith("Gradients in bf16 halve what is sent.")
    for size, parameters in ((400_000, 100_000), (80_000_000, 40_000_000)):  # latency counts; or they are bf16 already
        (text,) = advised(split(compute=60, communication=40), gradient_bytes=size, parameters=parameters)
        assert "accumulate_grad_batches" in text and "bf16" not in text
    (text,) = advised(replace(split(compute=60, communication=30), hidden=0.01))
    assert "25 % of the exchange is hidden behind backward" in text


def test_waiting_for_a_slow_worker_is_not_the_exchange() -> None:
    (text,) = advised(split(compute=60, communication=40), busy=(0.05, 0.05, 0.1, 0.05))
    assert text.startswith("ddp with 4 workers: the busiest worker (rank 2 in every run) is busy 60.0 % longer")
    assert "the others wait 37.5 ms of each step for it" in text
    assert len(advised(split(compute=60, communication=40), busy=(0.05, 0.05, 0.065, 0.05))) == 2  # some of both


def test_batches_too_small_to_be_divided() -> None:
    (text,) = advised(split(compute=40, communication=24, data=16, other=20))
    assert "the efficiency is 25" in text and "a worker computes 40.0 ms of a step (40 %) with a batch of 16.0" in text
    assert text.endswith("Measure with --scaling weak, where each worker keeps its batch.")
    record = changed(
        synthetic_record(
            SINGLE,
            Line("ddp", lambda _: 0.1, workers=(4,)),
            Line("ddp", lambda _: 0.11, "weak", workers=(4,)),
            noise=1e-3,
        ),
        lambda cell, one: replace(one, breakdown=split(compute=40, communication=24, data=16, other=20)),
    )
    assert (
        found_in(record)
        .recommendations[0]
        .endswith("With weak scaling, where each worker keeps its batch, it is 90.9 ± 0.1 %.")
    )


def test_other_work_and_noise() -> None:
    (text,) = advised(split(compute=70, other=30))
    assert "30 % of a step (30.0 ms) goes to hooks, callbacks and the loop itself" in text
    (text,) = found_in(synthetic_record(Line("single", amdahl(), workers=(1,)), noise=0.2)).recommendations
    assert "the mean of 3 runs is known only to ± " in text and "Use more repeats" in text


# ------------------------------------------------------------------------------------------------------ what is missing


def test_failures() -> None:
    found = found_in(rich())
    assert found.failed[0] == "6 of 21 cells have no result."
    assert "horovod (all 5 cells) failed: ModuleNotFoundError: No module named <script>" in found.failed[1]
    assert found.failed[1].endswith("line 3. The output of the first of them is in runs/horovod/output.txt.")
    assert found.failed[2] == (
        "ray with 4 workers (weak scaling) timed out: no first step after 600 s. Its output is in runs/ray/output.txt."
    )
    some = failing(two(1.3), lambda one: one.cell == Cell("ray", 2) and one.repeat == 1, error="")
    assert found_in(some).failed == ("ray with 2 workers: 1 of 4 runs failed: no error is known.",)


def test_missing_measurements_have_reasons() -> None:
    record = changed(
        two(1.3),
        lambda cell, one: replace(
            one,
            samples=None,
            breakdown=None,
            peak_memory=(None,) * cell.workers,
            loss=None if cell.strategy == "ray" else one.loss,
        ),
    )
    missing = found_in(record).missing
    assert missing[0].startswith("samples per second: the number of samples is unknown")
    assert missing[1] == "energy: this machine does not tell"
    assert missing[2:4] == (
        "where a step goes: the loop of these runs does not measure it",
        "memory: the system does not report it",
    )
    assert missing[4].endswith("(3 of 7 cells)")
    assert "batches/s" in finding(record, "fastest")


def test_without_a_baseline_nothing_is_said_of_scaling() -> None:
    record = failing(two(1.3), lambda one: one.cell.strategy == "single")
    assert "scaling" not in found_in(record).findings[0].sentences
    assert found_in(record).notes[0].startswith("No speed-up is known: the baseline, single with 1 worker, has failed")
    assert found_in(replace(record, measurements=())).notes == ("Nothing was run.",)


def test_a_failed_cell_has_no_result_and_its_error_is_told_once() -> None:
    record = synthetic_record(SINGLE, failed=[("single", 1)], repeats=1)
    found = found_in(record)
    assert found.failed[0] == "1 of 1 cell has no result."
    long = failing(two(1.3), lambda one: one.cell == Cell("single", 1), error="RuntimeError: " + 100 * "why " + "end")
    text = " ".join(found_in(long).paragraphs)
    assert text.count("RuntimeError") == 1 and "why end." in text and "single with 1 worker, has failed." in text


# ------------------------------------------------------------------------------------------------------ doubts


def test_implausible_efficiencies_are_left_out_of_findings() -> None:
    record = slowed_baseline()
    found = found_in(record)
    assert found.warnings[0].startswith("An efficiency of 1,000 % (ddp with 1 and 2 workers) is not plausible: more ")
    assert "Other programs probably slowed the baseline, single with 1 worker: 64.0 ± 0." in found.warnings[0]
    assert "samples/s, p95 of its steps is 1.20 times p50, the slowest of 3 runs is 0." in found.warnings[0]
    assert "remove its lines from records.jsonl" in found.warnings[0]
    assert "--retry-failed does not measure it again" in found.warnings[0]
    assert found.findings == found.recommendations == ()  # nothing follows from them
    assert found.paragraphs[0] == f"Warning: {found.warnings[0]}"
    assert found.answers == (NO_RECOMMENDATION,)


def test_nothing_is_recommended_of_doubtful_groups_only() -> None:
    strong, weak = (SINGLE, Line("ddp", lambda _: 0.08, workers=(2,))), Line("ddp", lambda _: 0.1, "weak", workers=(2,))

    def stalled(cell: Cell, one: Measured) -> Measured:
        return replace(one, step_p50=one.step_p50 / 2.5) if cell == Cell("ddp", 2, "weak") else one

    found = found_in(changed(synthetic_record(*strong, weak), stalled))
    refused, taken = found.answers
    assert refused == NO_RECOMMENDATION.replace("recommendation:", "recommendation for weak scaling:")
    assert taken.startswith("Strong scaling: use ddp with 2 workers")
    assert [one.name for one in found.findings] == ["strong scaling"]
    assert "weak" not in " ".join(found.recommendations)


def test_cells_with_different_threads_are_not_compared() -> None:
    record = changed(two(1.3), lambda cell, one: replace(one, threads=1 if cell.strategy == "ray" else 2))
    found = found_in(record)
    (warning,) = found.warnings
    assert "different numbers of threads" in warning and "2 threads in single with 1 worker; ddp with" in warning
    assert "1 thread in ray with 1, 2 and 4 workers" in warning and "--threads" in warning
    assert found.answers == (NO_RECOMMENDATION,)
    same = changed(two(1.3), lambda cell, one: replace(one, threads=2))
    assert found_in(same).warnings == () and found_in(same).answers[0].startswith("Use ")
    varied = [Line("ddp", amdahl(), workers=(1, 2), axes=(("trainer.cpu_threads", threads),)) for threads in ("1", "2")]
    record = changed(
        synthetic_record(*varied, baseline="ddp"),
        lambda cell, one: replace(one, threads=int(dict(cell.axes)["trainer.cpu_threads"])),
    )
    assert found_in(record).warnings == ()  # they are what is compared


def test_runs_of_one_cell_that_are_not_alike_are_doubtful() -> None:
    def slowed(factor: float) -> Findings:
        record = synthetic_record(SINGLE, Line("ddp", amdahl(), workers=(1, 2)))
        first = record.measurements[0]
        assert first.measured is not None
        slow = replace(first, measured=replace(first.measured, seconds=factor * first.measured.seconds, step_p50=0.2))
        return found_in(replace(record, measurements=[slow, *record.measurements[1:]]))

    assert any("Runs of single with 1 worker differ by a factor of 2." in text for text in slowed(2.1).warnings)
    assert slowed(2.1).answers == (NO_RECOMMENDATION,)
    assert slowed(1.3).warnings == () and slowed(1.3).answers[0].startswith("Use ")


@pytest.mark.parametrize(
    ("step", "noise", "repeats", "doubtful"),
    [
        (0.0332, 1e-6, 3, True),  # 151 %
        (0.0337, 1e-6, 1, False),  # 148 %, and no interval
        (0.0394, 1e-3, 3, True),  # 127 %, surely above 120 %
        (0.0394, 0.1, 2, False),
        (0.0425, 1e-6, 3, False),  # 118 %
    ],
)
def test_a_little_more_than_ideal_is_possible(step: float, noise: float, repeats: int, doubtful: bool) -> None:
    record = synthetic_record(SINGLE, Line("ddp", lambda _: step, workers=(2,)), noise=noise, repeats=repeats)
    assert any("is not plausible" in text for text in found_in(record).warnings) == doubtful
    if doubtful:
        assert found_in(record).answers == (NO_RECOMMENDATION,)
    else:
        assert "at least 80 % up to 2 workers" in finding(record, "scaling")


def test_more_workers_that_are_not_faster_are_told() -> None:
    record = synthetic_record(
        SINGLE,
        Line("ddp", lambda workers: {1: 0.1, 2: 0.105, 4: 0.04, 8: 0.05}[workers], workers=(1, 2, 4, 8)),
        Line("ray", lambda workers: 0.1 / workers, workers=(1, 2, 4, 8)),
    )
    assert finding(record, "more workers") == (
        "2 workers are not faster than 1 with ddp (610 against 640 samples/s); 8 workers are not faster than 4 with "
        "ddp (1,280 against 1,600 samples/s)"
    )
    assert "more workers" not in found_in(two(1.3)).findings[0].sentences


def test_steps_that_stall_are_warned_of() -> None:
    def stalled(cell: Cell, one: Measured) -> Measured:
        return replace(one, step_p50=one.step_p50 / 2.5, step_p95=0.3) if cell == Cell("ddp", 2) else one

    (text,) = found_in(changed(two(1.3, noise=0), stalled)).warnings
    assert text.startswith("Steps stall with ddp with 2 workers: some take far longer than others, so samples/s is")
    assert "a step takes 52.5 ms on average, with a p50 of 21.0 ms and a p95 of 300 ms" in text
    assert found_in(changed(two(1.3), lambda cell, one: replace(one, step_p50=one.step_p50 / 1.9))).warnings == ()


def test_other_programs_are_warned_of() -> None:
    def beside(*cores: float | None) -> BenchmarkRecord:
        record = two(1.3)
        runs = [replace(one, others=cores[place % len(cores)]) for place, one in enumerate(record.measurements)]
        return replace(record, measurements=runs)

    assert found_in(beside(0.1, 1.9)).answers == (NO_RECOMMENDATION,)
    (text,) = found_in(beside(0.1, 1.9)).warnings
    assert text.startswith("Other programs used 1.0 cores on average right before the runs, 1.9 at most: they slow")
    assert found_in(beside(0.0, 0.5)).warnings == () and found_in(beside(None)).warnings == ()
    assert "1.9 cores on average" in found_in(beside(None, 1.9)).warnings[0]  # what was not noted is no zero


# ------------------------------------------------------------------------------------------------------ what to take


def test_what_to_take_is_told_before_findings() -> None:
    record = two(1.3)
    (text,) = found_in(record).answers
    assert re.fullmatch(
        r"Use ddp with 4 workers, 2,2\d\d ± \d+ samples/s; a speed-up of 3\.\d+ .*over single with 1 worker, an "
        r"efficiency of 8\d.* %\.",
        text,
    )
    assert found_in(record).paragraphs[0] == text
    (unsure,) = found_in(two(1.001, noise=0.05)).answers
    assert re.search(r"; no significant difference to (ray|ddp)", unsure)
    (fewer,) = found_in(synthetic_record(SINGLE, Line("ddp", lambda workers: 0.1 * workers, workers=(2, 4)))).answers
    assert fewer.startswith("Use single with 1 worker, 640 samples/s; 4 workers are not faster")
    assert found_in(rich()).answers[1].startswith("Weak scaling: use ")


# ------------------------------------------------------------------------------------------------------ interruptions


def test_interrupted_benchmark_is_told_first_and_needs_no_more_repeats() -> None:
    record = interrupted(10)
    found = found_in(record)
    assert found.unfinished == ("10 of 14 runs are done; the same command with --resume makes the others.",)
    text = " ".join([*found.recommendations, *found.missing])
    assert "--repeats" not in text and "Use more repeats" not in text
    assert (
        "Use more repeats" in " ".join(found_in(interrupted(14)).recommendations)
        and found_in(interrupted(14)).unfinished == ()
    )
    assert "Use more repeats" not in " ".join(found_in(interrupted(14, repeats=3)).recommendations)
    assert found_in(replace(record, asked=0)).unfinished == ()
    twice = replace(record, measurements=[*record.measurements, *record.measurements[:4]])
    assert found_in(twice).unfinished == found.unfinished  # runs that were made again are counted once
    assert found_in(interrupted(1)).unfinished[0].startswith("1 of 14 runs is done;")


def test_runs_that_failed_cells_are_not_given_are_not_missing() -> None:
    record = interrupted(14)
    failed = [one for one in record.measurements if one.cell != Cell("ray", 4) or one.repeat == 0]
    record = failing(replace(record, measurements=failed), lambda one: one.cell == Cell("ray", 4))
    assert found_in(record).unfinished == ()
    cut = replace(record, measurements=record.measurements[:10])
    assert (
        found_in(cut)
        .unfinished[0]
        .startswith("10 of 14 runs are done, and 1 skipped because their cells have failed; ")
    )

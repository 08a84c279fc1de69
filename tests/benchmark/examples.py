"""Benchmarks in which something is as it should be read of: failed cells, wrong losses, steps that wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from itwinai.benchmark.records import BenchmarkRecord, Breakdown, Cell, Measured, Measurement, Status
from itwinai.benchmark.report.findings import Findings, findings_of
from itwinai.benchmark.statistics.scaling_law import fit
from itwinai.benchmark.statistics.summary import summarize
from tests.benchmark.synthetic import Line, amdahl, communication, synthetic_record, weak_communication

PRECISION = "trainer.precision"

HOSTILE = "ModuleNotFoundError: No module named <script>alert('horovod')</script>\n  File somewhere, line 3"


def changed(record: BenchmarkRecord, change: Callable[[Cell, Measured], Measured]) -> BenchmarkRecord:
    """Return a benchmark of which something else was measured."""
    return replace(
        record,
        measurements=tuple(
            one if one.measured is None else replace(one, measured=change(one.cell, one.measured))
            for one in record.measurements
        ),
    )


def failing(
    record: BenchmarkRecord,
    fails: Callable[[Measurement], bool],
    status: Status = "failed",
    error: str = "RuntimeError: no",
    output: str = "",
) -> BenchmarkRecord:
    """Return a benchmark of which some runs have not ended well."""
    return replace(
        record,
        measurements=tuple(
            replace(one, status=status, measured=None, error=error, output=output) if fails(one) else one
            for one in record.measurements
        ),
    )


def split(data: float = 0.0, compute: float = 0.0, communication: float = 0.0, other: float = 0.0) -> Breakdown:
    """Return where a step of 100 ms goes, given in percent of it."""
    return Breakdown(data / 1000, compute / 1000, communication / 1000, other / 1000)


def rich(noise: float = 0.02, workers: Sequence[int] = (1, 2, 4), repeats: int = 3) -> BenchmarkRecord:
    """Return strong and weak scaling of strategies of which one has failed, and one has hung in one cell."""
    names = ("ddp", "deepspeed_stage_2", "horovod", "ray")
    strong = [Line(name, communication(latency=2e-4 * place), workers=workers) for place, name in enumerate(names, 1)]
    weak = [
        Line(name, weak_communication(latency=2e-4 * place), "weak", workers=[count for count in workers if count > 1])
        for place, name in enumerate(names, 1)
    ]
    record = synthetic_record(
        Line("single", amdahl(), workers=(1,)), *strong, *weak, noise=noise, repeats=repeats, extrapolate=(8, 16)
    )
    record = failing(
        record, lambda one: one.cell.strategy == "horovod", error=HOSTILE, output="runs/horovod/output.txt"
    )
    record = failing(
        record,
        lambda one: one.cell == Cell("ray", max(workers), "weak"),
        "timed out",
        "no first step after 600 s",
        "runs/ray/output.txt",
    )
    return replace(record, name="digits <b>", settings={"steps": "50"}, facts={"host": "node <i>7</i>"})


def two_precisions(noise: float = 0.01) -> BenchmarkRecord:
    """Return a benchmark in which a precision is varied, and the other one is 1.6 times as fast."""
    lines = []
    for value, seconds in (("32-true", 0.16), ("bf16-mixed", 0.1)):
        axes = ((PRECISION, value),)
        lines += [
            Line("single", amdahl(seconds), workers=(1,), axes=axes),
            Line("ddp", amdahl(seconds), workers=(1, 2), axes=axes),
        ]
    return synthetic_record(*lines, noise=noise)


def found_in(record: BenchmarkRecord) -> Findings:
    """Return the findings of a benchmark."""
    summary = summarize(record)
    return findings_of(summary, [fit(line) for line in summary.series])


def interrupted(made: int, repeats: int = 2) -> BenchmarkRecord:
    """Return a benchmark of 7 cells, each of which was to be run twice, or more often, with so many runs."""
    record = synthetic_record(
        Line("single", amdahl(), workers=(1,)),
        Line("ddp", amdahl(), workers=(1, 2, 4)),
        Line("ray", communication(), workers=(1, 2, 4)),
        noise=0.15,
        repeats=repeats,
    )
    return replace(record, measurements=record.measurements[:made], asked=7 * repeats)


def slowed_baseline() -> BenchmarkRecord:
    """Return a benchmark whose baseline other programs have slowed: ddp is 10 times as fast with one worker."""
    return synthetic_record(
        Line("single", lambda _: 1.0, workers=(1,)),
        Line("ddp", lambda workers: 0.1 if workers == 1 else 0.105, workers=(1, 2)),
        noise=1e-3,
    )

"""Benchmarks as users run them: real processes, strategies, failures, interruptions."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from itwinai.benchmark.record_file import RECORDS, read_record
from itwinai.benchmark.records import SINGLE, BenchmarkRecord, Measurement
from itwinai.launchers.cpu_affinity import available_cores
from tests.conftest import RunCommand, python, start_script, wait_for_no_workers

CONFIG = """\
trainer:
  accelerator: cpu
  max_epochs: 2
  callbacks:
    - class_path: lightning.pytorch.callbacks.EarlyStopping
      init_args: {monitor: val_loss}
    - class_path: lightning.pytorch.callbacks.LearningRateMonitor
model:
  class_path: tests.support.benchmarked.Model
data:
  class_path: tests.support.benchmarked.Data
"""


def arguments(folder: Path, *more: str) -> list[str]:
    config = folder.parent / "config.yaml"
    config.write_text(CONFIG)
    few = ["--steps", "8", "--warmup", "3", "--seconds", "0"]
    return ["-m", "itwinai.cli.main", "benchmark", "-c", str(config), "--folder", str(folder), *few, *more]


def of(record: BenchmarkRecord, strategy: str, **axes: str) -> list[Measurement]:
    return [
        one
        for one in record.measurements
        if one.cell.strategy == strategy and axes.items() <= {path[6:]: value for path, value in one.cell.axes}.items()
    ]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, run_command: RunCommand) -> tuple[Path, str, str]:
    """Interrupt a benchmark of all frameworks in its second run, and go on with it; return what both have printed."""
    folder = tmp_path_factory.mktemp("frameworks") / "benchmark"
    asked = arguments(folder, "--strategies", "ddp,deepspeed_stage_2,horovod,ray", "--workers", "2", "--repeats", "1")
    output = folder.parent / "output.txt"
    process = start_script(asked, output)
    _wait_for_measurements(folder, 1, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, output.read_text()
    wait_for_no_workers()
    finished = run_command(python(*asked, "--resume"))
    assert finished.code == 0, finished.output
    return folder, output.read_text(), finished.output


def test_what_is_missing_is_run_once_more(interrupted: tuple[Path, str, str]) -> None:
    folder, first, second = interrupted
    record = read_record(folder)
    assert [one.status for one in record.measurements] == ["measured"] * 5
    assert {one.cell.strategy for one in record.measurements} == {SINGLE, "ddp", "deepspeed_stage_2", "horovod", "ray"}
    threads = max(available_cores() // 2, 1)
    assert {one.measured.threads for one in record.measurements if one.measured is not None} == {threads}
    assert f"{threads} thread{'s' * (threads > 1)} per worker in all cells" in second
    assert "5 runs: 1 of each cell" in first and "5 runs, 1 of them done before" in second
    assert not list(folder.glob("runs/*/request.json"))  # it may hold secrets


def test_all_frameworks_come_to_the_same_loss(interrupted: tuple[Path, str, str]) -> None:
    measured = {one.cell.strategy: one.measured for one in read_record(interrupted[0]).measurements}
    reference = measured[SINGLE]
    assert reference is not None and reference.loss is not None and 0 < reference.loss < 20
    for strategy, one in measured.items():
        assert one is not None
        assert one.loss == pytest.approx(reference.loss, rel=1e-5), strategy
        assert (one.steps, one.samples) == (8, 8 * 16), strategy  # the workers divide the batch
        assert (one.parameters, one.gradient_bytes) == (449, 4 * 449), strategy
        workers = 1 if strategy == SINGLE else 2
        assert len(one.busy) == len(one.peak_memory) == workers
        assert all(size is not None and size > 50e6 for size in one.peak_memory)
        assert one.breakdown is not None and one.breakdown.optimizer is not None
        assert 0 < one.breakdown.optimizer < one.breakdown.compute, strategy
        parts = one.breakdown.data + one.breakdown.compute + one.breakdown.communication + one.breakdown.other
        assert parts == pytest.approx(one.seconds / one.steps, rel=0.3), strategy
        assert (one.breakdown.communication > 0) == (workers == 2), strategy
        assert 0.5 < one.launch < 120 and 0 < one.step_p50 <= one.step_p95
        assert (one.joules is None) == bool(one.no_joules)


def test_everything_is_left_in_the_folder(interrupted: tuple[Path, str, str]) -> None:
    folder, _, printed = interrupted
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert {row["strategy"] for row in rows} == {SINGLE, "ddp", "deepspeed_stage_2", "horovod", "ray"}
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ("deepspeed_stage_2", "horovod", "ray", "ddp"))
    assert {path.suffix for path in (folder / "pictures").iterdir()} == {".png", ".svg"}
    assert "report" in printed and "samples/s" in printed
    assert "Fastest" in printed or "No recommendation" in printed  # where other programs run


def test_a_benchmark_is_not_mixed_with_another(interrupted: tuple[Path, str, str], run_command: RunCommand) -> None:
    folder = interrupted[0]
    asked = arguments(folder, "--strategies", "ddp", "--workers", "2", "--repeats", "1")
    again = run_command(python(*asked))
    assert again.code == 1 and "There is a benchmark in" in again.output and "--resume" in again.output
    changed = run_command(python(*asked, "--resume", "--data.batch_size=8", "--threads", "7"))
    assert changed.code == 1
    assert "measured with other settings: data.init_args.batch_size, threads" in changed.output
    assert len((folder / RECORDS).read_text().splitlines()) == 5


@pytest.mark.usefixtures("no_leftovers")
def test_what_fails_is_a_row_and_the_others_continue(tmp_path: Path, run_command: RunCommand) -> None:
    folder = tmp_path / "benchmark"
    asked = arguments(
        folder,
        *("--strategies", "ddp,horovod", "--baseline", "ddp", "--workers", "2", "--repeats", "2"),
        *("--axis", "model.mode=ends,raises,hangs", "--limit", "60"),
    )
    finished = run_command(python(*asked), PYTHONPATH=_without("horovod", tmp_path))
    assert finished.code == 0, finished.output
    record = read_record(folder)
    assert [one.status for one in of(record, "ddp", mode="ends")] == ["measured"] * 2
    (raised,) = of(record, "ddp", mode="raises")  # and not again
    assert (raised.status, raised.error) == ("failed", "ValueError: as the test wants it")
    (hung,) = of(record, "ddp", mode="hangs")
    assert hung.status == "timed out" and "60 s" in hung.error and hung.seconds < 120
    output = (folder / hung.output).read_text()
    assert "training_step" in output and "benchmarked.py" in output  # where it was
    for one in of(record, "horovod"):
        assert one.status == "failed" and "not installed" in one.error and "itwinai install horovod" in one.error
    assert len(of(record, "horovod")) == 3
    table = list(csv.DictReader((folder / "table.csv").open()))
    assert sum("as the test wants it" in json.dumps(row) for row in table) == 1
    assert "as the test wants it" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--strategies", "horvod", "--workers", "2"], "no strategy named 'horvod'. Did you mean 'horovod'?"),
        (["--strategies", "ddp", "--workers", "two"], "--workers=two: write whole numbers"),
        (
            ["--strategies", "ddp", "--workers", "2", "--axis", "model.mod=a,b"],
            "nothing at 'model.mod' in the config. Did you mean 'model.init_args.mode'?",
        ),
        (
            ["--strategies", "ddp", "--workers", "2", "--axis", "trainer.precision=32-true,33"],
            "trainer.precision=33 is not valid for a run",
        ),
        (["--strategies", "ddp", "--workers", "2", "--slurm"], "--slurm needs sbatch"),
        (["--strategies", "ddp", "--workers", "3", "--repeats", "0"], "--repeats must be at least 1; got 0"),
    ],
)
def test_bad_input_is_said_before_anything_runs(
    wrong: Sequence[str], told: str, tmp_path: Path, run_command: RunCommand
) -> None:
    import sys

    # Without the commands of SLURM, which this machine has.
    finished = run_command(python(*arguments(tmp_path / "benchmark", *wrong)), PATH=str(Path(sys.executable).parent))
    assert finished.code == 1 and told in " ".join(finished.output.split()), finished.output
    assert not (tmp_path / "benchmark" / RECORDS).exists()


def _wait_for_measurements(folder: Path, number: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not (folder / RECORDS).exists() or len((folder / RECORDS).read_text().splitlines()) < number:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def _without(package: str, folder: Path) -> str:
    """Return a PYTHONPATH with which a package seems not to be installed: a fake, as it is here."""
    from tests.conftest import REPOSITORY

    own = folder / "without"
    own.mkdir()
    (own / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *rest: None if name == {package!r} else found(name, *rest)\n"
    )
    return f"{own}:{REPOSITORY}"

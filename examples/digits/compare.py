"""Train the digits in one process and under several strategies, and compare times, losses and weights."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import torch
from data import DigitsDataModule
from model import DigitsClassifier
from torch import Tensor

STRATEGIES = ("ddp", "deepspeed_stage_2")
ALL_STRATEGIES = (*STRATEGIES, "deepspeed_stage_3", "horovod", "ray", "ray_deepspeed", "ray_horovod")
INSTALL = {
    "ray": "pip install 'itwinai[ray]'",
    "deepspeed": "pip install 'itwinai[deepspeed]'",
    "horovod": "itwinai install horovod",
}
GLOBAL_BATCH = 64
SEED = 42
TOLERANCE = 1e-5  # largest relative difference of weights that still counts as the same result
TIMEOUT = 180  # seconds for one run
LEGEND = """\
start s: starting and ending the workers; train s: all epochs; samples/s: over train s, all workers together.
A step takes about 1 ms here, so two workers cannot be faster: compare the losses and the weights."""
USUAL_SECONDS = 10  # of one run on two idle cores, most of it to start Python and import torch


@dataclass(frozen=True)
class Result:
    """What one training run reported.

    Attributes:
        start_seconds: wall time of ``trainer.fit`` outside of training: starting the workers and ending them.
        train_seconds: time between the start and the end of training.
        samples: training samples of all workers and epochs.
        train_loss: mean loss over the last epoch.
        test_accuracy: share of test images that were classified right.
    """

    start_seconds: float
    train_seconds: float
    samples: int
    train_loss: float
    test_accuracy: float


@dataclass(frozen=True)
class Row:
    """One line of the table: a result, or why there is none.

    Attributes:
        strategy: name of the strategy.
        workers: number of worker processes.
        result: what the run reported; None where it failed or was not started.
        difference: largest relative difference of weights against one process; None for that process itself.
        error: last line of the error of a run that failed.
        missing: install line of the package that the strategy needs and that is not here.
    """

    strategy: str
    workers: int
    result: Result | None = None
    difference: float | None = None
    error: str = ""
    missing: str = ""


class Stopwatch(L.Callback):
    """Count the samples and the seconds between the start and the end of training."""

    def __init__(self) -> None:
        self.samples = 0
        self.seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the samples of all workers."""
        self.samples += len(batch[0]) * trainer.world_size

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self.started


def run(strategy: str, workers: int, epochs: int, out: Path) -> None:
    """Train and test once; write the result to a JSON file and the weights beside it."""
    from itwinai import ItwinaiTrainer

    L.seed_everything(SEED)
    model = DigitsClassifier()
    data = DigitsDataModule(batch_size=GLOBAL_BATCH // workers)
    stopwatch = Stopwatch()
    trainer = ItwinaiTrainer(
        strategy=strategy,
        devices=workers,
        accelerator="cpu",
        max_epochs=epochs,
        limit_val_batches=0,
        callbacks=[stopwatch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    started = time.perf_counter()
    trainer.fit(model, data)
    seconds = time.perf_counter() - started
    train_loss = float(trainer.callback_metrics["train_loss"])
    torch.save(model.state_dict(), out.with_suffix(".pt"))
    trainer.test(model, data)
    result = Result(
        start_seconds=seconds - stopwatch.seconds,
        train_seconds=stopwatch.seconds,
        samples=stopwatch.samples,
        train_loss=train_loss,
        test_accuracy=float(trainer.callback_metrics["test_accuracy"]),
    )
    out.write_text(json.dumps(asdict(result)))


def run_in_subprocess(strategy: str, workers: int, epochs: int, out: Path) -> tuple[int, str]:
    """Train in a fresh process; return its exit status and all that it printed."""
    command = [sys.executable, str(Path(__file__).resolve()), "--run", strategy]
    command += ["--workers", str(workers), "--epochs", str(epochs), "--out", str(out)]
    # One thread per worker, also for one process. No warnings: DeepSpeed causes the same ones in each step.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    # The output goes to a file, because a daemon that a failed run leaves behind would keep a pipe open.
    with out.with_suffix(".log").open("w+", errors="replace") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            status = process.wait(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            status = 124
        finally:
            if process.poll() is None:
                _end(process)
        log.seek(0)
        text = log.read()
    if status == 0 and not out.exists():
        status, text = 1, f"{text}\nRuntimeError: the run ended without an error and without a result\n"
    if status == 124:
        text += f"\nTimeoutError: no result after {TIMEOUT} s\n"
    return status, text


def missing_package(strategy: str) -> str:
    """Return the install line of the first package that a strategy needs and that is not here, or ''."""
    for package in strategy.split("_"):
        if package in INSTALL and find_spec(package) is None:
            return INSTALL[package]
    return ""


def install_missing(strategies: Sequence[str]) -> None:
    """Run the install lines of the packages that are missing, except for a build of Horovod, which takes minutes."""
    for line in dict.fromkeys(filter(None, map(missing_package, strategies))):
        command = [*shlex.split(line), *(["--cached-only"] if line == INSTALL["horovod"] else [])]
        print(f"  {shlex.join(command)}", flush=True)
        beside = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        subprocess.run(command, env=os.environ | {"PATH": os.pathsep.join(beside)}, check=False)
    importlib.invalidate_caches()


def last_error(log: str) -> str:
    """Return the last line of a log that names an exception, or else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception|Interrupt|Exit)(:|$)", line)]
    return (named or lines or ["no output"])[-1]


def weight_difference(weights: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Return the largest difference between two models, relative to the largest weight of its tensor."""
    if weights.keys() != reference.keys():
        return math.inf
    largest = 0.0
    for name, expected in reference.items():
        scale = float(expected.abs().max()) or 1.0
        difference = float((weights[name] - expected).abs().max()) / scale
        if not math.isfinite(difference):
            return math.inf
        largest = max(largest, difference)
    return largest


def format_table(rows: Sequence[Row]) -> str:
    """Return the results as aligned plain text, one line per row."""
    header = ("strategy", "workers", "start s", "train s", "samples/s", "train loss", "test acc.", "weight diff.")
    lines: list[tuple[str, ...]] = [header]
    for row in rows:
        if row.result is None:
            note = f"not installed ({row.missing})" if row.missing else f"failed: {_shorten(row.error)}"
            lines.append((row.strategy, str(row.workers), note))
            continue
        lines.append(
            (
                row.strategy,
                str(row.workers),
                f"{row.result.start_seconds:.1f}",
                f"{row.result.train_seconds:.2f}",
                f"{row.result.samples / row.result.train_seconds:.0f}",
                f"{row.result.train_loss:.4f}",
                f"{row.result.test_accuracy:.3f}",
                "-" if row.difference is None else f"{row.difference:.0e}",
            )
        )
    # A note may run over the columns to its right, so it does not widen its own.
    whole = [line for line in lines if len(line) == len(header)]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    widths[0] = max(len(line[0]) for line in lines)
    text = []
    for name, workers, *rest in lines:
        if len(rest) > 1:
            rest = [cell.rjust(width) for cell, width in zip(rest, widths[2:], strict=True)]
        text.append("  ".join([name.ljust(widths[0]), workers.rjust(widths[1]), *rest]))
    text.insert(1, "-" * len(text[0]))
    return "\n".join(text)


def summarize(rows: Sequence[Row]) -> str:
    """Return the outcome in words; the first row is the run in one process."""
    reference, *others = rows
    if reference.result is None:
        return "The run in one process failed, so there is nothing to compare with."
    failed = [row.strategy for row in others if row.error]
    missing = [row.strategy for row in others if row.missing]
    differing = [row for row in others if row.difference is not None and row.difference > TOLERANCE]
    same = [row.difference for row in others if row.difference is not None and row.difference <= TOLERANCE]
    sentences = []
    if same:
        sentences.append(f"{_count(len(same))}, same result: largest weight difference {max(same):.0e}")
    for row in differing:
        sentences.append(f"{row.strategy} differs by {row.difference:.0e}, allowed is {TOLERANCE:.0e}")
    if failed:
        sentences.append(f"{_count(len(failed))} failed: {', '.join(failed)}")
    if missing:
        sentences.append(f"{_count(len(missing))} not installed: {', '.join(missing)}")
    return ". ".join(sentences or ["No strategy was compared"]) + "."


def succeeded(rows: Sequence[Row]) -> bool:
    """Return whether no run failed and all weights agree."""
    return not any(row.error or (row.difference or 0.0) > TOLERANCE for row in rows)


def compare(strategies: Sequence[str], workers: int, epochs: int) -> int:
    """Run one process and then each strategy; print the table and return the exit status."""
    rows: list[Row] = []
    logs: dict[str, str] = {}
    reference: dict[str, Tensor] | None = None
    runs = 1 + sum(not missing_package(strategy) for strategy in strategies)
    print(
        f"Digits: {epochs} epochs, {GLOBAL_BATCH} samples per step, one CPU thread per worker, {runs} runs in fresh "
        f"processes: about {runs * USUAL_SECONDS} s on two idle cores, longer under Ray.",
        flush=True,
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for strategy, count in [("auto", 1), *((name, workers) for name in strategies)]:
            name = "one process" if not rows else strategy
            missing = missing_package(strategy)
            if missing:
                rows.append(Row(name, count, missing=missing))
                continue
            done = f"  {len(rows) + 1}/{len(strategies) + 1} {name}, {count} worker{'s' if count > 1 else ''}"
            print(f"{done} ...", flush=True)
            started = time.perf_counter()
            out = Path(folder, f"{len(rows)}.json")
            status, log = run_in_subprocess(strategy, count, epochs, out)
            outcome = "failed" if status else "done"
            print(f"{done}: {outcome} after {time.perf_counter() - started:.0f} s", flush=True)
            if status:
                rows.append(Row(name, count, error=last_error(log)))
                logs[name] = log
                if reference is None:
                    break
                continue
            weights = torch.load(out.with_suffix(".pt"), weights_only=True)
            difference = None if reference is None else weight_difference(weights, reference)
            reference = weights if reference is None else reference
            rows.append(Row(name, count, Result(**json.loads(out.read_text())), difference))
    print(f"\n{format_table(rows)}\n\n{LEGEND}\n{summarize(rows)}")
    for name, log in logs.items():
        print(f"\n==== log of {name} ====\n{log.rstrip()}")
    return 0 if succeeded(rows) else 1


def main() -> int:
    """Read the command line and run the comparison, or one run of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--strategies", default=",".join(STRATEGIES), help="names, separated by commas (default: %(default)s)"
    )
    chosen.add_argument("--all", action="store_true", help=f"the same as --strategies {','.join(ALL_STRATEGIES)}")
    parser.add_argument("--workers", type=int, default=2, help="workers of each strategy (default: 2)")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the training images (default: 6)")
    parser.add_argument("--install", action="store_true", help="install the packages that the strategies need")
    parser.add_argument("--run", metavar="STRATEGY", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.workers < 1 or GLOBAL_BATCH % args.workers:
        parser.error(f"--workers must divide {GLOBAL_BATCH}, the number of samples per step")
    if args.run:
        run(args.run, args.workers, args.epochs, args.out)
        return 0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the present run too
    strategies = list(ALL_STRATEGIES) if args.all else [name for name in args.strategies.split(",") if name]
    if args.install:
        install_missing(strategies)
    return compare(strategies, args.workers, args.epochs)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a run to end, then kill what is left of it and its workers."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _shorten(text: str, length: int = 90) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _count(number: int) -> str:
    return f"{number} strategy" if number == 1 else f"{number} strategies"


if __name__ == "__main__":
    sys.exit(main())

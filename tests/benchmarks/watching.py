"""What the callbacks that watch a run cost per step: ``python -m tests.benchmarks.watching``.

Fits of the same small module, with and without each callback, take turns in one process. A step is timed from one fetch
of a batch to the next, in CPU time of the whole process, all threads, since other programs hardly disturb that.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from itwinai import ItwinaiTrainer
from itwinai.callbacks import LoggingCallback, ProfilingCallback, RunSummary, SystemMonitor
from tests.benchmarks.model import Batches, make_loader
from tests.benchmarks.modules import LoggedRegression

WARM_UP, STEPS, REPEATS = 100, 1000, 15

CONTENDERS: dict[str, tuple[Callable[[], list[Callback]], float | None]] = {
    "none": (list, None),
    "LoggingCallback": (lambda: [LoggingCallback()], 0.03),
    "SystemMonitor": (lambda: [SystemMonitor()], 0.01),
    "ProfilingCallback, step split": (lambda: [ProfilingCallback(operators=False)], 0.05),
    "ProfilingCallback, with operators": (lambda: [ProfilingCallback()], None),
    "all, and RunSummary": (
        lambda: [LoggingCallback(), SystemMonitor(), ProfilingCallback(operators=False), RunSummary(terminal=False)],
        None,
    ),
}


class TimedBatches(Batches):
    """Batches that note the CPU time at which two of them are fetched."""

    def __init__(self, steps: int) -> None:
        super().__init__(WARM_UP + steps + 1)
        self.steps = steps
        self.began = self.ended = (0.0, 0.0)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index == WARM_UP:
            self.began = time.process_time(), time.perf_counter()
        elif index == WARM_UP + self.steps:
            self.ended = time.process_time(), time.perf_counter()
        return super().__getitem__(index)


def time_per_step(callbacks: list[Callback], steps: int) -> tuple[float, float]:
    """Return CPU and wall time per step in microseconds."""
    batches = TimedBatches(steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = ItwinaiTrainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            logger=CSVLogger(folder),
            log_every_n_steps=50,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(LoggedRegression(progress_bar=False), make_loader(batches))
    gc.collect()
    return tuple((end - begin) / steps * 1e6 for begin, end in zip(batches.began, batches.ended, strict=True))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.watching")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="fits of each (%(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each fit (%(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    cpu: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    names = list(CONTENDERS)
    for repeat in range(given.repeats + 1):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            measured, _ = time_per_step(CONTENDERS[name][0](), given.steps)
            if repeat:  # the first round pays for imports
                cpu[name].append(measured)
    base = statistics.median(cpu["none"])
    print(f"\nCPU time per step, medians of {given.repeats} fits of {given.steps} steps that took turns\n")
    print("| callbacks | us per step | more | of 300 us | goal |\n| --- | --- | --- | --- | --- |")
    for name, (_, goal) in CONTENDERS.items():
        more = statistics.median(own - none for own, none in zip(cpu[name], cpu["none"], strict=True))
        asked = "" if goal is None else f"{goal:.0%}"
        print(f"| {name} | {base + more:.1f} | {more:+.1f} | {more / 300:+.1%} | {asked} |")


if __name__ == "__main__":
    main()

"""What the callbacks that watch a run cost per step: ``python -m tests.performance.watching``.

The same small module is trained with each of them, every contender in a process of its own, which take turns chunk by
chunk (see README.md). All log to CSV every 50 steps. What is compared is CPU time of the whole process, all threads.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.performance.cases import ITWINAI, WATCHING
from tests.performance.measure import Effort, Sample, measure_steps

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from tests.performance.contenders import Run

STEP_US = 300
"""The step that the goals are about."""

GOALS = {"logging": 0.03, "monitoring": 0.01, "profiling": 0.05}


def run_watched(run: Run, name: str) -> None:
    """Train with a logger and one of the callbacks."""
    from lightning.pytorch.loggers import CSVLogger

    from itwinai import ItwinaiTrainer
    from itwinai.callbacks import LoggingCallback, ProfilingCallback, RunSummary, SystemMonitor
    from tests.performance.model import make_loader
    from tests.performance.modules import LoggedRegression

    callbacks: dict[str, Callable[[], list[Callback]]] = {
        ITWINAI: list,
        "logging": lambda: [LoggingCallback()],
        "monitoring": lambda: [SystemMonitor()],
        "profiling": lambda: [ProfilingCallback(operators=False)],
        "all": lambda: [LoggingCallback(), SystemMonitor(), ProfilingCallback(), RunSummary(terminal=False)],
    }
    trainer = ItwinaiTrainer(
        accelerator="cpu",
        devices=1,
        max_epochs=run.epochs,
        default_root_dir=run.folder,
        logger=CSVLogger(run.folder),
        callbacks=callbacks[name](),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(LoggedRegression(progress_bar=False), make_loader(run.batches))


def table(samples: list[Sample]) -> str:
    """Return what was measured, as Markdown.

    Means are those of the chunks without the highest and lowest tenth: a median would not see what happens in few
    chunks only, such as a sample of the system.
    """
    lines = [
        "| callbacks | us per step | more | of 300 us, repeat by repeat | goal |",
        "| --- | --- | --- | --- | --- |",
    ]
    repeats = sorted({sample.repeat for sample in samples})
    base = {repeat: _mean(samples, ITWINAI, repeat) for repeat in repeats}
    for name in WATCHING.contenders:
        more = [_mean(samples, name, repeat) - base[repeat] for repeat in repeats]
        middle = statistics.median(more)
        spread = ", ".join(f"{value / STEP_US:+.1%}" for value in sorted(more))
        goal = f"{GOALS[name]:.0%}" if name in GOALS else ""
        step = statistics.median(base.values()) + middle
        lines.append(f"| {name} | {step:.1f} | {middle:+.1f} us = {middle / STEP_US:+.1%} | {spread} | {goal} |")
    return "\n".join(lines)


def _mean(samples: list[Sample], name: str, repeat: int) -> float:
    found = sorted(s.cpu * 1e6 for s in samples if (s.contender, s.repeat) == (name, repeat) and s.cpu is not None)
    cut = len(found) // 10
    return statistics.fmean(found[cut : len(found) - cut])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.performance.watching")
    parser.add_argument("--repeats", type=int, default=5, help="times that each is started anew (%(default)s)")
    parser.add_argument("--chunks", type=int, default=40, help="chunks per repeat, taken by turns (%(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="steps per chunk (%(default)s)")
    given = parser.parse_args()
    print(table(measure_steps(WATCHING, Effort(given.repeats, given.chunks, given.steps), print)))


if __name__ == "__main__":
    main()

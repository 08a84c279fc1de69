"""What a benchmark prints before and while it runs."""

from __future__ import annotations

import time
from pathlib import Path

from itwinai.benchmark.records import SINGLE, Cell, Measurement
from itwinai.benchmark.settings import Settings
from itwinai.benchmark.statistics.cell_summary import cell_text
from itwinai.launchers.cpu_affinity import available_cores, oversubscription_text
from itwinai.reporting.formatting import count_text, span_text


def plan_text(
    settings: Settings, runs: int, missing: int, folder: Path, threads: int, most_workers: int, on_slurm: bool
) -> str:
    """Return the text that announces the runs.

    Args:
        settings: what is asked for.
        runs: number of runs.
        missing: how many of them there are left to make.
        folder: of the benchmark.
        threads: of each worker.
        most_workers: on one node.
        on_slurm: whether they are SLURM jobs.
    """
    done = f", {runs - missing} of them done before" if missing < runs else ""
    lines = {
        "benchmark": f"{count_text(runs, 'run')}{done}: {settings.repeats} of each cell, interleaved, each in fresh "
        "processes",
        "strategies": ", ".join(settings.strategies)
        + ("; compared with one process" if settings.baseline == SINGLE else f"; compared with {settings.baseline}"),
        "workers": ", ".join(map(str, settings.workers)),
        "threads": f"{count_text(threads, 'thread')} per worker in all cells (--threads)",
        "scaling": _scaling(settings),
        **{path: ", ".join(map(str, values)) for path, values in settings.axes.items()},
        "each run": f"{settings.warmup} steps to warm up, then {settings.steps} or more for {settings.seconds:g} s; "
        f"at most {span_text(settings.limit)} in all",
        "left out": "validation, loggers, checkpoints, early stopping, progress bar",
        "folder": str(folder),
    }
    if any(path.endswith("cpu_threads") for path in settings.axes):
        del lines["threads"]  # they are what is varied
    text = "\n".join(f"{name:<12}{text}" for name, text in lines.items())
    if on_slurm or not (
        crowded := oversubscription_text(most_workers, most_workers * threads, available_cores(), "--threads ")
    ):
        return text
    return f"{text}\nWarning: {crowded}"


class BenchmarkProgress:
    """Prints when each run begins, how it ended, and how long the others may take.

    Args:
        runs: number of runs that are to be made.
        folder: of the benchmark.
    """

    def __init__(self, runs: int, folder: Path) -> None:
        self._runs = runs
        self._folder = folder
        self._done = 0
        self._began = time.monotonic()
        self._begun = False

    def begins(self, cell: Cell, repeat: int) -> None:
        """Say which run begins, on a line that `ended` completes."""
        print(f"{self._number()} {cell_text(cell)}, repeat {repeat + 1}: ", end="", flush=True)
        self._begun = True

    def ended(self, measurement: Measurement) -> None:
        """Say how a run has ended."""
        if not self._begun:
            self.begins(measurement.cell, measurement.repeat)
        self._begun = False
        self._done += 1
        left = (time.monotonic() - self._began) / self._done * (self._runs - self._done)
        left_text = f"; about {span_text(left)} left" if self._done < self._runs else ""
        print(f"{self._how(measurement)}{left_text}", flush=True)

    def _number(self) -> str:
        return f"[{self._done + 1:>{len(str(self._runs))}}/{self._runs}]"

    def _how(self, measurement: Measurement) -> str:
        measured = measurement.measured
        if measured is None:
            error = measurement.error.strip().partition("\n")[0]
            return f"{measurement.status}: {error} (all of it: {self._folder / measurement.output})"
        step = f"{measured.step_p50 * 1000:.4g} ms per step"
        speed = "" if measured.samples is None else f"{measured.samples / measured.seconds:,.0f} samples/s, "
        return f"{speed}{step}, {span_text(measurement.seconds)}"


def _scaling(settings: Settings) -> str:
    texts = {
        "strong": "strong (the workers divide the batch of the config)",
        "weak": "weak (each worker has a batch of the config's size)",
    }
    return " and ".join(texts[scaling] for scaling in settings.scalings)

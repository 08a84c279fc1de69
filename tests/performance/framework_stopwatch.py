"""Read the clocks where the loader fetches a batch, and write down what one worker has seen.

Every framework passes there and none treats it specially. Between two fetches lies exactly one step, whatever the loop
does around it, and no hook is needed that would change the loop.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Stopwatch:
    """Notes when each batch is fetched.

    Args:
        warmup: number of first steps that do not count.
        steps: number of steps after them, which do.
        folder: for what each worker has to tell.
    """

    def __init__(self, warmup: int, steps: int, folder: Path) -> None:
        self.warmup = warmup
        self.steps = steps
        self.folder = folder
        self.first = 0.0
        self.fetched: list[float] = []

    @property
    def batches(self) -> int:
        """Number of batches that have to be fetched: one more, which ends the last step."""
        return self.warmup + self.steps + 1

    def fetch(self) -> None:
        """Note that a batch is fetched."""
        if not self.fetched:
            self.first = time.time()  # the clock that the command's start is measured by, too
        self.fetched.append(time.perf_counter())

    def write(self, rank: int, workers: int, loss: Tensor | None, weights: Mapping[str, Tensor]) -> None:
        """Write down what this worker has seen; rank 0 also writes the weights.

        Args:
            rank: of this worker.
            workers: number of workers that have trained together.
            loss: of the last step, on this worker.
            weights: what it has learned.

        Raises:
            RuntimeError: the framework has fetched more or fewer batches than it was given.
        """
        import torch

        if len(self.fetched) != self.batches or loss is None:
            raise RuntimeError(f"rank {rank} has fetched {len(self.fetched)} batches, and not {self.batches}.")
        measured = self.fetched[self.warmup :]
        durations = [after - before for before, after in zip(measured, measured[1:], strict=False)]
        percentiles = statistics.quantiles(durations, n=20, method="inclusive") if len(durations) > 1 else durations
        report = {
            "first": self.first,
            "parameters": sum(weight.numel() for weight in weights.values()),
            "seconds": measured[-1] - measured[0],
            "p50": statistics.median(durations),
            "p95": percentiles[-1],
            "durations": durations,
            "peak_memory": peak_memory(),
            "loss": float(loss),
            "threads": torch.get_num_threads(),
            "workers": workers,
        }
        if rank == 0:
            import numpy as np

            np.savez(self.folder / "weights.npz", *(weight.detach().cpu().numpy() for weight in weights.values()))
        (self.folder / f"{rank}.json").write_text(json.dumps(report))


def peak_memory() -> int | None:
    """Return the most memory in bytes that this process had at any time; None where the system does not tell.

    Not getrusage's maximum: that one also counts the process by which this one was started.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None

"""How long a fit of one step takes with two workers of each kind, from the call to its return, and the whole script.

``python -m tests.performance.launching [--repeats N]``
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from typing import Any

KINDS = ("fork", "script", "payload", "lightning")


def run_once(kind: str) -> None:
    """Fit twice with workers of a kind, and print the seconds of each fit."""
    import lightning as L
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from itwinai import ItwinaiTrainer
    from tests.support.cases import Regression

    warnings.simplefilter("ignore")
    data = DataLoader(TensorDataset(torch.randn(8, 8), torch.randn(8, 1)), 4)
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 2,
        "strategy": "ddp",
        "max_steps": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    seconds = []
    for _ in range(2):
        trainer = L.Trainer(**options) if kind == "lightning" else ItwinaiTrainer(**options, launcher=kind)
        began = time.perf_counter()
        trainer.fit(Regression(), data)
        seconds.append(time.perf_counter() - began)
    if trainer.is_global_zero:
        print(json.dumps(seconds), flush=True)


def main() -> None:
    """Time all kinds, interleaved, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kind", choices=KINDS)
    arguments = parser.parse_args()
    if arguments.kind:
        run_once(arguments.kind)
        return
    times: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.repeats):
        for kind in KINDS:
            began = time.perf_counter()
            ended = subprocess.run(
                [sys.executable, "-m", "tests.performance.launching", "--kind", kind],
                capture_output=True,
                text=True,
                check=True,
            )
            fits = json.loads(ended.stdout.strip().splitlines()[-1])
            times[kind].append([*fits, time.perf_counter() - began])
    print(f"{'workers':<12}{'first fit':>20}{'second fit':>20}{'whole script':>20}   (median, min to max, in seconds)")
    for kind, rows in times.items():
        cells = (
            f"{statistics.median(column):.2f} ({min(column):.2f}-{max(column):.2f})"
            for column in zip(*rows, strict=True)
        )
        print(f"{kind:<12}{''.join(f'{cell:>20}' for cell in cells)}")


if __name__ == "__main__":
    main()

"""Measure what a checkpoint of 500 MB costs: ``python -m tests.performance.checkpoints``.

Training stands still while the callback that saves is at work; what is then written in the background may slow the
steps down, which the extra time of the whole fit shows. Contenders are taken by turns, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.performance.cases import ITWINAI, LIGHTNING
from tests.performance.report import describe_machine
from tests.performance.workers import REPOSITORY, environment

ASYNC = "lightning, AsyncCheckpointIO"
CONTENDERS = (LIGHTNING, ASYNC, ITWINAI)
GOAL = 0.15

VALUES = 125_000_000  # of float32: 500 MB
STEP = 0.1
EVERY = 40  # steps: long enough for the slowest contender to have written the one before
SAVES = 4


def main() -> int:
    """Run the benchmark, or one contender of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.performance.checkpoints", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="times that every contender is started (%(default)s)")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        print(json.dumps(run(given.contender)))
        return 0
    for name, value in describe_machine().items():
        print(f"{name:<12} {value}")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for repeat in range(given.repeats):
        for name in CONTENDERS:
            print(f"repeat {repeat + 1} of {given.repeats}: {name}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "tests.performance.checkpoints", "--contender", name]
            ended = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True)
            if ended.returncode:
                print(ended.stdout + ended.stderr, file=sys.stderr)
                return 1
            found[name].append(json.loads(ended.stdout.splitlines()[-1]))
    print(f"\n{table(found)}\n\ngoal: itwinai stands still for at most {GOAL} of lightning's blocking save")
    return 0


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Return a table of medians, with the range over the repeats of what the goal is about."""
    base = statistics.median(result["stall"] for result in found[LIGHTNING])
    lines = [
        "| | stands still per checkpoint | x lightning | the longest | extra time of the fit per checkpoint | size | "
        "to resume |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, results in found.items():
        stalls = [result["stall"] for result in results]
        median = {key: statistics.median(result[key] for result in results) for key in results[0]}
        lines.append(
            f"| {name} | {median['stall'] * 1000:.0f} ms ({min(stalls) * 1000:.0f} to {max(stalls) * 1000:.0f}) | "
            f"{median['stall'] / base:.2f} | {max(result['worst'] for result in results) * 1000:.0f} ms | "
            f"{median['extra'] * 1000:.0f} ms | {median['size'] / 1e6:.1f} MB | "
            f"{median['resume']:.2f} s |"
        )
    return "\n".join(lines)


def run(contender: str) -> dict[str, float]:
    """Train with checkpoints, go on from the last, and return what was measured, in seconds and bytes."""
    import lightning as L
    import torch
    from lightning.pytorch.plugins.io import AsyncCheckpointIO
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, TensorDataset

    from itwinai import ItwinaiTrainer
    from itwinai.callbacks import ModelCheckpoint

    torch.set_num_threads(1)

    class Large(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 1)
            self.register_buffer("ballast", torch.randn(VALUES))
            self.began = 0.0

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.began = self.began or time.perf_counter()
            time.sleep(STEP)  # a step that a GPU takes
            return self.net(batch[0]).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(folder: Path, epochs: int, checkpoint: Path | None) -> tuple[Large, float, list[float]]:
        trainer_class: Any = ItwinaiTrainer if contender == ITWINAI else L.Trainer
        callback_class: Any = ModelCheckpoint if contender == ITWINAI else L.pytorch.callbacks.ModelCheckpoint
        callback = callback_class(folder, every_n_train_steps=EVERY, save_top_k=-1)
        stalls: list[float] = []
        original = callback.on_train_batch_end

        def timed(*arguments: Any, **named: Any) -> None:
            started = time.perf_counter()
            original(*arguments, **named)
            stalls.append(time.perf_counter() - started)

        callback.on_train_batch_end = timed
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        plugins = [AsyncCheckpointIO()] if contender == ASYNC else []
        trainer = trainer_class(max_epochs=epochs, callbacks=[callback], plugins=plugins, devices=1, **quiet)
        module = Large()
        loader = DataLoader(TensorDataset(torch.randn(EVERY * SAVES + 1, 4)), batch_size=1)
        started = time.perf_counter()
        trainer.fit(module, loader, ckpt_path=checkpoint)
        return module, module.began - started, stalls

    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        started = time.perf_counter()
        _, start, stalls = fit(folder, 1, None)
        extra = time.perf_counter() - started - start - (EVERY * SAVES + 1) * STEP
        saves = sorted(stalls)[-SAVES:]
        files = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
        assert len(files) >= SAVES, files
        size = files[0].stat().st_size
        for path in files[:-1]:
            path.unlink()
        _, resumed, _ = fit(folder / "other", 2, files[-1])
    # The mean: the first save makes the memory for the copy, which the later ones use again.
    return {
        "stall": statistics.mean(saves),
        "worst": saves[-1],
        "extra": extra / SAVES,
        "size": size,
        "resume": resumed - start,
    }


if __name__ == "__main__":
    sys.exit(main())

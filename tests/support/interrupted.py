"""Runs that are interrupted and go on: ``interrupted.py STRATEGY WORKERS FOLDER [ACTION] [connected]``.

Actions: ``slow`` makes the steps last after the 16th, which a file per rank announces; ``stuck`` makes that step last
forever; ``full`` lets the disk be full after the 13th. With ``connected`` the script has started a Ray, which handles
SIGTERM too. At the end the weights are in the folder.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from itwinai.callbacks import ModelCheckpoint
from tests.support.cases import GLOBAL_BATCH, Regression, loader, make_trainer

EPOCHS = 3
ANNOUNCED = 16


class Interrupted(Regression):
    """Writes down which samples it has seen in which step, and may be slow, or stuck, or without a disk."""

    def __init__(self, folder: Path, action: str) -> None:
        super().__init__("adamw")
        self.folder = folder
        self.action = action

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        step = self.trainer.global_step
        with (self.folder / f"{self.global_rank}.seen").open("a") as file:
            print(self.trainer.current_epoch, step, *[f"{value:.6f}" for value in batch[0][:, 0].tolist()], file=file)
        if self.action in ("slow", "stuck") and step >= ANNOUNCED:
            if step == ANNOUNCED:
                (self.folder / f"{self.global_rank}.part").write_text(str(os.getpid()))
                (self.folder / f"{self.global_rank}.part").rename(self.folder / f"{self.global_rank}.pid")
            time.sleep(0.05 if self.action == "slow" else 3600)  # so that there is a step to be interrupted
        if self.action == "full" and step == 13:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return super().training_step(batch, batch_idx)


def train(
    strategy: Any,
    workers: int,
    folder: Path,
    action: str = "",
    callbacks: tuple[L.Callback, ...] = (),
    on_error: Literal["stop", "continue"] = "stop",
    **options: Any,
) -> Tensor:
    """Train with a checkpoint every five steps, and return the weights."""
    L.seed_everything(11, verbose=False)
    module = Interrupted(folder, action)
    checkpoints = ModelCheckpoint(folder / "checkpoints", every="5steps", keep=3, on_error=on_error)
    options = {"enable_checkpointing": True, "max_epochs": EPOCHS, **options}
    trainer = make_trainer(strategy, workers, callbacks=[checkpoints, *callbacks], **options)
    batch = GLOBAL_BATCH // workers
    trainer.fit(module, loader(batch, shuffle=True), loader(batch))
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def samples_seen(folder: Path, workers: int) -> dict[int, list[str]]:
    """Return the samples of each epoch, where a step that was repeated counts as it was done last."""
    seen: dict[int, list[str]] = {epoch: [] for epoch in range(EPOCHS)}
    for rank in range(workers):
        steps: dict[tuple[int, int], list[str]] = {}
        for line in (folder / f"{rank}.seen").read_text().splitlines():
            epoch, step, *samples = line.split()
            steps[int(epoch), int(step)] = samples
        for (epoch_number, _), samples in steps.items():
            seen[epoch_number] += samples
    return seen


if __name__ == "__main__":
    strategy, workers, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    action = sys.argv[4] if len(sys.argv) > 4 else ""
    on_error: Literal["stop", "continue"] = "continue" if "continue" in sys.argv else "stop"
    resume = None if "requeued" in sys.argv else "auto"
    if "connected" in sys.argv:
        import ray

        ray.init("local", num_cpus=1, include_dashboard=False)
    weights = train(strategy, workers, folder, action, on_error=on_error, resume=resume)
    if rank_zero_only.rank == 0:
        torch.save(weights, folder / "weights.pt")

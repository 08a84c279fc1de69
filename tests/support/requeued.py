"""A run that is interrupted in each of its jobs but the last: ``requeued.py WORKERS FOLDER INTERRUPTIONS``.

Its data come from loader workers. A file per rank and job says that there is a step to be interrupted. At the end the
weights are in the folder, and beside them the runs of MLflow, the versions of Lightning's CSVLogger, and the best
checkpoint of Lightning's callback, which saves in the folder of a version.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint as LightningModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from itwinai.callbacks import ModelCheckpoint
from itwinai.launchers import slurm_job
from itwinai.loggers import MLFlowLogger
from tests.support.cases import GLOBAL_BATCH, Regression, loader, make_trainer

STEPS_PER_JOB = 8


class Requeued(Regression):
    """Trains slowly from some step on, until it is interrupted."""

    def __init__(self, folder: Path, interruptions: int) -> None:
        super().__init__("adamw")
        self.folder = folder
        self.interruptions = interruptions

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        job, step = slurm_job.earlier_tries(), self.trainer.global_step
        if job < self.interruptions and step >= STEPS_PER_JOB * (job + 1):
            (self.folder / f"{job}.{self.global_rank}.slow").touch()
            time.sleep(0.1)
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=True, on_epoch=False, rank_zero_only=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("score", float(self.trainer.current_epoch), sync_dist=True)  # the first epoch is the best one


def train(workers: int, folder: Path, interruptions: int, logs: bool) -> Tensor:
    """Train, and return the weights."""
    L.seed_everything(11, verbose=False)
    module = Requeued(folder, interruptions)
    best = LightningModelCheckpoint(monitor="score")
    trainer = make_trainer(
        "ddp" if workers > 1 else "auto",
        workers,
        callbacks=[ModelCheckpoint(folder / "checkpoints", every="5steps"), *([best] if logs else [])],
        logger=[CSVLogger(folder), MLFlowLogger("requeued", save_dir=str(folder))] if logs else False,
        log_every_n_steps=1,
        enable_checkpointing=True,
        default_root_dir=folder,
        max_epochs=4,
    )
    data: DataLoader = loader(GLOBAL_BATCH // workers, shuffle=True)
    several = DataLoader(data.dataset, batch_size=data.batch_size, shuffle=True, num_workers=2 if logs else 0)
    trainer.fit(module, several)
    if logs and trainer.is_global_zero:
        (folder / "best").write_text(best.best_model_path)
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    weights = train(int(sys.argv[1]), folder, int(sys.argv[3]), logs=True)
    if os.environ.get("SLURM_PROCID", "0") == "0":
        torch.save(weights, folder / "weights.pt")
